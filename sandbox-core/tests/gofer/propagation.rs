use sandbox_core::sys::mount::PropagationKind::{self, Private, Shared, Slave};

use crate::harness::*;

fn tags(wanted: Option<PropagationKind>, sandbox: Option<&Sandbox>) -> (bool, bool) {
    let host = Host::new();
    let volume = host.mount("tmpfs", "volume");
    change(&volume, Shared);
    let mut request = request();
    request.mounts = vec![bind(0, volume)];
    request.mounts[0].propagation = wanted;
    let run = gofer(&request, sandbox);
    let line = host.table_line(run.mount(0));
    (line.contains(" shared:"), line.contains(" master:"))
}

#[test]
fn nothing_mounted_in_a_sandbox_shows_up_on_the_host() {
    let sandbox = Sandbox::new();
    assert_eq!(tags(None, Some(&sandbox)), (false, false));
    assert_eq!(tags(Some(Private), Some(&sandbox)), (false, false));
    assert_eq!(tags(Some(Slave), Some(&sandbox)), (false, true));
    assert_eq!(tags(Some(Shared), Some(&sandbox)), (false, true));
}

#[test]
fn only_without_a_user_namespace_a_volume_stays_a_peer() {
    assert_eq!(tags(None, None), (false, false));
    assert_eq!(tags(Some(Slave), None), (false, true));
    assert_eq!(tags(Some(Shared), None), (true, false));
}

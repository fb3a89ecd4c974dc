use sandbox_core::control::gofer::Slot;

use crate::harness::*;

/// Fifty times, since what leaks or races shows by then.
#[test]
fn fifty_pods_leave_nothing_behind() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let request = first_of_pod(&host);
    let before = host.mounts();
    for _ in 0..50 {
        let run = gofer(&request, Some(&sandbox));
        assert_eq!(run.delivered.len(), 12);
        write_as(HOST_ROOT, run.rootfs(), "etc/new", "new").unwrap();
        assert_eq!(read(run.get(Slot::SandboxProc), "1/comm").unwrap(), "sleep\n");
    }
    assert!(host.mounts().is_subset(&before));
}

use sandbox_core::control::gofer::{RequestedMount, Slot};
use sandbox_core::spec::plan::DeliveredSource;

use crate::harness::*;
use crate::rootfs::{asking_for, snapshots};

/// The first container of a pod as Kubernetes has it. Fifty times, since what
/// leaks or races shows by then; the times are only printed.
#[test]
fn fifty_pods_leave_nothing_behind() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let mut request = asking_for(vec![snapshots(&host)]);
    request.sandbox_proc = true;
    request.default_devices = true;
    for index in 0..8 {
        host.write(&format!("volumes/{index}/name"), "");
        request.mounts.push(bind(index, host.path(&format!("volumes/{index}"))));
    }
    let source = DeliveredSource::Sysfs;
    request.mounts.push(RequestedMount { index: 8, source, propagation: None });
    let before = host.mounts();
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let run = gofer(&request, Some(&sandbox));
            assert_eq!(run.delivered.len(), 12);
            write_as(HOST_ROOT, run.rootfs(), "etc/new", "new").unwrap();
            assert_eq!(read(run.get(Slot::SandboxProc), "1/comm").unwrap(), "sleep\n");
            run.time
        })
        .collect();
    assert!(host.mounts().is_subset(&before));
    times.sort();
    println!("clone to answer: median {:?}, most {:?}", times[25], times[49]);
}

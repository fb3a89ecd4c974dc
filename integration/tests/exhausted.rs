//! What a machine has no more of. A request that needs it is refused in words, the pod lives on,
//! and nothing is left, which the end of each test checks.

use integration::containerd::Containerd;
use integration::on_each_containerd;
use integration::state_mount::StateMount;

on_each_containerd!(without_room_for_its_state_a_container_is_refused);

/// Wherever the room for the state ends.
fn without_room_for_its_state_a_container_is_refused(containerd: Containerd) {
    let state = StateMount::on(&containerd);
    let (mut refused, mut made) = (0, 0);
    for pages in 0..8 {
        state.fill_but(pages);
        let created = containerd.container(&format!("room-{pages}"), ["true"]).try_create();
        match created {
            Ok(container) => {
                made += 1;
                container.start().expect("start it");
                assert_eq!(container.wait().code, 0);
                assert_eq!(container.delete_task().expect("delete it"), 0);
            }
            Err(error) => {
                refused += 1;
                let words = error.message();
                assert!(words.contains("No space left on device"), "{pages} pages: {words}");
                assert!(words.contains("/run/palisade/"), "{pages} pages: {words}");
            }
        }
        state.empty();
    }
    assert!(refused > 0 && made > 0, "{refused} refused, {made} made");
    let (code, output) = containerd.shell("afterwards", "echo room").start().finish();
    assert_eq!((code, output.as_str()), (0, "room\n"));
    drop(state);
}

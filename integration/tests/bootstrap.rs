//! How containerd 2.3 brings up a shim: `BootstrapParams` go into `start`, a
//! `BootstrapResult` comes out (containerd's API, `bootstrap.proto`). No Debian
//! has that containerd yet, so its side of the exchange is spelled out here,
//! byte by byte and by no library, and the shim is the real executable.

use std::fs;
use std::path::Path;

use integration::containerd::{Containerd, Version};
use integration::shim::Bundle;

/// A field of a protobuf message that holds a string, bytes or a message.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = vec![(number << 3) | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

/// A `google.protobuf.Any` in an `Extension`.
fn extension(type_url: &str, value: &[u8]) -> Vec<u8> {
    field(8, field(1, [field(1, type_url), field(2, value)].concat()))
}

/// What containerd 2.3 writes for a container with runtime options.
struct Params<'a> {
    bundle: &'a Bundle,
    id: &'a str,
    options: &'a str,
    sockets: &'a Path,
}

impl Params<'_> {
    fn bytes(&self) -> Vec<u8> {
        let Self { bundle, id, options, sockets } = self;
        let options = field(3, options);
        [
            field(1, id),
            field(2, &bundle.namespace),
            // log_level = LOG_LEVEL_DEBUG: -4 as a varint of 64 bits.
            vec![0x18, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            field(4, "2.3.0"),
            field(5, format!("{}.ttrpc", bundle.address)),
            field(6, &bundle.address),
            field(7, "/usr/bin/containerd"),
            // Somebody else's, first, then ours.
            extension("containerd.io/cri.v1.PodSandboxConfig", b"\x0a\x03abc"),
            extension("runtimeoptions.v1.Options", &options),
            field(9, sockets.as_os_str().as_encoded_bytes()),
            // What a later containerd may add.
            field(15, "future"),
        ]
        .concat()
    }
}

fn containerd() -> Containerd {
    Containerd::start(Version::V2_1)
}

#[test]
fn a_shim_is_brought_up_by_one_message_and_answers_by_another() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "told", "exit 7");
    let sockets = containerd.directory().join("s");
    let params = Params { bundle: &bundle, id: "told", options: "", sockets: &sockets };
    let output = bundle.start_with_stdin(&params.bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // version = 3, address, protocol, and nothing else.
    let socket = fs::read_dir(&sockets).expect("a directory with the socket").next();
    let socket = socket.expect("a socket").expect("its entry").path();
    let address = format!("unix://{}", socket.display());
    let wanted = [vec![0x08, 3], field(2, &address), field(3, "ttrpc")].concat();
    assert_eq!(output.stdout, wanted, "{}", String::from_utf8_lossy(&output.stdout));

    let shim = bundle.connect(&address).expect("connect to the shim");
    shim.create().expect("create the container");
    assert_eq!(shim.run_to_end(), Ok(7));
    shim.shutdown();
    integration::wait::until("the socket is gone", || (!socket.exists()).then_some(()));
}

#[test]
fn options_that_come_with_it_are_read() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "strange", "true");
    let sockets = containerd.directory().join("s");
    let options = "colour = \"red\"";
    let params = Params { bundle: &bundle, id: "strange", options, sockets: &sockets };
    let output = bundle.start_with_stdin(&params.bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("colour"), "{said}");
    assert_eq!(output.stdout, b"");
    let left: Vec<_> = fs::read_dir(&sockets).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_message_for_another_container_is_refused() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "one", "true");
    let sockets = containerd.directory().join("s");
    let params = Params { bundle: &bundle, id: "other", options: "", sockets: &sockets };
    let output = bundle.start_with_stdin(&params.bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for id in ["other", "one"] {
        assert!(said.contains(&format!("{}/{id}", bundle.namespace)), "{said}");
    }
}

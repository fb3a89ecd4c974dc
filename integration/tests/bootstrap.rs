//! containerd 2.3's way to start a shim: `start` gets `BootstrapParams` and
//! prints a `BootstrapResult` (containerd's API, `bootstrap.proto`). No Debian
//! has that containerd yet. So this test writes its messages byte by byte,
//! without a library, for the real shim.

use std::fs;
use std::path::Path;

use integration::containerd::{Containerd, Version};
use integration::shim::Bundle;

/// Encodes a field of a protobuf message: a string, bytes or a message.
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

/// Encodes a `google.protobuf.Any` in an `Extension`.
fn extension(type_url: &str, value: &[u8]) -> Vec<u8> {
    field(8, field(1, [field(1, type_url), field(2, value)].concat()))
}

/// The parameters that containerd 2.3 writes for a container with runtime
/// options.
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
            // First an extension for another program, then ours.
            extension("containerd.io/cri.v1.PodSandboxConfig", b"\x0a\x03abc"),
            extension("runtimeoptions.v1.Options", &options),
            field(9, sockets.as_os_str().as_encoded_bytes()),
            // A field that a later containerd may add.
            field(15, "future"),
        ]
        .concat()
    }
}

fn containerd() -> Containerd {
    Containerd::start(Version::V2_1)
}

#[test]
fn one_message_starts_a_shim_and_another_reports_it() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "bootstrapped", "exit 7");
    let sockets = containerd.directory().join("s");
    let params = Params { bundle: &bundle, id: "bootstrapped", options: "", sockets: &sockets };
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

/// `LogLevel` is an open enum, and extensions are of any type.
#[test]
fn what_a_later_containerd_adds_to_the_message_is_no_obstacle() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "later", "exit 3");
    let sockets = containerd.directory().join("s");
    let params = Params { bundle: &bundle, id: "later", options: "", sockets: &sockets };
    let debug = [0x18, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let bytes = params.bytes();
    let at = bytes.windows(debug.len()).position(|part| part == debug).expect("its level");
    // A level that no containerd has, and an extension that is no message.
    let level = [0x18, 0x4d];
    let unknown = extension("example.com/some.v9.Thing", &[0xff, 0xff, 0xff]);
    let bytes = [&bytes[..at], &level, &bytes[at + debug.len()..], &unknown].concat();
    let output = bundle.start_with_stdin(&bytes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let socket = fs::read_dir(&sockets).expect("a directory with the socket").next();
    let socket = socket.expect("a socket").expect("its entry").path();
    let shim = bundle.connect(&format!("unix://{}", socket.display())).expect("connect");
    shim.create().expect("create the container");
    assert_eq!(shim.run_to_end(), Ok(3));
    shim.shutdown();
}

#[test]
fn options_in_the_message_are_read() {
    let containerd = containerd();
    let bundle = Bundle::new(&containerd, "strange", "true");
    let sockets = containerd.directory().join("s");
    let options = "colour = \"red\"";
    let params = Params { bundle: &bundle, id: "strange", options, sockets: &sockets };
    let output = bundle.start_with_stdin(&params.bytes());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("colour"), "{stderr}");
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
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    for id in ["other", "one"] {
        assert!(stderr.contains(&format!("{}/{id}", bundle.namespace)), "{stderr}");
    }
}

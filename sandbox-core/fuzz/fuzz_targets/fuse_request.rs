//! One request of the kernel's FUSE, as boot reads it: whatever the bytes, it is a request or
//! an error, never a panic; a name is one component of a path; and what is parsed is no larger
//! than the bytes are.

#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use sandbox_core::views::fuse::protocol::{MAX_REQUEST, Operation, parse};

fuzz_target!(init: write_seeds(), |bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MAX_REQUEST)];
    let Ok(request) = parse(bytes) else {
        return;
    };
    match request.operation {
        Operation::Lookup { name } => {
            assert!(!name.is_empty() && name.len() < bytes.len());
            assert!(!name.contains(&b'/') && !name.contains(&0));
        }
        Operation::BatchForget { forgotten } => assert!(forgotten.len() * 16 < bytes.len()),
        _ => {}
    }
    // A request has no more bytes than it says, and no fewer.
    assert!(parse(&bytes[..bytes.len() - 1]).is_err());
});

/// Puts a request of each kind into the corpus: the first argument that is a folder.
fn write_seeds() {
    let Some(corpus) = std::env::args().skip(1).map(PathBuf::from).find(|path| path.is_dir())
    else {
        return;
    };
    for opcode in 1..=52_u32 {
        let body: &[u8] = match opcode {
            1 => b"meminfo\0",
            42 => &[2; 8 + 2 * 16],
            _ => &[1; 64],
        };
        let length = 40 + u32::try_from(body.len()).expect("a short body");
        let mut request = Vec::new();
        request.extend(length.to_ne_bytes());
        request.extend(opcode.to_ne_bytes());
        request.extend([7; 32]);
        request.extend(body);
        if opcode == 42 {
            request[40..44].copy_from_slice(&2_u32.to_ne_bytes());
        }
        std::fs::write(corpus.join(format!("seed-{opcode}")), request).expect("write a seed");
    }
}

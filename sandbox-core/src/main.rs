//! The `palisade` executable: the sandbox process and its gofer.
fn main() {}

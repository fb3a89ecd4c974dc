//! Generates the Rust types of `src/sandbox/cri.proto`.

fn main() {
    println!("cargo::rerun-if-changed=src/sandbox/cri.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("src/sandbox")
        .input("src/sandbox/cri.proto")
        .cargo_out_dir("protos")
        .run_from_script();
}

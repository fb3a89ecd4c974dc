//! Generates the Rust types of `src/sandbox_service/cri.proto`.

fn main() {
    println!("cargo::rerun-if-changed=src/sandbox_service/cri.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("src/sandbox_service")
        .input("src/sandbox_service/cri.proto")
        .cargo_out_dir("protos")
        .run_from_script();
}

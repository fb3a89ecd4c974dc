//! Generates the types and the service of `src/operator.proto`.

fn main() {
    println!("cargo::rerun-if-changed=src/operator.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .input("src/operator.proto")
        .include("src")
        .rust_protobuf()
        .rust_protobuf_customize(
            ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(true).generate_accessors(false),
        )
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("generate the types of operator.proto");
    // The generator names only the messages there.
    std::fs::write(
        std::path::Path::new(&out).join("mod.rs"),
        "/// The messages.\npub mod operator;\n\
         /// The service and its client.\npub mod operator_ttrpc;\n",
    )
    .expect("write mod.rs");
}

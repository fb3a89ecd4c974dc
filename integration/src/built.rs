//! The repository, and the executables that were built from it.

use std::path::{Path, PathBuf};

use crate::files::link_or_copy;

/// Returns the name of the runtime under test. To try out a test itself,
/// another runtime can be named: a test of what holds for all containers must
/// pass with runc as well.
pub(crate) fn runtime_name() -> String {
    std::env::var("PALISADE_TEST_RUNTIME").unwrap_or("io.containerd.palisade.v1".into())
}

/// The executables that are built and installed.
pub const EXECUTABLES: [&str; 3] = ["containerd-shim-palisade-v1", "palisade-sandbox", "palisade"];

/// Puts the built executables into a folder of a daemon's PATH.
pub(crate) fn install_palisade(folder: &Path, runtime_name: &str) {
    for name in EXECUTABLES {
        let built = palisade_executables().join(name);
        if built.is_file() {
            link_or_copy(&built, &folder.join(name)).expect("link an executable");
        } else if runtime_name.contains("palisade") {
            panic!("{} is missing; run: cargo build --release", built.display());
        }
    }
}

/// Returns the root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository")
}

/// Returns the folder in which `cargo build --release` puts the
/// executables.
pub fn palisade_executables() -> PathBuf {
    match std::env::var_os("PALISADE_TEST_EXECUTABLES") {
        Some(folder) => folder.into(),
        None => repository().join("target/x86_64-unknown-linux-gnu/release"),
    }
}

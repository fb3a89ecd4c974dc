//! Platform: returns the platform of the sandbox's containers, with Go's names.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::{PlatformRequest, PlatformResponse};
use containerd_shim_protos::types::platform::Platform;

use crate::error::Result;
use crate::task::Shim;

pub(super) fn platform(shim: &Shim, request: &PlatformRequest) -> Result<PlatformResponse> {
    shim.table().pod(&request.sandbox_id)?;
    let platform = Platform {
        os: "linux".to_string(),
        architecture: architecture(std::env::consts::ARCH).to_string(),
        ..Default::default()
    };
    Ok(PlatformResponse { platform: MessageField::some(platform), ..Default::default() })
}

/// Converts Rust's name of an architecture to Go's (`GOARCH`).
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

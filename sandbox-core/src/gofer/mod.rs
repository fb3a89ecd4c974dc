//! The short-lived privileged helper that opens what a container may see.

pub mod request;

/// Placeholder.
pub fn run(_socket: std::os::fd::OwnedFd) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}

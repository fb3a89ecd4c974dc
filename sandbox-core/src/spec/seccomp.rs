//! stub until the spec branch lands
use oci_spec::runtime::LinuxSeccomp;
/// key
pub fn key(_p: &LinuxSeccomp) -> String {
    todo!()
}
/// flags
pub fn flags(_p: &LinuxSeccomp) -> crate::Result<u32> {
    todo!()
}

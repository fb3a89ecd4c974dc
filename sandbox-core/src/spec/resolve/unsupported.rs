//! Parts of the specification that are not supported. They are refused and
//! never ignored, since the author of the spec relies on them.

use oci_spec::runtime::Spec;

use super::check::refuse;
use crate::error::Result;

/// Refuses the sections of other platforms by name.
pub(super) fn check(spec: &Spec) -> Result<()> {
    let foreign = [
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    for (section, present) in foreign {
        if present {
            return refuse(
                section,
                "is a section for another platform; expected a Linux container's spec",
            );
        }
    }
    Ok(())
}

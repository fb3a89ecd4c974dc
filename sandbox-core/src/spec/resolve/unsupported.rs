//! Parts of the specification that are not supported. They are refused and
//! never ignored, since the author of the spec relies on them.

use oci_spec::runtime::{Linux, Spec};

use super::check::refuse;
use crate::error::Result;

/// Refuses the sections of other platforms and the features without support, by
/// name.
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
    spec.linux().as_ref().map_or(Ok(()), check_linux)
}

fn check_linux(linux: &Linux) -> Result<()> {
    let unsupported = [("linux.intelRdt", linux.intel_rdt().is_some())];
    for (field, present) in unsupported {
        if present {
            return refuse(field, "is not supported; remove it from the spec");
        }
    }
    Ok(())
}

//! The baseline: the parts of the kernel that no container reaches unless it is granted
//! them, whatever its own seccomp profile says, and even if it has none.
//!
//! Nested user namespaces are the largest part: they give every user the capabilities over
//! file systems and networks that most of the kernel's exploited faults take. Where the pod
//! has a user namespace, the kernel's own limit switches them off, and no call gets slower.
//! The rest is a program of classic BPF, joined with the profile's to one. The kernel remembers
//! which calls a program always allows, so only the few calls whose arguments count are
//! evaluated, and by one program.

mod cause;
mod program;
mod rules;

pub use self::cause::{Held, held, is_native, name_of, native};
pub use self::program::{joined, program};
pub(crate) use self::rules::held_back;
pub use crate::types::{Allowed, Baseline, Confined, Level};

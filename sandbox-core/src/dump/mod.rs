//! Saves a container's processes, as the shim: criu does it, as root of the host, in a child.
//!
//! | step | by | waits |
//! |---|---|---|
//! | find criu and start it inside the namespaces that it must share with the container | [`criu::Dumper`] | [`criu::Dumper::socket`] |
//! | look at the processes, and refuse by name what cannot be saved | [`processes::look`], [`mounts`] | |
//! | save what is in file systems in memory, while all is frozen | [`tmpfs::save`] | [`visit::Visit`] |
//! | have criu save the processes | [`criu::Dumper`] | its socket |
//!
//! The processes are hostile: what `/proc` shows of them is text that they shape.

pub mod criu;
pub mod criu_files;
pub mod mounts;
pub mod names;
pub mod processes;
pub mod program;
pub mod tmpfs;
pub mod visit;

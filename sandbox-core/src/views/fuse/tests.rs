//! The file system as the kernel of this machine serves it to programs. The texts are made up:
//! what they say is the subject of other tests.

mod files;
mod forged;
mod served;
mod speed;
mod sysfs;
mod waiting;

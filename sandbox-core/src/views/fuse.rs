//! The file system that boot serves to the kernel.

//! The texts of the files, each in the kernel's format.

//! The texts, beside the kernel's own of this machine and of recorded ones.

mod forms;
mod hostile;
mod numbers;

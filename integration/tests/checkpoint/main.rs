//! Containers that are saved and brought back.

mod dump;

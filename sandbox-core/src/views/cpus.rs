//! Which CPUs a container is told it has.

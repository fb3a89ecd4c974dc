//! The steps in which boot puts one container together, and the information that it keeps
//! of it. The newborn, a copy of boot, continues from there: see `newborn/`.

pub(crate) mod channel;
pub(crate) mod delivered;
pub(crate) mod donated;
pub(crate) mod join_info;
pub(crate) mod namespaces;
pub(crate) mod outside_ids;
pub(crate) mod own_id;
pub(crate) mod paths;
pub(crate) mod shared_names;
pub(crate) mod steps;
pub(crate) mod terminal;
pub(crate) mod tree;

//! The steps in which a newborn puts one container together (`newborn/` has their order), and
//! the information that boot keeps of it.

pub(crate) mod channel;
pub(crate) mod delivered;
pub(crate) mod donated;
pub(crate) mod filter;
pub(crate) mod home;
pub(crate) mod join_info;
pub(crate) mod namespaces;
pub(crate) mod outside_ids;
pub(crate) mod own_id;
pub(crate) mod paths;
pub(crate) mod shared_names;
pub(crate) mod steps;
pub(crate) mod terminal;
pub(crate) mod tree;
pub(crate) mod view_call;

//! The files of the cgroups that views are made from.

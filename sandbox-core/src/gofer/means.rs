//! The descriptors that came with a request, sorted for its work.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::control::gofer::GoferRequest;
use crate::error::{Error, Result};
use crate::gofer::users::{Users, namespace_with};
use crate::spec::plan::Powerless;

/// The descriptors and namespaces for the work on one request.
pub(super) struct Gofer {
    /// The sandbox's users; `None` without a user namespace.
    pub(super) users: Option<Users>,
    /// The sandbox's network namespace.
    pub(super) network: Option<OwnedFd>,
    /// boot's PID namespace.
    pub(super) pids: Option<OwnedFd>,
    /// Whether the gofer is not root of the host.
    pub(super) rootless: bool,
    /// While the root file system is made for hooks of a sandbox with a user namespace: one that
    /// maps its IDs back to those that the container sees.
    pub(super) for_hooks: Option<OwnedFd>,
    /// Detached mounts that are not needed any more. Closing one waits for the
    /// whole kernel (60 µs), so they are closed after the reply.
    pub(super) leftovers: Vec<OwnedFd>,
    /// What turned out to be without effect.
    pub(super) powerless: Vec<Powerless>,
}

impl Gofer {
    /// Returns the namespace that maps owners of a root file system. `shifted` says whether they
    /// are the sandbox's own host IDs already.
    pub(super) fn root_owners(&self, shifted: bool) -> Option<BorrowedFd<'_>> {
        match (&self.users, &self.for_hooks, shifted) {
            (Some(users), None, false) => users.idmap(),
            (Some(_), Some(back), true) => Some(back.as_fd()),
            _ => None,
        }
    }

    /// Sorts the descriptors that came with the request, as [`GoferRequest`]
    /// lists them. Also returns the mounts channel.
    pub(super) fn equip(request: &GoferRequest, fds: Vec<OwnedFd>) -> Result<(OwnedFd, Self)> {
        let count = fds.len();
        let mut fds = fds.into_iter();
        let mut take = |what: &str| {
            fds.next().ok_or_else(|| {
                Error::internal(format!(
                    "the request came with {count} descriptors, without {what}"
                ))
            })
        };
        let channel = take("the mounts channel")?;
        let users = match &request.user_namespace {
            Some(mappings) => {
                let namespace = match request.own_user_namespace {
                    true => namespace_with(mappings)?,
                    false => take("the user namespace")?,
                };
                Some(Users::new(namespace, mappings.clone())?)
            }
            None => None,
        };
        let network = request.wants_network().then(|| take("the network namespace"));
        let pids = request.sandbox_proc.then(|| take("boot's PID namespace"));
        let gofer = Self {
            users,
            network: network.transpose()?,
            pids: pids.transpose()?,
            rootless: request.rootless,
            for_hooks: None,
            leftovers: Vec::new(),
            powerless: Vec::new(),
        };
        match fds.count() {
            0 => Ok((channel, gofer)),
            n => Err(Error::internal(format!("the request came with {n} descriptors too many"))),
        }
    }
}

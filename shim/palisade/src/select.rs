//! Finds the pod or the container that a name on the command line means.

use std::collections::BTreeSet;

use crate::exit::Failure;
use crate::node::{Container, Node, Pod};

/// What a name on the command line means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Selected<'a> {
    /// A whole pod.
    Pod(&'a Pod),
    /// A container of a pod.
    Container(&'a Pod, &'a Container),
}

impl<'a> Selected<'a> {
    /// Returns the pod, or that of the container.
    pub(crate) fn pod(self) -> &'a Pod {
        let (Self::Pod(pod) | Self::Container(pod, _)) = self;
        pod
    }

    /// Returns the container, if one is meant.
    pub(crate) fn container(self) -> Option<&'a Container> {
        match self {
            Self::Pod(_) => None,
            Self::Container(_, container) => Some(container),
        }
    }

    /// Returns the ID of what is meant.
    pub(crate) fn id(self) -> &'a str {
        self.container().map_or(&self.pod().id, |container| &container.id)
    }

    /// Returns the container that is meant: of a pod, its only one beside the pause container, or
    /// its root container if there is no other.
    ///
    /// # Errors
    /// The error lists the containers if the pod has several.
    pub(crate) fn one_container(self) -> Result<(&'a Pod, &'a Container), Failure> {
        let pod = self.pod();
        if let Some(container) = self.container() {
            return Ok((pod, container));
        }
        let others: Vec<&Container> = pod.containers.iter().filter(|c| c.id != pod.id).collect();
        match (others.as_slice(), pod.containers.first()) {
            ([only], _) => Ok((pod, only)),
            ([], Some(root)) => Ok((pod, root)),
            ([], None) => Err(Failure::NotFound(format!("the pod {} has no container", pod.id))),
            (several, _) => {
                let ids: Vec<String> = several.iter().map(|c| called(c)).collect();
                Err(Failure::NotFound(format!(
                    "the pod {} has {} containers; name one of them: {}",
                    pod.id,
                    several.len(),
                    ids.join(", ")
                )))
            }
        }
    }
}

/// Returns an ID as it is shown to people.
pub(crate) fn short(id: &str) -> &str {
    let hex = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { &id[..12] } else { id }
}

fn called(container: &Container) -> String {
    match container.name() {
        "" => short(&container.id).to_owned(),
        name => format!("{} ({name})", short(&container.id)),
    }
}

/// Finds what `text` means: the whole ID of a container or a pod, else the beginning of one, or a
/// name: CONTAINER, POD, NAMESPACE/POD, POD/CONTAINER or NAMESPACE/POD/CONTAINER.
///
/// A container and the pod that is named after it are the same ID: then the container is meant if
/// it is the pod's only one, and the pod otherwise.
///
/// # Errors
/// The error lists what is meant as well if that is more than one, and says so if it is none.
pub(crate) fn find<'a>(node: &'a Node, text: &str) -> Result<Selected<'a>, Failure> {
    let everything: Vec<Selected<'a>> = node.pods.iter().flat_map(parts).collect();
    let rules: [fn(Selected<'_>, &str) -> bool; 3] = [
        |part, text| part.id() == text,
        |part, text| names_of(part).contains(text),
        |part, text| !text.is_empty() && part.id().starts_with(text),
    ];
    for rule in rules {
        let found: Vec<Selected<'a>> =
            everything.iter().copied().filter(|part| rule(*part, text)).collect();
        match found.as_slice() {
            [] => {}
            [only] => return Ok(*only),
            several => {
                let list: Vec<String> = several
                    .iter()
                    .map(|part| format!("{} of {}", short(part.id()), part.pod().namespace))
                    .collect();
                return Err(Failure::NotFound(format!(
                    "{text:?} means {} pods or containers; write more of it, or --namespace: {}",
                    several.len(),
                    list.join(", ")
                )));
            }
        }
    }
    Err(Failure::NotFound(format!(
        "no pod and no container is called {text:?}; `palisade list` shows those there are"
    )))
}

/// A pod, and each of its containers but one that stands for the pod or that the pod stands for.
fn parts(pod: &Pod) -> Vec<Selected<'_>> {
    if let [only] = pod.containers.as_slice()
        && only.id == pod.id
        && !only.names.is_pause
    {
        return vec![Selected::Container(pod, only)];
    }
    let others = pod.containers.iter().filter(|container| container.id != pod.id);
    let others = others.map(|container| Selected::Container(pod, container));
    std::iter::once(Selected::Pod(pod)).chain(others).collect()
}

/// Returns the names of a pod or a container.
fn names_of(part: Selected<'_>) -> BTreeSet<String> {
    let pod = part.pod();
    let (space, name) = (pod.kubernetes_namespace(), pod.name());
    let mut all = BTreeSet::new();
    match part.container() {
        None if !name.is_empty() => all.extend([name.to_owned(), format!("{space}/{name}")]),
        Some(container) if !container.name().is_empty() => {
            let own = container.name();
            all.insert(own.to_owned());
            if !name.is_empty() {
                all.extend([format!("{name}/{own}"), format!("{space}/{name}/{own}")]);
            }
        }
        _ => {}
    }
    all
}

/// Returns all IDs and names, for a shell to complete.
pub(crate) fn names(node: &Node) -> BTreeSet<String> {
    let of = |part: Selected<'_>| {
        let mut all = names_of(part);
        all.insert(part.id().to_owned());
        all
    };
    node.pods.iter().flat_map(parts).flat_map(of).collect()
}

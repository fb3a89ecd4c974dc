//! Decides whether a container has views of its CPUs and its memory.

use std::path::Path;

use super::Context;
use crate::spec::plan::{MountPlan, MountSource, Powerless, ProcessPlan, Views};

/// Whether the sandbox serves views. The root container decides.
pub(super) fn of_pod(context: &Context<'_>) -> bool {
    context.sandbox.map_or(context.views.is_some(), |facts| facts.views)
}

/// Returns the views of a container. One without a proc has no place for them.
pub(super) fn of_container(
    mounts: &[MountPlan],
    process: Option<&ProcessPlan>,
    context: &Context<'_>,
) -> Option<Views> {
    let is_proc = |mount: &MountPlan| {
        mount.source == MountSource::Proc && mount.destination == Path::new("/proc")
    };
    let has = process.is_some() && of_pod(context) && mounts.iter().any(is_proc);
    context.views.filter(|_| has)
}

/// Says that a container has no views in a pod that was made without them.
pub(super) fn powerless(context: &Context<'_>) -> Option<Powerless> {
    (context.views.is_some() && !of_pod(context)).then(|| Powerless {
        field: "views".into(),
        lost: "the pod was made without views, which its containers share".into(),
        instead: "set it for the pod and all its containers alike, by the annotation \
                  dev.palisade.views or in the node's options, and make the pod anew"
            .into(),
        by_default: true,
    })
}

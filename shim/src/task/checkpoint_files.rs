//! Reads what a checkpoint says beside its images.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use sandbox_core::checkpoint::manifest::{Manifest, Stream};
use sandbox_core::control::message::{Inherited, Saved};
use sandbox_core::dump::criu_files::{CRIU, LOADER, ProgramFile};
use sandbox_core::spec::plan::{CheckpointSource, ContainerPlan};

use crate::error::{Context, Result};

/// A checkpoint that is to be restored.
pub(super) struct Checkpoint {
    /// The files that the gofer opens.
    pub(super) source: CheckpointSource,
    /// What boot is told of it.
    pub(super) saved: Saved,
    /// All that it says.
    pub(super) manifest: Manifest,
}

/// Reads a checkpoint, for a container of this plan.
pub(super) fn read(path: &Path, plan: &ContainerPlan, criu: &[ProgramFile]) -> Result<Checkpoint> {
    let folder = File::open(path).context(|| format!("open the checkpoint {}", path.display()))?;
    let manifest = Manifest::read(folder.as_fd())?;
    manifest.check_plan(plan)?;
    let inherited = |stream| match stream {
        Stream::Stdin => Inherited::Stream(0),
        Stream::Stdout => Inherited::Stream(1),
        Stream::Stderr => Inherited::Stream(2),
        Stream::Terminal => Inherited::Terminal,
        Stream::Null => Inherited::Null,
    };
    let index = |saved| manifest.mount_of(saved, plan);
    let saved = Saved {
        programs: [LOADER.to_owned(), CRIU.to_owned()],
        host_name: manifest.hostname.clone(),
        inherited: manifest
            .inherited
            .iter()
            .map(|i| (i.key.clone(), inherited(i.stream)))
            .collect(),
        tmpfs: manifest
            .tmpfs
            .iter()
            .filter_map(|saved| Some((saved.file.clone(), index(saved)?)))
            .collect(),
        open_tcp: manifest.open_tcp,
    };
    let programs = criu.iter().map(|file| (file.name.clone(), file.path.clone())).collect();
    let source = CheckpointSource { images: path.into(), programs };
    Ok(Checkpoint { source, saved, manifest })
}

//! Compiles a seccomp profile, unless that was done before.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::control::gofer::SeccompJob;
use crate::directories::make_below;
use crate::error::{Context, Error, Result};
use crate::spec::seccomp::{compile, join};

/// Makes the job's output if it does not exist. Several gofers may do so at
/// once: each writes its own file, and the last rename wins.
pub(super) fn ensure(job: &SeccompJob) -> Result<()> {
    if job.output.exists() {
        return Ok(());
    }
    let mut compiled = compile(&job.profile)?;
    if let Some(baseline) = &job.baseline {
        compiled = join(compiled, baseline)?;
    }
    let program = compiled.program;
    let output = job.output.display();
    let directory = job.output.parent().ok_or_else(|| {
        Error::internal(format!("a seccomp program cannot be written to {output}"))
    })?;
    let temporary = job.output.with_extension(format!("{}.new", std::process::id()));
    let mut new = fs::OpenOptions::new();
    new.write(true).create(true).truncate(true).mode(0o600);
    let write = || {
        let written = new.open(&temporary).and_then(|mut file| file.write_all(&program));
        written.and_then(|()| fs::rename(&temporary, &job.output))
    };
    make_below(directory, 0o700, write)
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .context(|| format!("write {output}"))
}

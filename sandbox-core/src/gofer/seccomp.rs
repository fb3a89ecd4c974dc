//! Compiles a seccomp profile, unless that was done before.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use crate::control::gofer::SeccompJob;
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
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .context(|| format!("mkdir {}", directory.display()))?;
    let temporary = job.output.with_extension(format!("{}.new", std::process::id()));
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&program))
        .and_then(|()| fs::rename(&temporary, &job.output))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .context(|| format!("writing {output}"))
}

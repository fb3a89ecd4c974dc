//! The files of criu: its executable, its loader and its libraries, by which it runs where nothing
//! else of the host is.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::visit::Visit;
use crate::error::{Context, Error, Result};

/// The longest path of a loader.
const MAX_PATH: u64 = 4096;

/// The names of the first two files.
pub const LOADER: &str = "ld.so";
/// See [`LOADER`].
pub const CRIU: &str = "criu";

/// A file, and the name by which it is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFile {
    /// Its name, without a directory.
    pub name: String,
    /// Its path on the host.
    pub path: PathBuf,
}

/// Begins to ask the loader of an executable which libraries it needs: [`files`] reads the
/// report.
///
/// # Errors
/// `Invalid` if it is no executable that is linked dynamically.
pub fn ask_loader(criu: &Path) -> Result<Visit> {
    let loader = loader_of(criu)?;
    Visit::begin(&[], || {
        let listed = Command::new(&loader)
            .arg("--list")
            .arg(criu)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let what = || format!("{} --list {}", loader.display(), criu.display());
        let listed = listed.context(what)?;
        match listed.status.success() {
            true => Ok(listed.stdout),
            false => Err(Error::internal(format!("{}: {}", what(), listed.status))),
        }
    })
}

/// Returns the files of an executable by the report of [`ask_loader`]: first the loader, as
/// [`LOADER`], then the executable, as [`CRIU`], then the libraries by the names that they are
/// looked for.
pub fn files(criu: &Path, report: &[u8]) -> Result<Vec<ProgramFile>> {
    let file = |name: &str, path: &Path| ProgramFile { name: name.into(), path: path.into() };
    let mut all = vec![file(LOADER, &loader_of(criu)?), file(CRIU, criu)];
    for line in String::from_utf8_lossy(report).lines() {
        let Some((name, found)) = line.trim().split_once(" => ") else { continue };
        let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
        if !Path::new(path).is_absolute() || name.contains('/') {
            return Err(Error::internal(format!("criu needs {name}: {found}")));
        }
        all.push(file(name, Path::new(path)));
    }
    Ok(all)
}

/// Reads the path of the loader that an executable names (elf(5), `PT_INTERP`).
fn loader_of(executable: &Path) -> Result<PathBuf> {
    let what = || format!("read {}", executable.display());
    let file = File::open(executable).context(what)?;
    let bad = || {
        Error::invalid(format!(
            "{} is no executable of this machine that names its loader",
            executable.display()
        ))
    };
    let number = |bytes: &[u8], at: usize, length: usize| {
        let mut all = [0; 8];
        all[..length].copy_from_slice(&bytes[at..at + length]);
        u64::from_le_bytes(all)
    };
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).map_err(|_| bad())?;
    // 64 bits, little endian.
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return Err(bad());
    }
    let (table, size, count) =
        (number(&header, 32, 8), number(&header, 54, 2), number(&header, 56, 2));
    for index in 0..count {
        const INTERPRETER: u64 = 3;
        let mut entry = [0; 56];
        let at = table.checked_add(index * size).ok_or_else(bad)?;
        file.read_exact_at(&mut entry, at).map_err(|_| bad())?;
        if number(&entry, 0, 4) == INTERPRETER {
            let (at, length) = (number(&entry, 8, 8), number(&entry, 32, 8));
            let mut path = vec![0; length.min(MAX_PATH) as usize];
            file.read_exact_at(&mut path, at).map_err(|_| bad())?;
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            return Ok(Path::new(OsStr::from_bytes(path)).to_owned());
        }
    }
    Err(bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_libraries_of_a_program_are_found() {
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        let report = b"\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1d)\n";
        let files = files(&shell, report).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, [LOADER, CRIU, "libc.so.6"]);
        assert!(files[0].path.exists() && files[1].path == shell);
        let error = super::files(&shell, b"\tlibx.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libx.so.1"), "{error}");
        assert!(loader_of(Path::new("/etc/passwd")).is_err());
    }
}

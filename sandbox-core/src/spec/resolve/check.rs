//! The checks that every section needs, each with the field's name in its
//! sentence.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// `{field}: {said}`
pub(super) fn refuse<T>(field: impl AsRef<str>, said: impl AsRef<str>) -> Result<T> {
    Err(Error::invalid(format!("{}: {}", field.as_ref(), said.as_ref())))
}

/// Strings that reach the kernel end at their first NUL byte: one inside
/// would make the kernel see something else than was checked.
pub(super) fn without_nul(field: impl Fn() -> String, value: &str) -> Result<&str> {
    if value.contains('\0') {
        return refuse(field(), "holds a NUL byte");
    }
    Ok(value)
}

/// A path as text. JSON brings nothing but UTF-8.
pub(super) fn text(field: impl Fn() -> String, path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => without_nul(field, text),
        None => refuse(field(), "is no UTF-8"),
    }
}

/// An absolute path, otherwise left as it is.
pub(super) fn absolute(field: impl Fn() -> String, path: &Path) -> Result<&Path> {
    let shown = text(&field, path)?;
    if !path.is_absolute() {
        return refuse(field(), format!("{shown:?} is not an absolute path"));
    }
    Ok(path)
}

/// An absolute path inside the container, with `.` and repeated slashes taken
/// out. `..` is refused: what it means depends on the image's symlinks, and
/// nobody who writes a mount point means that. Other symlinks are resolved
/// inside the root file system when the path is used.
pub(super) fn inside(field: impl Fn() -> String, path: &Path) -> Result<PathBuf> {
    let mut cleaned = PathBuf::from("/");
    for part in absolute(&field, path)?.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                return refuse(field(), format!("{path:?} holds \"..\"; write the path out"));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(cleaned)
}

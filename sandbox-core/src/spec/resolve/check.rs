//! Checks that all sections use. Each error names the field.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// Returns the error `{field}: {message}`.
pub(super) fn refuse<T>(field: impl AsRef<str>, message: impl AsRef<str>) -> Result<T> {
    Err(Error::invalid(format!("{}: {}", field.as_ref(), message.as_ref())))
}

/// Refuses NUL bytes. A string that reaches the kernel ends at its first NUL
/// byte, so the kernel would see another value than was checked.
pub(super) fn without_nul(field: impl Fn() -> String, value: &str) -> Result<&str> {
    if value.contains('\0') {
        return refuse(field(), "holds a NUL byte");
    }
    Ok(value)
}

/// Returns a path as text. Paths from JSON are always UTF-8.
pub(super) fn text(field: impl Fn() -> String, path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => without_nul(field, text),
        None => refuse(field(), "is no UTF-8"),
    }
}

/// Checks that a path is absolute and returns it unchanged.
pub(super) fn absolute(field: impl Fn() -> String, path: &Path) -> Result<&Path> {
    let shown = text(&field, path)?;
    if !path.is_absolute() {
        return refuse(field(), format!("{shown:?} is not an absolute path"));
    }
    Ok(path)
}

/// Returns an absolute path inside the container, without `.`, `..` and repeated
/// slashes. As in runc, a relative path begins at the root, and `..` takes away the name
/// before it, whatever the image has there: a symlink of the image cannot change which path
/// the checks of this module see. Symlinks of what is left are resolved inside the root
/// file system when the path is used.
pub(super) fn inside(field: impl Fn() -> String, path: &Path) -> Result<PathBuf> {
    let shown = text(&field, path)?;
    if shown.is_empty() {
        return refuse(field(), "is empty; expected a path inside the container");
    }
    if !path.is_absolute() {
        log::warn!("{}: {shown:?} is not an absolute path; it is taken from /", field());
    }
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(cleaned)
}

//! Containers that are saved, and brought back.

mod carried;
mod clients;
mod dump;
mod refusals;
mod restore;

use containerd_client::types::Descriptor;
use integration::checkpoint;
use integration::container::{self, Container, NewContainer};
use prost_types::Any;

/// Returns the options of a node that saves containers.
pub fn options() -> Any {
    container::options(&checkpoint::allowed(""), "")
}

/// Lets a container be saved and restored.
pub fn carrying(container: NewContainer<'_>) -> NewContainer<'_> {
    container.options(options())
}

/// Saves a container, which runs on.
#[track_caller]
pub fn checkpoint_of(container: &Container<'_>) -> Descriptor {
    let made = container.checkpoint_image(None);
    made.unwrap_or_else(|e| panic!("save {}: {}", container.id, e.message()))
}

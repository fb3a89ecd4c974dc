//! A flame graph: an SVG that a browser opens by itself, and in which it searches and zooms.

use anyhow::{Context, Result};
use inferno::flamegraph::{self, Options};

use super::{Measure, folded};
use crate::profile::Profile;

/// Returns the picture.
///
/// # Errors
/// Fails if the profile has no stack.
pub fn flame(
    profile: &Profile,
    measure: Measure,
    container: impl Fn(usize) -> String,
) -> Result<Vec<u8>> {
    let mut options = Options::default();
    options.title = measure.title.to_owned();
    options.count_name = "µs".to_owned();
    let text = folded(profile, container);
    let mut picture = Vec::new();
    flamegraph::from_lines(&mut options, text.lines(), &mut picture)
        .context("draw a flame graph: the profile has no stack")?;
    Ok(picture)
}

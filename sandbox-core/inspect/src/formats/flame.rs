//! A flame graph: an SVG that a browser opens by itself, and in which it searches and zooms.

use anyhow::{Context, Result};
use inferno::flamegraph::{self, Options};

use super::{Measure, Unit, folded};
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
    options.count_name = match measure.unit {
        Unit::Nanoseconds => "µs".to_owned(),
        Unit::Bytes => "bytes".to_owned(),
    };
    let text = folded(profile, measure, container);
    let mut picture = Vec::new();
    flamegraph::from_lines(&mut options, text.lines(), &mut picture)
        .context("draw a flame graph: the profile has no stack")?;
    Ok(picture)
}

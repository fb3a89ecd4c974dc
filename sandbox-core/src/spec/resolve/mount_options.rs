//! The options of one mount of a spec.

use super::check::{refuse, without_nul};
use crate::error::Result;
use crate::spec::mount_options::{AttributeChange, Idmap, Meaning, fs_option, meaning};
use crate::spec::plan::{FsOption, MountAttributes, Propagation};

/// Options, sorted by what they act on.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) attributes: MountAttributes,
    pub(super) propagation: Option<Propagation>,
    /// `bind` or `rbind`.
    pub(super) bind: bool,
    /// `rbind`
    pub(super) recursive_bind: bool,
    pub(super) idmap: Option<Idmap>,
    pub(super) copy_up: bool,
    /// The other options, which belong to the file system.
    pub(super) data: Vec<FsOption>,
    /// Options of a file system's super block that mount(8) has for all.
    pub(super) super_block: Vec<FsOption>,
}

/// Sorts the options of one mount. Later ones win over earlier ones.
pub(super) fn parse(field: &str, options: &[String]) -> Result<Options> {
    let mut parsed = Options::default();
    for (i, option) in options.iter().enumerate() {
        let field = || format!("{field}.options[{i}]");
        without_nul(field, option)?;
        match meaning(option) {
            Some(Meaning::Attributes(change)) => parsed.attributes.change(change),
            Some(Meaning::Propagation(propagation)) => parsed.propagation = Some(propagation),
            Some(Meaning::Bind { recursive }) => {
                parsed.bind = true;
                parsed.recursive_bind |= recursive;
            }
            Some(Meaning::Idmap(idmap)) => parsed.idmap = Some(idmap),
            Some(Meaning::CopyUp) => parsed.copy_up = true,
            Some(Meaning::SuperBlock) => parsed.super_block.push((option.clone(), None)),
            Some(Meaning::Nothing) => {}
            Some(Meaning::Refused(why)) => return refuse(field(), format!("{option:?}: {why}")),
            None => parsed.data.push(fs_option(option)),
        }
    }
    Ok(parsed)
}

impl MountAttributes {
    fn change(&mut self, change: AttributeChange) {
        if change.recursive {
            change.apply(&mut self.recursive_set, &mut self.recursive_clear);
        } else {
            change.apply(&mut self.set, &mut self.clear);
        }
    }
}

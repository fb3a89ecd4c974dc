//! `linux.intelRdt`: shares of caches and of the memory's bandwidth.

use oci_spec::runtime::Linux;

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::IntelRdt;

/// The directories of the file system that are no classes.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_data", "mon_groups"];

/// Resolves the field. `pause` is whether no process of the container will run.
pub(super) fn plan(linux: &Linux, id: &str, pause: bool) -> Result<Option<IntelRdt>> {
    let Some(rdt) = linux.intel_rdt() else { return Ok(None) };
    if pause {
        return refuse("linux.intelRdt", "no process would have it; expected in another container");
    }
    // Go programs write an absent string as an empty one.
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let class = given(rdt.clos_id());
    let name = class.as_deref().unwrap_or(id);
    let outside = name.contains(['/', '\n', '\0']) && name != "/";
    if outside || name.len() > 255 || RESERVED.contains(&name) {
        let field = if class.is_some() { "linux.intelRdt.closID" } else { "linux.intelRdt" };
        return refuse(field, format!("{name:?} cannot be a class's name"));
    }
    let mut schemata = Vec::new();
    let bandwidth = given(rdt.mem_bw_schema());
    if let Some(line) = &bandwidth
        && !line.starts_with("MB:")
    {
        return refuse(
            "linux.intelRdt.memBwSchema",
            format!("{line:?} does not start with \"MB:\""),
        );
    }
    let single = [("l3CacheSchema", given(rdt.l3_cache_schema())), ("memBwSchema", bandwidth)];
    let single = single.into_iter().filter_map(|(field, line)| Some((field, line?)));
    let more = rdt.schemata().iter().flatten().cloned().map(|line| ("schemata", line));
    for (field, line) in single.chain(more) {
        if line.contains(['\n', '\0']) {
            return refuse(
                format!("linux.intelRdt.{field}"),
                format!("{line:?} is more than a line"),
            );
        }
        schemata.push(line);
    }
    let monitoring = rdt.enable_monitoring().unwrap_or(false);
    Ok(Some(IntelRdt { class, schemata, monitoring }))
}

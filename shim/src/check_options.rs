//! `options`: reads the text of an options file from the standard input, and prints what
//! `palisade doctor` asks of it as JSON, or why the shim would refuse it.

use std::io::{Read, stdin};

use serde_json::json;

use crate::answer::print;
use crate::error::{Context, Result};
use crate::options::Options;

pub(crate) fn check_options() -> Result<()> {
    let mut text = String::new();
    stdin().read_to_string(&mut text).context(|| "read options from the standard input")?;
    let options = Options::parse(&text)?;
    let answer = json!({
        "userns": format!("{:?}", options.userns).to_lowercase(),
        "id_range_start": options.id_range_start,
        "id_range_size": options.id_range_size,
        "ids_per_sandbox": options.ids_per_sandbox,
        "cgroup_driver": format!("{:?}", options.cgroup_driver).to_lowercase(),
    });
    print("options", answer.to_string().as_bytes())
}

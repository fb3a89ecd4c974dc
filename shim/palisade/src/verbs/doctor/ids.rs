//! The host IDs for pods: how many pods fit, and who else uses them.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use sandbox_core::sandbox::Ranges;
use sandbox_core::types::IdPool;

use super::Finding;
use super::executables::Options;

/// The fewest pods that should still fit: a node's usual limit.
const FEW: u32 = 110;

/// Returns the pool of the options, or that of the defaults.
pub(super) fn pool(options: Option<&Options>) -> IdPool {
    options.map_or_else(IdPool::default, |options| IdPool {
        start: options.id_range_start,
        size: options.id_range_size,
        per_sandbox: options.ids_per_sandbox,
        rootless: None,
    })
}

/// Looks at the IDs.
pub(super) fn look(state_root: &Path, options: Option<&Options>) -> Vec<Finding> {
    let pool = pool(options);
    let mut findings = Vec::new();
    let taken = match Ranges::read(state_root, pool) {
        Ok(ranges) => {
            findings.push(room(&ranges));
            ranges.taken
        }
        Err(error) => {
            let why = "it is not known how many pods fit";
            findings.push(Finding::warning(
                "free ID ranges",
                error.to_string(),
                why,
                "run as root",
            ));
            Vec::new()
        }
    };
    findings.push(overlaps(pool, &taken));
    findings
}

fn room(ranges: &Ranges) -> Finding {
    let found = format!("{} of {} pods", ranges.free, ranges.sandboxes);
    let mend = "set a larger id_range_size in /etc/palisade/config.toml, or end some pods";
    match ranges.free {
        0 => Finding::fault("free ID ranges", found, "no further pod can be made", mend),
        1..FEW => Finding::warning("free ID ranges", found, "no pod can be made beyond them", mend),
        _ => Finding::ok("free ID ranges", found),
    }
}

fn overlaps(pool: IdPool, taken: &[u32]) -> Finding {
    let ids = u64::from(pool.start)..u64::from(pool.start) + u64::from(pool.size);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut users = BTreeSet::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        users.extend(in_subordinates(&read(file), &ids).map(|who| format!("{file}: {who}")));
    }
    for file in ["/etc/passwd", "/etc/group"] {
        users.extend(in_accounts(&read(file), &ids).map(|who| format!("{file}: {who}")));
    }
    users.extend(processes(pool, taken, &ids));
    let about = format!("host IDs {} to {}", ids.start, ids.end.saturating_sub(1));
    match users.is_empty() {
        true => Finding::ok(about, "used by nobody else"),
        false => Finding::warning(
            about,
            format!("also used by {}", users.into_iter().collect::<Vec<_>>().join("; ")),
            "a pod's processes could have the same user as somebody else's",
            "set id_range_start and id_range_size in /etc/palisade/config.toml to IDs of its own",
        ),
    }
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Reads subuid(5): `name:first:count`.
fn in_subordinates<'a>(text: &'a str, ids: &Range<u64>) -> impl Iterator<Item = String> + 'a {
    let ids = ids.clone();
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let (name, first) = (fields.next()?, fields.next()?.parse::<u64>().ok()?);
        let count: u64 = fields.next()?.trim().parse().ok()?;
        meet(&ids, &(first..first.saturating_add(count))).then(|| name.to_owned())
    })
}

/// Reads passwd(5) and group(5): the third field is the ID.
fn in_accounts<'a>(text: &'a str, ids: &Range<u64>) -> impl Iterator<Item = String> + 'a {
    let ids = ids.clone();
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse::<u64>().ok()?);
        ids.contains(&id).then(|| name.to_owned())
    })
}

/// Returns the processes, of systemd-nspawn for example, that map IDs of the pool and are of no
/// pod.
fn processes(pool: IdPool, taken: &[u32], ids: &Range<u64>) -> Vec<String> {
    let slice = |first: u64| u32::try_from((first - ids.start) / u64::from(IdPool::SLICE)).ok();
    let of_a_pod = |first: u64| {
        // The first slice has the IDs of sandbox processes; containers have the next ones.
        let number = slice(first).and_then(|slice| slice.checked_sub(1));
        number.is_none_or(|number| taken.contains(&number))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let map = fs::read_to_string(entry.path().join("uid_map")).unwrap_or_default();
        let foreign = |line: &str| {
            let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
            let (first, count) = (numbers.nth(1)?, numbers.next()?);
            // A namespace with all IDs is the host's, or like it.
            let some = count < u64::from(pool.size) && ids.contains(&first);
            (some && !of_a_pod(first)).then_some(())
        };
        if map.lines().any(|line| foreign(line).is_some()) && found.len() < 4 {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({})", comm.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn whoever_has_ids_of_the_pool_is_named() {
        let ids = 1000..2000;
        let text = "a:100:900\nb:100:901\nc:1999:1\nd:2000:5\ntorn\n";
        assert_eq!(in_subordinates(text, &ids).collect::<Vec<_>>(), ["b", "c"]);
        let text = "root:x:0:0\nlow:x:999:1\nin:x:1000:1\n";
        assert_eq!(in_accounts(text, &ids).collect::<Vec<_>>(), ["in"]);
    }

    #[test]
    fn few_ranges_are_a_warning_and_none_a_fault() {
        let of = |free| room(&Ranges { sandboxes: 500, free, ..Ranges::default() }).verdict;
        assert_eq!(
            (of(0), of(1), of(109), of(110)),
            (Verdict::Fault, Verdict::Warning, Verdict::Warning, Verdict::Ok)
        );
    }
}

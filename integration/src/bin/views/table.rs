//! The table: what each program sees under each setup, before and after an Update.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use integration::container::Container;
use integration::containerd::{Containerd, Version};
use integration::spec;
use integration::stdio::Streams;

use crate::programs::{Answer, PROGRAMS, Program};
use crate::setups::{Limits, Setup};

const BEFORE: Limits = Limits { millicpus: 500, bytes: 64 << 20 };
const AFTER: Limits = Limits { millicpus: 2000, bytes: 1 << 30 };

/// Prints the table, which `ci/views` puts into docs/views.md. What happens meanwhile goes to
/// standard error. Returns whether each program saw the limit under Palisade.
pub fn print(root: &Path, lxcfs: &Path) -> bool {
    let containerd = Containerd::start(Version::V2_1);
    let setups = Setup::all(lxcfs);
    let machine = Machine::this();
    let columns: Vec<Vec<Seen>> = thread::scope(|scope| {
        let columns = setups.each_ref().map(|setup| {
            let containerd = &containerd;
            scope.spawn(move || column(containerd, setup, root))
        });
        columns.into_iter().map(|column| column.join().expect("a column")).collect()
    });
    let versions = fs::read_to_string(root.join("opt/versions")).expect("the image's versions");
    println!(
        "Run on a machine with {} CPUs and {} of memory. Each container has {} CPU and {} at first, \
         and {} CPUs and {} after an Update.\n",
        machine.cpus,
        size(machine.memory),
        BEFORE.millicpus as f64 / 1000.0,
        size(BEFORE.bytes),
        AFTER.millicpus as f64 / 1000.0,
        size(AFTER.bytes),
    );
    println!("| program | version | {} |", setups.each_ref().map(Setup::title).join(" | "));
    println!("|---|---|{}", "---|".repeat(setups.len()));
    for (number, program) in PROGRAMS.iter().enumerate() {
        let version = version(&versions, program.package);
        let cells: Vec<String> =
            columns.iter().map(|column| cell(program, &column[number], &machine)).collect();
        println!("| {} | {version} | {} |", program.name, cells.join(" | "));
    }
    let said = |column: &[Seen]| {
        let programs = PROGRAMS.iter().zip(column);
        programs.filter(|(program, seen)| seen.is_limit(program, &machine)).count()
    };
    for (setup, column) in setups.iter().zip(&columns) {
        let (title, count) = (setup.title(), said(column));
        eprintln!("{title}: {count} of {} programs see the limit", PROGRAMS.len());
    }
    columns.last().is_some_and(|column| said(column) == PROGRAMS.len())
}

/// What a program printed before and after the Update: its answer, or how it failed.
struct Seen([Result<u64, String>; 2]);

impl Seen {
    /// Whether it was the limit both times.
    fn is_limit(&self, program: &Program, machine: &Machine) -> bool {
        let limits = [BEFORE, AFTER];
        self.0.iter().zip(limits).all(|(answer, limits)| {
            answer.as_ref().is_ok_and(|answer| is_limit(program.answer, *answer, limits, machine))
        })
    }
}

fn is_limit(kind: Answer, answer: u64, limits: Limits, machine: &Machine) -> bool {
    match kind {
        Answer::Cpus => answer == limits.cpus(machine.cpus),
        // A program may round, to a MiB.
        Answer::Memory(unit) => (answer * unit).abs_diff(limits.bytes) <= 1 << 20,
        Answer::Heap => answer <= limits.bytes,
        // A container runs for some minutes here, and a machine for longer.
        Answer::Seconds => answer < 600 && answer < machine.uptime,
    }
}

/// Runs all programs in one container.
fn column(containerd: &Containerd, setup: &Setup, root: &Path) -> Vec<Seen> {
    let scratch = containerd.directory().join(format!("scratch-{}", setup.word()));
    fs::create_dir(&scratch).expect("make a directory");
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o1777)).expect("chmod");
    let container = containerd.container(setup.word(), ["sleep", "infinity"]).root(root);
    let container = container.spec(|spec| {
        spec["root"]["readonly"] = true.into();
        spec["process"] = process(&["sleep", "infinity"]);
        let resources = BEFORE.resources();
        for controller in ["cpu", "memory"] {
            spec["linux"]["resources"][controller] = resources[controller].clone();
        }
    });
    let container = container.bind(&scratch.to_string_lossy(), "/tmp", &["rbind", "rw"]);
    let container = setup.apply(container).start();
    let before = answers(setup, &container, "before");
    container.update(&AFTER.resources()).expect("update the limits");
    let after = answers(setup, &container, "after");
    before.into_iter().zip(after).map(|(before, after)| Seen([before, after])).collect()
}

fn process(args: &[&str]) -> serde_json::Value {
    let mut process = spec::process(args);
    process["env"] =
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"].to_vec().into();
    process
}

fn answers(setup: &Setup, container: &Container<'_>, when: &str) -> Vec<Result<u64, String>> {
    let numbered = PROGRAMS.iter().enumerate();
    let asked = numbered.map(|(number, program)| {
        let answer = ask(container, &format!("{}-{when}-{number}", setup.word()), program);
        eprintln!("{} {when} the Update, {}: {answer:?}", setup.title(), program.name);
        answer
    });
    asked.collect()
}

fn ask(container: &Container<'_>, id: &str, program: &Program) -> Result<u64, String> {
    let exec = container.exec(id, process(&["sh", "-c", program.script]), Streams::Captured);
    let exec = exec.unwrap_or_else(|e| panic!("exec {id}: {}", e.message()));
    exec.start().unwrap_or_else(|e| panic!("start exec {id}: {}", e.message()));
    let exit = exec.wait();
    let output = exec.stdio().output();
    let last = output.lines().last().unwrap_or_default().trim();
    last.parse().map_err(|_| {
        format!("fails ({}): {} {}", exit.code, output.trim(), exec.stdio().errors().trim())
    })
}

/// Returns a cell: what was seen, and whether it is the limit.
fn cell(program: &Program, seen: &Seen, machine: &Machine) -> String {
    let shown = seen.0.each_ref().map(|answer| match answer {
        Ok(answer) => show(program.answer, *answer),
        Err(error) => error.replace(['|', '\n'], " "),
    });
    let said = if seen.is_limit(program, machine) { "the limit" } else { "**not the limit**" };
    match program.answer {
        // The numbers differ in each run.
        Answer::Seconds if seen.0.iter().all(Result::is_ok) => {
            let right = seen.is_limit(program, machine);
            if right { "the container's".to_owned() } else { "**not the container's**".to_owned() }
        }
        _ => format!("{}: {said}", shown.join(" → ")),
    }
}

fn show(kind: Answer, answer: u64) -> String {
    match kind {
        Answer::Cpus => answer.to_string(),
        Answer::Memory(unit) => size(answer * unit),
        Answer::Heap => size(answer),
        Answer::Seconds => format!("{answer} s"),
    }
}

fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    let (number, unit) =
        if mebibytes < 1000.0 { (mebibytes, "MiB") } else { (mebibytes / 1024.0, "GiB") };
    let rounded = (number * 10.0).round() / 10.0;
    format!("{rounded} {unit}")
}

fn version<'a>(versions: &'a str, package: &str) -> &'a str {
    let mut lines = versions.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == package).map_or("?", |(_, version)| version)
}

/// This machine.
struct Machine {
    cpus: u64,
    memory: u64,
    /// How long it runs, in seconds.
    uptime: u64,
}

impl Machine {
    fn this() -> Machine {
        let cpus = thread::available_parallelism().expect("count the CPUs").get();
        let meminfo = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
        let total = meminfo.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let uptime = fs::read_to_string("/proc/uptime").expect("read /proc/uptime");
        let uptime = uptime.split('.').next().and_then(|seconds| seconds.parse().ok());
        Machine {
            cpus: cpus as u64,
            memory: total.expect("MemTotal in kB") * 1024,
            uptime: uptime.expect("seconds"),
        }
    }
}

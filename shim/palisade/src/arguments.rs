//! The command line of `palisade`.

use std::path::PathBuf;

use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::verbs::{
    debug, doctor, events, exec, inspect, kill, list, logs, man, metrics, mounts, pause, ps, spans,
    state, top,
};
use crate::{node, select};

/// Looks into the pods of this node, measures them, and acts on them
///
/// A pod or a container is named by its ID, by the beginning of its ID, or by its name in
/// Kubernetes: NAME, NAMESPACE/POD or NAMESPACE/POD/CONTAINER.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, styles = Styles::styled(), max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Flags that every verb has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// How to print
    #[arg(long = "format", value_name = "FORMAT", global = true, value_enum, default_value_t = Named::Table)]
    pub(crate) named: Named,
    /// What that means to all verbs but profiles.
    #[arg(skip)]
    pub(crate) format: Format,
    /// Only pods of this namespace of containerd's, such as k8s.io or moby
    #[arg(long, short, global = true)]
    pub(crate) namespace: Option<String>,
    /// The directory of the state of all pods [default: /run/palisade, or below
    /// $XDG_RUNTIME_DIR for an ordinary user's]
    #[arg(long, global = true, env = "PALISADE_STATE", hide_env_values = true)]
    pub(crate) state: Option<PathBuf>,
}

/// What `--format` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Named {
    /// For people
    Table,
    /// For programs: one document, or one object a line for verbs that follow
    Json,
    /// Of profiles: one line a stack, for flamegraph.pl, inferno and speedscope
    Folded,
    /// Of profiles: profile.proto, compressed, for go tool pprof, Pyroscope, Parca and speedscope
    Pprof,
    /// Of profiles: a flame graph, which a browser opens by itself
    Svg,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Arguments {
    /// Reads the command line. Ends the program if it is wrong, or asks for help.
    pub(crate) fn read() -> Self {
        let mut arguments = Self::parse();
        let is_profile = matches!(&arguments.verb, Verb::Debug(verb) if verb.is_profile());
        arguments.common.format = match arguments.common.named {
            Named::Table => Format::Table,
            Named::Json => Format::Json,
            Named::Folded | Named::Pprof | Named::Svg if is_profile => Format::Table,
            Named::Folded | Named::Pprof | Named::Svg => Self::command()
                .error(
                    ErrorKind::InvalidValue,
                    "--format: expected table or json; the other forms are of profiles",
                )
                .exit(),
        };
        arguments
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Looks inside the processes of a pod
    #[command(subcommand)]
    Debug(debug::Debug),
    /// Says whether this machine can run Palisade and how well, and finds what dead pods have left
    Doctor(doctor::Doctor),
    /// Follows what happens in pods
    Events(events::Events),
    /// Runs a program in a container
    Exec(exec::Exec),
    /// Sends a signal to the first process of a container, or to all its processes
    Kill(kill::Kill),
    /// Stops all processes of a container
    Pause(pause::Pause),
    /// Lets the processes of a paused container go on
    Resume(pause::Pause),
    /// Prints how a container or a pod was planned, and where each option comes from
    Inspect(inspect::Inspect),
    /// Lists the pods and containers of this node
    List(list::List),
    /// Says where the output of a container is, and what Palisade logs of it
    Logs(logs::Logs),
    /// Lists the mounts of a container, with what is locked
    Mounts(mounts::Mounts),
    /// Lists the processes of a pod or a container
    Ps(ps::Ps),
    /// Prints the state of a container as OCI defines it, and of its pod
    State(state::State),
    /// Shows or exports how long requests of containerd took
    Spans(spans::Spans),
    /// Shows what pods and containers use, live
    Top(top::Top),
    /// Serves the metrics of all pods to Prometheus and others that read its format
    Metrics(metrics::Metrics),
    /// Writes the manual pages, for a package
    #[command(hide = true)]
    Man(man::Man),
    /// Reads a container's /etc/passwd and /etc/group for exec
    #[command(hide = true)]
    ReadUsers(exec::ReadUsers),
}

/// What names a pod or a container.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// A pod or a container: its ID, the beginning of it, or its name
    #[arg(value_name = "ID", add = ArgValueCompleter::new(names))]
    pub(crate) id: String,
}

/// Completes the name of a pod or a container.
pub(crate) fn names(current: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let node = node::Node::read(&node::state_root(None)).unwrap_or_default();
    let all = select::names(&node);
    all.into_iter().filter(|n| n.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATING: &str = include_str!("../../../docs/operating.md");

    /// Returns the commands of a document: lines of consoles that begin with `# palisade`, and
    /// what stands between backquotes and is more than the name of a verb.
    fn commands(document: &str) -> Vec<String> {
        let lines = document.lines().filter_map(|line| line.strip_prefix("# "));
        let more_than_a_name = |text: &&str| text.split_whitespace().count() > 2;
        let quoted = document.split('`').skip(1).step_by(2).filter(more_than_a_name);
        let ours = |text: &&str| {
            text.starts_with("palisade ") && !text.contains("VERB") && !text.contains('\n')
        };
        let before_others = |text: &str| text.split(['|', '&', '#', '>']).next().map(str::to_owned);
        lines.chain(quoted).filter(ours).filter_map(before_others).collect()
    }

    #[test]
    fn every_command_of_the_document_for_operators_is_one() {
        let all = commands(OPERATING);
        assert!(all.len() > 30, "{all:#?}");
        for command in &all {
            let words = command.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
            if let Err(error) = Arguments::try_parse_from(words) {
                panic!("{command}: {error}");
            }
        }
        for verb in Arguments::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let verb = verb.get_name();
            let is_it = |command: &String| command.split_whitespace().nth(1) == Some(verb);
            assert!(all.iter().any(is_it), "docs/operating.md has no palisade {verb}");
        }
    }
}

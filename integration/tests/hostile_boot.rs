//! A sandbox process that was taken over, under a real shim and a real
//! containerd: `integration/src/bin/hostile_boot.rs` in boot's place. It serves
//! the shim as boot does until it is asked for an exec, whose ID names an
//! attack.
//!
//! Whatever it does, the shim keeps running: it replies at once, ends the
//! container on request, and leaves nothing behind.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use containerd_client::tonic::Status;
use containerd_client::types::v1::Status as TaskStatus;
use integration::container::{Container, Exec, options};
use integration::containerd::{Containerd, Version};
use integration::host;
use integration::hostile::{Attack, NEVER_STARTS, lingering_socket};
use integration::stdio::Streams;
use integration::{sandbox, spec, wait};

/// The time that counts as "at once", on a machine that does other work too.
const AT_ONCE: Duration = Duration::from_secs(5);

fn containerd() -> Containerd {
    let program = Path::new(env!("CARGO_BIN_EXE_hostile_boot"));
    Containerd::start_with_boot(Version::V2_1, program)
}

/// A running container whose sandbox process was taken over.
struct Hostile<'a> {
    containerd: &'a Containerd,
    container: Container<'a>,
    shim: i32,
    boot: i32,
}

impl<'a> Hostile<'a> {
    fn new(containerd: &'a Containerd, id: Attack) -> Self {
        Self::of(containerd, containerd.container(&format!("in-{id}"), ["anything"]).start())
    }

    fn of(containerd: &'a Containerd, container: Container<'a>) -> Self {
        let shim = container.shim();
        let boot = sandbox::boot_of(shim).pid;
        Self { containerd, container, shim, boot }
    }

    fn exec(&self, attack: Attack, streams: Streams) -> Exec<'_> {
        let process = spec::process(&["anything"]);
        self.container.exec(attack.name(), process, streams).expect("add an exec")
    }

    /// Makes boot attack, and returns containerd's error for the exec, which is
    /// one sentence.
    fn exec_error(&self, attack: Attack, streams: Streams) -> String {
        let error = self.exec(attack, streams).start().map_err(sentence);
        self.assert_shim_replies(attack);
        error.expect_err(attack.name())
    }

    /// Makes boot attack beside an exec that runs, and ends the exec after a
    /// while.
    fn beside_running_exec(&self, attack: Attack, streams: Streams, meanwhile: impl FnOnce()) {
        let exec = self.exec(attack, streams);
        exec.start().map_err(sentence).unwrap_or_else(|e| panic!("{attack}: {e}"));
        self.assert_shim_replies(attack);
        wait_until_attacked(self.containerd, attack.name(), &self.container.id);
        meanwhile();
        exec.kill(9).expect("kill the exec");
        assert_eq!(exec.wait().code, 137, "{attack}");
    }

    /// Checks that the shim still runs and replies at once.
    fn assert_shim_replies(&self, attack: Attack) -> TaskStatus {
        let before = Instant::now();
        let status = self.container.status();
        assert!(before.elapsed() < AT_ONCE, "{attack}: {:?}", before.elapsed());
        let shim = host::process(self.shim).unwrap_or_else(|| panic!("{attack}: no shim"));
        assert!(shim.args[0].contains("containerd-shim"), "{attack}: {shim:?}");
        status
    }

    /// Checks that the shim has noticed the attack and killed the sandbox.
    /// Returns its error.
    fn assert_killed(&self, attack: Attack) -> String {
        self.assert_killed_with(attack, Streams::Null)
    }

    fn assert_killed_with(&self, attack: Attack, streams: Streams) -> String {
        let error = self.exec_error(attack, streams);
        self.assert_sandbox_ended(attack);
        error
    }

    fn assert_sandbox_ended(&self, attack: Attack) {
        assert_eq!(self.container.wait().code, 137, "{attack}");
        assert_eq!(self.assert_shim_replies(attack), TaskStatus::Stopped, "{attack}");
        assert!(host::process(self.boot).is_none(), "{attack}: boot lives");
        assert_eq!(self.container.delete_task().expect("delete"), 137, "{attack}");
    }

    /// Checks that Kill and Delete end the container, whatever the sandbox
    /// does.
    fn assert_can_be_ended(self, attack: Attack) {
        assert_eq!(self.assert_shim_replies(attack), TaskStatus::Running, "{attack}");
        self.container.kill(9).expect("kill it");
        self.assert_ends(attack);
    }

    /// Checks that the container that was killed ends, and its sandbox with it.
    fn assert_ends(self, attack: Attack) {
        assert_eq!(self.container.wait().code, 137, "{attack}");
        assert_eq!(self.container.delete_task().expect("delete"), 137, "{attack}");
        wait::until("boot is gone", || host::process(self.boot).is_none().then_some(()));
    }
}

/// Returns an error's message, which must be readable in a terminal.
fn sentence(error: Status) -> String {
    let message = error.message().to_owned();
    assert!(message.len() <= 5000, "{} bytes: {message}", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
    message
}

/// Waits until boot has logged that it attacks.
fn wait_until_attacked(containerd: &Containerd, attack: &str, id: &str) {
    let announced = format!("attacks by {attack}");
    wait::until(&announced, || {
        let log = containerd.log();
        log.lines().any(|line| line.contains(&announced) && line.contains(id)).then_some(())
    });
}

/// Starts an exec, to which there may never be a reply, beside other work.
fn start_beside(exec: Exec<'_>, scope: impl FnOnce(&Receiver<Result<(), String>>)) {
    std::thread::scope(|threads| {
        let (sender, reply) = mpsc::channel();
        threads.spawn(move || sender.send(exec.start().map_err(sentence)));
        scope(&reply);
    });
}

#[test]
fn a_boot_that_sends_no_valid_message_is_killed() {
    let containerd = containerd();
    let attacks = [
        (Attack::Garbage, "what is no message"),
        (Attack::Empty, "what is no message"),
        (Attack::EndlessString, "what is no message"),
        (Attack::NoTag, "gone"),
        (Attack::WrongTag, "begins with the byte 9"),
        (Attack::TooLong, "a packet of 65537 bytes, at most 65536"),
        (Attack::NoMemfd, "in place of a memfd"),
        (Attack::EndlessMemfd, "a memfd of 1099511627776 bytes"),
        (Attack::NeverStopsSending, "sends too many messages without a meaning"),
    ];
    for (attack, why) in attacks {
        let hostile = Hostile::new(&containerd, attack);
        match attack {
            // The reply may come before the shim notices.
            Attack::NeverStopsSending => {
                let _ = hostile.exec(attack, Streams::Null).start();
                hostile.assert_sandbox_ended(attack);
                assert!(containerd.log().contains(why), "{}", containerd.log());
            }
            _ => {
                let error = hostile.assert_killed(attack);
                assert!(error.contains(why), "{attack}: {error}");
            }
        }
    }
}

/// Descriptors can harm the shim: a pidfd of its own makes it signal itself,
/// and closing one may block it.
#[test]
fn only_descriptors_that_were_asked_for_are_taken() {
    let containerd = containerd();
    let attacks = [
        (Attack::TheShim, "not one of its processes"),
        (Attack::NoPidfd, "not one of its processes"),
        (Attack::AnotherPidfd, "not one of its processes"),
        (Attack::NoListener, "no seccomp listener"),
        (Attack::NoDescriptors, "0 descriptors with a message that takes 1"),
        (Attack::AnExitWithDescriptors, "1 descriptors with a message that takes 0"),
        (Attack::Hundreds, "250 descriptors, at most"),
    ];
    for (attack, why) in attacks {
        let error = Hostile::new(&containerd, attack).assert_killed(attack);
        assert!(error.contains(why), "{attack}: {error}");
    }
}

/// Closing such a socket blocks the process that closes it last.
#[test]
fn a_descriptor_that_is_slow_to_close_does_not_block_the_shim() {
    let (socket, other) = lingering_socket().expect("make a socket that lingers");
    let closing = std::thread::spawn(move || drop(socket));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!closing.is_finished(), "it does not linger");
    drop(other);
    closing.join().expect("close it");

    let containerd = containerd();
    for attack in [
        Attack::ASocketThatLingers,
        Attack::ATerminalThatLingers,
        Attack::AnExitThatLingers,
        Attack::HundredsThatLinger,
    ] {
        let error = Hostile::new(&containerd, attack).assert_killed(attack);
        assert!(error.contains("it was killed, since it sent"), "{attack}: {error}");
    }
    // The shim receives nothing on this channel.
    let attack = Attack::AMountsChannelThatLingers;
    let hostile = Hostile::new(&containerd, attack);
    hostile.beside_running_exec(attack, Streams::Null, || ());
    hostile.assert_can_be_ended(attack);
}

#[test]
fn a_terminal_is_the_master_side_of_one() {
    let containerd = containerd();
    for attack in [
        Attack::TerminalNull,
        Attack::TerminalFile,
        Attack::TerminalDirectory,
        Attack::TerminalPipe,
        Attack::TerminalSocket,
        Attack::TerminalPidfd,
        Attack::TerminalPath,
        Attack::TerminalSlave,
    ] {
        let hostile = Hostile::new(&containerd, attack);
        let error = hostile.assert_killed_with(attack, Streams::Terminal);
        assert!(error.contains("a descriptor that is no terminal"), "{attack}: {error}");
    }
}

/// boot still has the open file, and clears its non-blocking flag again and
/// again.
#[test]
fn a_terminal_that_blocks_does_not_block_the_shim() {
    let containerd = containerd();
    let attack = Attack::TerminalThatBlocks;
    let hostile = Hostile::new(&containerd, attack);
    hostile.beside_running_exec(attack, Streams::Terminal, || {
        wait::until("the shim stops copying the terminal", || {
            hostile.assert_shim_replies(attack);
            containerd.log().contains("it is copied no more").then_some(())
        });
    });
    hostile.assert_can_be_ended(attack);
}

#[test]
fn messages_about_other_processes_are_ignored() {
    let containerd = containerd();
    let attack = Attack::RepliesToNothing;
    let hostile = Hostile::new(&containerd, attack);
    hostile.beside_running_exec(attack, Streams::Null, || ());
    hostile.assert_can_be_ended(attack);
    for attack in [Attack::NoProcess, Attack::TwoReplies, Attack::ALongFailure] {
        let hostile = Hostile::new(&containerd, attack);
        let error = hostile.exec_error(attack, Streams::Null);
        assert!(
            error.contains("made no process") || error.starts_with("so[2J sorry so"),
            "{error}"
        );
        hostile.assert_can_be_ended(attack);
    }
    // boot may reply to an exec with itself: ending that process ends the sandbox.
    let attack = Attack::Itself;
    let hostile = Hostile::new(&containerd, attack);
    hostile.beside_running_exec(attack, Streams::Null, || ());
    hostile.assert_sandbox_ended(attack);
}

#[test]
fn a_boot_that_closes_its_channel_is_killed() {
    let containerd = containerd();
    for attack in [Attack::ClosesItsChannel, Attack::LongPanic] {
        let hostile = Hostile::new(&containerd, attack);
        let error = hostile.assert_killed(attack);
        assert!(error.contains("is gone"), "{attack}: {error}");
    }
}

/// The reply comes long before the shim doubts a boot that is only slow.
#[test]
fn a_boot_that_does_not_reply_cannot_keep_a_container_running() {
    let containerd = containerd();
    for attack in [Attack::NoReply, Attack::ReadsNothing] {
        let hostile = Hostile::new(&containerd, attack);
        start_beside(hostile.exec(attack, Streams::Null), |reply| {
            wait_until_attacked(&containerd, attack.name(), &hostile.container.id);
            hostile.container.kill(9).expect("kill it");
            assert_eq!(hostile.container.wait().code, 137, "{attack}");
            let error = reply.recv_timeout(AT_ONCE).expect("a reply").expect_err(attack.name());
            assert!(error.contains("ended before"), "{attack}: {error}");
        });
        assert_eq!(hostile.container.delete_task().expect("delete"), 137, "{attack}");
    }
}

#[test]
fn a_start_without_a_reply_ends_with_its_process() {
    let containerd = containerd();
    let container = containerd.container(NEVER_STARTS, ["anything"]).create();
    std::thread::scope(|threads| {
        let start = threads.spawn(|| container.start().map_err(sentence));
        wait_until_attacked(&containerd, NEVER_STARTS, &container.id);
        container.kill(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        let error = start.join().expect("no panic").expect_err("it never started");
        assert!(error.contains("ended before"), "{error}");
    });
    assert_eq!(container.delete_task().expect("delete"), 137);
}

/// Kill and Delete need no report of the exit.
#[test]
fn an_exit_that_is_not_reported_is_noticed() {
    let containerd = containerd();
    let attack = Attack::ReportsNoExits;
    let hostile = Hostile::new(&containerd, attack);
    hostile.beside_running_exec(attack, Streams::Null, || ());
    hostile.assert_can_be_ended(attack);
}

/// A container that shares boot's PID namespace does not end with its init: a Kill
/// of all its processes signals each.
#[test]
fn an_exit_that_is_not_reported_after_a_kill_of_all_is_noticed() {
    let containerd = containerd();
    let attack = Attack::ReportsNoExits;
    let shares_pids = |spec: &mut serde_json::Value| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    };
    let container = containerd.container("kill-all", ["anything"]).spec(shares_pids).start();
    let hostile = Hostile::of(&containerd, container);
    hostile.beside_running_exec(attack, Streams::Null, || ());
    hostile.container.kill_all(9).expect("kill all");
    hostile.assert_ends(attack);
}

/// The limit holds however fast boot writes, in whatever form.
#[test]
fn boot_cannot_fill_the_nodes_log() {
    let containerd = containerd();
    let notice = "the sandbox logs more than is relayed";
    for attack in [
        Attack::LogsLongLines,
        Attack::LogsOneLine,
        Attack::LogsShortLines,
        Attack::LogsMediumLines,
        Attack::LogsNothing,
        Attack::LogsEscapes,
    ] {
        let hostile = Hostile::new(&containerd, attack);
        let before = containerd.log().len();
        hostile.beside_running_exec(attack, Streams::Null, || {
            if ![Attack::LogsOneLine, Attack::LogsNothing].contains(&attack) {
                wait::until("the shim stops copying the log", || {
                    containerd.log()[before..].contains(notice).then_some(())
                });
            }
            // Half a second of this would be megabytes.
            let enough = Instant::now() + Duration::from_millis(500);
            while Instant::now() < enough {
                hostile.assert_shim_replies(attack);
            }
        });
        let log = containerd.log().split_off(before);
        assert!(log.len() < 100_000, "{attack}: {} bytes", log.len());
        assert!(!log.chars().any(|c| c.is_control() && c != '\n'), "{attack}");
        assert!(log.matches(notice).count() <= 1, "{attack}: {log}");
        hostile.assert_can_be_ended(attack);
    }
}

/// What boot writes into the user log is bounded, escaped, and counts for its own containers only.
#[test]
fn boot_cannot_write_what_it_likes_into_the_user_log() {
    let containerd = containerd();
    for attack in [Attack::WritesNoRecords, Attack::WritesACutRecord, Attack::WritesManyRecords] {
        let id = format!("in-{attack}");
        let container = containerd.container(&id, ["anything"]);
        let container = container.options(options("user_log = 'pod'", "")).start();
        let hostile = Hostile::of(&containerd, container);
        hostile.beside_running_exec(attack, Streams::Null, || {
            if attack == Attack::WritesNoRecords {
                wait::until("the shim reads no more", || {
                    containerd.log().contains("its user log ends here").then_some(())
                });
            }
            let before = host::cpu_time(hostile.shim);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                hostile.assert_shim_replies(attack);
                std::thread::sleep(Duration::from_millis(50));
            }
            let share = (host::cpu_time(hostile.shim) - before).div_duration_f64(begun.elapsed());
            assert!(share < 0.3, "{attack}: {share}");
        });
        assert_eq!(hostile.assert_shim_replies(attack), TaskStatus::Running, "{attack}");
        hostile.container.kill(9).expect("kill it");
        assert_eq!(hostile.container.wait().code, 137, "{attack}");
        assert_eq!(hostile.container.delete_task().expect("delete"), 137, "{attack}");
        wait::until("boot is gone", || host::process(hostile.boot).is_none().then_some(()));
        // boot kept the container's output open.
        let log = hostile.container.stdio().errors();
        assert!(log.lines().count() <= 12, "{attack}: {log}");
        assert!(!log.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{log:?}");
        let ours = |line: &str| line.contains(&format!(" palisade: container {id}: "));
        assert!(log.lines().all(ours), "{attack}: {log}");
        assert_eq!(log.is_empty(), attack != Attack::WritesManyRecords, "{attack}: {log}");
    }
}

#[test]
fn every_attack_is_made_by_a_test() {
    let this = include_str!("hostile_boot.rs");
    for attack in Attack::ALL {
        assert_eq!(attack.name().parse(), Ok(*attack));
        let (variant, ends) = (format!("Attack::{attack:?}"), [',', ';', ')', ' ', ']']);
        let used = this.split(&variant).skip(1).any(|rest| rest.starts_with(ends));
        assert!(used, "no test makes {attack}");
    }
    let unknown: Result<Attack, _> = "garbag".parse();
    assert!(unknown.is_err());
}

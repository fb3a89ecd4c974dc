//! A sandbox process that was taken over, under a real shim and a real
//! containerd: `integration/src/bin/hostile_boot.rs` in its place. It serves the
//! shim as an honest one does until it is asked for an exec, whose ID names an
//! attack.
//!
//! Whatever it does, the shim stays: it answers at once, it ends the container
//! when told to, and it leaves nothing behind.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use containerd_client::tonic::Status;
use containerd_client::types::v1::Status as TaskStatus;
use integration::container::{Container, Exec};
use integration::containerd::{Containerd, Version};
use integration::host;
use integration::hostile::{Attack, NEVER_STARTS, lingering_socket};
use integration::stdio::Streams;
use integration::{sandbox, spec, wait};

/// What a user takes for "at once", on a machine that does other things too.
const AT_ONCE: Duration = Duration::from_secs(5);

fn containerd() -> Containerd {
    let program = Path::new(env!("CARGO_BIN_EXE_hostile_boot"));
    Containerd::start_with_boot(Version::V2_1, program)
}

/// A running container, whose sandbox process was taken over.
struct Taken<'a> {
    containerd: &'a Containerd,
    container: Container<'a>,
    shim: i32,
    boot: i32,
}

impl<'a> Taken<'a> {
    fn new(containerd: &'a Containerd, id: Attack) -> Self {
        let container = containerd.container(&format!("in-{id}"), ["anything"]).start();
        let shim = container.shim();
        let boot = sandbox::boot_of(shim).pid;
        Self { containerd, container, shim, boot }
    }

    fn exec(&self, attack: Attack, streams: Streams) -> Exec<'_> {
        let process = spec::process(&["anything"]);
        self.container.exec(attack.name(), process, streams).expect("add an exec")
    }

    /// Has boot do it: what containerd says of the exec, which is one sentence.
    fn suffers(&self, attack: Attack, streams: Streams) -> String {
        let said = self.exec(attack, streams).start().map_err(sentence);
        self.is_served(attack);
        said.expect_err(attack.name())
    }

    /// Has boot do it beside an exec that runs, and is ended after a while.
    fn stands(&self, attack: Attack, streams: Streams, meanwhile: impl FnOnce()) {
        let exec = self.exec(attack, streams);
        exec.start().map_err(sentence).expect(attack.name());
        self.is_served(attack);
        wait_until_attacked(self.containerd, attack.name(), &self.container.id);
        meanwhile();
        exec.kill(9).expect("kill the exec");
        assert_eq!(exec.wait().code, 137, "{attack}");
    }

    /// The shim is the same, lives, and answers at once.
    fn is_served(&self, attack: Attack) -> TaskStatus {
        let before = Instant::now();
        let status = self.container.status();
        assert!(before.elapsed() < AT_ONCE, "{attack}: {:?}", before.elapsed());
        let shim = host::process(self.shim).unwrap_or_else(|| panic!("{attack}: no shim"));
        assert!(shim.args[0].contains("containerd-shim"), "{attack}: {shim:?}");
        status
    }

    /// The shim has noticed, and killed the sandbox. It says why.
    fn was_found_out(&self, attack: Attack) -> String {
        self.was_found_out_with(attack, Streams::Null)
    }

    fn was_found_out_with(&self, attack: Attack, streams: Streams) -> String {
        let said = self.suffers(attack, streams);
        self.is_over(attack);
        said
    }

    fn is_over(&self, attack: Attack) {
        assert_eq!(self.container.wait().code, 137, "{attack}");
        assert_eq!(self.is_served(attack), TaskStatus::Stopped, "{attack}");
        assert!(host::process(self.boot).is_none(), "{attack}: boot lives");
        assert_eq!(self.container.delete_task().expect("delete"), 137, "{attack}");
    }

    /// Kill and Delete end it, whatever the sandbox does.
    fn can_be_ended(self, attack: Attack) {
        assert_eq!(self.is_served(attack), TaskStatus::Running, "{attack}");
        self.container.kill(9).expect("kill it");
        assert_eq!(self.container.wait().code, 137, "{attack}");
        assert_eq!(self.container.delete_task().expect("delete"), 137, "{attack}");
        wait::until("boot is gone", || host::process(self.boot).is_none().then_some(()));
    }
}

/// An error's message, which a person must be able to read in a terminal.
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

/// A start that may never be answered.
fn start_beside(exec: Exec<'_>, scope: impl FnOnce(&Receiver<Result<(), String>>)) {
    std::thread::scope(|threads| {
        let (sender, answer) = mpsc::channel();
        threads.spawn(move || sender.send(exec.start().map_err(sentence)));
        scope(&answer);
    });
}

#[test]
fn what_is_no_message_is_the_end_of_the_sandbox() {
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
        (Attack::NeverStopsTalking, "never stops saying what means nothing"),
    ];
    for (attack, why) in attacks {
        let taken = Taken::new(&containerd, attack);
        match attack {
            // Its answer may come before that is noticed.
            Attack::NeverStopsTalking => {
                let _ = taken.exec(attack, Streams::Null).start();
                taken.is_over(attack);
                assert!(containerd.log().contains(why), "{}", containerd.log());
            }
            _ => {
                let said = taken.was_found_out(attack);
                assert!(said.contains(why), "{attack}: {said}");
            }
        }
    }
}

/// The shim can be hurt by descriptors: signalled by a pidfd of its own, and
/// held up by each that it closes.
#[test]
fn only_descriptors_that_were_asked_for_are_taken() {
    let containerd = containerd();
    let attacks = [
        (Attack::TheShim, "not one of its processes"),
        (Attack::NoPidfd, "not one of its processes"),
        (Attack::AnotherThanSaid, "not one of its processes"),
        (Attack::NoDescriptors, "0 descriptors with a message that takes 1"),
        (Attack::AnExitWithDescriptors, "1 descriptors with a message that takes 0"),
        (Attack::Hundreds, "250 descriptors, at most"),
    ];
    for (attack, why) in attacks {
        let said = Taken::new(&containerd, attack).was_found_out(attack);
        assert!(said.contains(why), "{attack}: {said}");
    }
}

/// A socket that lingers keeps whoever closes it last for as long as it says.
#[test]
fn a_descriptor_that_is_slow_to_close_holds_nobody_up() {
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
        let said = Taken::new(&containerd, attack).was_found_out(attack);
        assert!(said.contains("it was killed, since it sent"), "{attack}: {said}");
    }
    // Not received before the shim is done with it.
    let attack = Attack::AMountsChannelThatLingers;
    let taken = Taken::new(&containerd, attack);
    taken.stands(attack, Streams::Null, || ());
    taken.can_be_ended(attack);
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
        let taken = Taken::new(&containerd, attack);
        let said = taken.was_found_out_with(attack, Streams::Terminal);
        assert!(said.contains("a descriptor that is no terminal"), "{attack}: {said}");
    }
}

/// It still has the open file, and clears its non-blocking flag all the time.
#[test]
fn a_terminal_that_blocks_holds_nobody_up() {
    let containerd = containerd();
    let attack = Attack::TerminalThatBlocks;
    let taken = Taken::new(&containerd, attack);
    taken.stands(attack, Streams::Terminal, || {
        wait::until("the shim gives the terminal up", || {
            taken.is_served(attack);
            containerd.log().contains("it is copied no more").then_some(())
        });
    });
    taken.can_be_ended(attack);
}

#[test]
fn what_it_says_of_others_is_ignored() {
    let containerd = containerd();
    let attack = Attack::AnswersToNothing;
    let taken = Taken::new(&containerd, attack);
    taken.stands(attack, Streams::Null, || ());
    taken.can_be_ended(attack);
    for attack in [Attack::NoProcess, Attack::TwoAnswers, Attack::ALongFailure] {
        let taken = Taken::new(&containerd, attack);
        let said = taken.suffers(attack, Streams::Null);
        assert!(said.contains("made no process") || said.starts_with("so[2J sorry so"), "{said}");
        taken.can_be_ended(attack);
    }
    // The one that it may show for an exec: to end that ends the sandbox.
    let attack = Attack::Itself;
    let taken = Taken::new(&containerd, attack);
    taken.stands(attack, Streams::Null, || ());
    taken.is_over(attack);
}

#[test]
fn a_sandbox_that_hangs_up_does_not_live_on() {
    let containerd = containerd();
    for attack in [Attack::HangsUp, Attack::PanicsForLong] {
        let taken = Taken::new(&containerd, attack);
        let said = taken.was_found_out(attack);
        assert!(said.contains("is gone"), "{attack}: {said}");
    }
}

/// It takes part of the time that an honest one is given before it is doubted.
#[test]
fn silence_keeps_nobody_from_ending_a_container() {
    let containerd = containerd();
    for attack in [Attack::Silence, Attack::IsDeaf] {
        let taken = Taken::new(&containerd, attack);
        start_beside(taken.exec(attack, Streams::Null), |answer| {
            wait_until_attacked(&containerd, attack.name(), &taken.container.id);
            taken.container.kill(9).expect("kill it");
            assert_eq!(taken.container.wait().code, 137, "{attack}");
            let said = answer.recv_timeout(AT_ONCE).expect("an answer").expect_err(attack.name());
            assert!(said.contains("ended before"), "{attack}: {said}");
        });
        assert_eq!(taken.container.delete_task().expect("delete"), 137, "{attack}");
    }
}

#[test]
fn a_start_that_is_never_answered_ends_with_its_process() {
    let containerd = containerd();
    let container = containerd.container(NEVER_STARTS, ["anything"]).create();
    std::thread::scope(|threads| {
        let start = threads.spawn(|| container.start().map_err(sentence));
        wait_until_attacked(&containerd, NEVER_STARTS, &container.id);
        container.kill(9).expect("kill it");
        assert_eq!(container.wait().code, 137);
        let said = start.join().expect("no panic").expect_err("it never started");
        assert!(said.contains("ended before"), "{said}");
    });
    assert_eq!(container.delete_task().expect("delete"), 137);
}

/// Kill and Delete need no report of it.
#[test]
fn an_exit_that_is_not_reported_is_noticed() {
    let containerd = containerd();
    let attack = Attack::KeepsExitsToItself;
    let taken = Taken::new(&containerd, attack);
    taken.stands(attack, Streams::Null, || ());
    taken.can_be_ended(attack);
}

/// However fast boot writes, in whatever shape.
#[test]
fn its_log_does_not_fill_the_node_s() {
    let containerd = containerd();
    let told = "the sandbox says more than is relayed";
    for attack in [
        Attack::LogsLongLines,
        Attack::LogsOneLine,
        Attack::LogsShortLines,
        Attack::LogsMediumLines,
        Attack::LogsNothing,
        Attack::LogsEscapes,
    ] {
        let taken = Taken::new(&containerd, attack);
        let before = containerd.log().len();
        taken.stands(attack, Streams::Null, || {
            if ![Attack::LogsOneLine, Attack::LogsNothing].contains(&attack) {
                wait::until("the shim has had enough", || {
                    containerd.log()[before..].contains(told).then_some(())
                });
            }
            // Half a second of this would be megabytes.
            let enough = Instant::now() + Duration::from_millis(500);
            while Instant::now() < enough {
                taken.is_served(attack);
            }
        });
        let log = containerd.log().split_off(before);
        assert!(log.len() < 100_000, "{attack}: {} bytes", log.len());
        assert!(!log.chars().any(|c| c.is_control() && c != '\n'), "{attack}");
        assert!(log.matches(told).count() <= 1, "{attack}: {log}");
        taken.can_be_ended(attack);
    }
}

#[test]
fn every_attack_is_made_by_a_test() {
    let this = include_str!("hostile_boot.rs");
    for attack in Attack::ALL {
        assert_eq!(attack.name().parse(), Ok(*attack));
        let (variant, ends) = (format!("Attack::{attack:?}"), [',', ';', ')', ' ', ']']);
        let told = this.split(&variant).skip(1).any(|rest| rest.starts_with(ends));
        assert!(told, "no test makes {attack}");
    }
    let unknown: Result<Attack, _> = "garbag".parse();
    assert!(unknown.is_err());
}

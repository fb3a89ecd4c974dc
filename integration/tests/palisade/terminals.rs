//! Verbs at a terminal that is theirs, as a shell gives them one: keys, Ctrl-C and a change of the
//! window's size reach them from the terminal, and it is afterwards as it was before.

use std::process::{Child, Command, Stdio};

use integration::containerd::{Containerd, Version};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use rustix::termios::tcsetwinsize;

use crate::command;

/// A terminal, and the command whose it is.
pub struct Terminal {
    pty: OpenptyResult,
    before: Termios,
    child: Child,
    seen: String,
}

impl Terminal {
    /// Runs `palisade` at a new terminal of this size.
    pub fn run(rows: u16, columns: u16, args: &[&str]) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("make a terminal");
        let before = tcgetattr(&pty.slave).expect("its modes");
        let end = || Stdio::from(pty.slave.try_clone().expect("dup"));
        let mut setsid = Command::new("setsid");
        setsid.arg("--ctty").arg(command(&[]).get_program()).args(args);
        let child = setsid.stdin(end()).stdout(end()).stderr(end()).spawn().expect("run setsid");
        Self { pty, before, child, seen: String::new() }
    }

    pub fn type_in(&self, keys: &str) {
        nix::unistd::write(&self.pty.master, keys.as_bytes()).expect("type");
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.pty.master, size).expect("change the size");
    }

    /// Reads until something is shown that was not before. Returns what comes with it.
    #[track_caller]
    fn shows(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.seen.clear();
        while !wanted(&self.seen) {
            let mut bytes = [0; 4096];
            let length = nix::unistd::read(&self.pty.master, &mut bytes).expect("read");
            self.seen += &String::from_utf8_lossy(&bytes[..length]);
        }
        self.seen.clone()
    }

    /// Waits for the end, which must leave the terminal as it was.
    #[track_caller]
    pub fn ends_with(&mut self, code: i32) {
        assert_eq!(self.child.wait().expect("wait for palisade").code(), Some(code));
        let after = tcgetattr(&self.pty.slave).expect("its modes");
        assert_eq!(self.before, after);
    }
}

/// Returns the lines of the last whole screen that `top` drew.
fn screen(text: &str) -> Option<Vec<&str>> {
    let (before, _) = text.rsplit_once("q ends;")?;
    let (_, last) = before.rsplit_once("\x1b[H")?;
    Some(last.split("\x1b[K").map(str::trim_start).collect())
}

fn place(screen: &[&str], id: &str) -> Option<usize> {
    screen.iter().position(|line| line.starts_with(id))
}

#[test]
fn top_is_live_obeys_keys_and_leaves_the_terminal_as_it_was() {
    let containerd = Containerd::start(Version::V2_1);
    let namespace = containerd.namespace();
    let busy = containerd.shell("busy", "while :; do :; done").start();
    let many = "for n in 1 2 3 4 5; do sleep 1000 & done; wait";
    let many = containerd.shell("many", many).start();
    let idle = containerd.shell("idle", "exec sleep 1000").start();
    let args = ["--namespace", &namespace, "top", "--interval", "0.5"];
    for end in ["q", "\x03"] {
        let mut top = Terminal::run(30, 120, &args);
        let is_before = |first: &'static str, second: &'static str| {
            move |text: &str| {
                let Some(screen) = screen(text) else { return false };
                let (first, second) = (place(&screen, first), place(&screen, second));
                first.zip(second).is_some_and(|(first, second)| first < second)
            }
        };
        let text = top.shows(is_before("busy", "many"));
        assert!(text.contains("\x1b[?1049h"), "another screen: {text:?}");
        // Keys sort, and are not shown.
        top.type_in("p");
        top.shows(is_before("many", "busy"));
        top.type_in("c");
        let text = top.shows(is_before("busy", "many"));
        assert!(!text.contains("\x1b[?1049"), "{text:?}");
        // A window of five lines has three for the table: its head, and two of three lines.
        top.resize(5, 120);
        top.shows(|text| text.contains("1 more. q ends"));
        top.resize(30, 120);
        top.shows(|text| screen(text).is_some_and(|screen| place(&screen, "idle").is_some()));
        top.type_in(end);
        top.ends_with(0);
        let rest = top.shows(|text| text.ends_with("\x1b[?1049l"));
        assert!(rest.contains("\x1b[?25h"), "the cursor is back: {rest:?}");
    }
    drop((busy, many, idle));
}

/// The size of the terminal inside follows that of the command's.
#[test]
fn a_change_of_the_window_arrives_in_an_exec() {
    let containerd = Containerd::start(Version::V2_1);
    let container = containerd.shell("sized", "exec sleep 1000").start();
    let namespace = containerd.namespace();
    let script = "trap 'stty size' WINCH; stty size; while :; do read line && break; done; exit 4";
    let args = ["--namespace", &namespace, "exec", "-it", "sized", "sh", "-c", script];
    let mut exec = Terminal::run(20, 70, &args);
    exec.shows(|text| text.contains("20 70"));
    for (rows, columns) in [(33, 99), (12, 40)] {
        exec.resize(rows, columns);
        exec.shows(|text| text.contains(&format!("{rows} {columns}")));
    }
    exec.type_in("on\r");
    exec.ends_with(4);
    drop(container);
}

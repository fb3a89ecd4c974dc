//! The terminal while `palisade top` has it: another screen, and keys that come at once. Both are as
//! before when it is dropped.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use comfy_table::Table;
use rustix::termios::{LocalModes, OptionalActions, Termios};
use tokio::sync::mpsc;

/// The terminal.
pub(super) struct Screen {
    /// What its input was like. `None` if the input is no terminal.
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const FORMER_SCREEN: &str = "\x1b[?25h\x1b[?1049l";

impl Screen {
    /// Takes the terminal.
    pub(super) fn begin() -> Result<Self> {
        let input = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(input).ok();
        let (sender, keys) = mpsc::channel(8);
        if let Some(before) = &before {
            let mut raw = before.clone();
            // Not ISIG: Ctrl-C is a signal as ever.
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            rustix::termios::tcsetattr(input, OptionalActions::Now, &raw)
                .context("set the terminal's input")?;
            // It waits for the terminal until the process ends.
            std::thread::spawn(move || {
                let bytes = std::io::stdin().lock().bytes();
                bytes.map_while(Result::ok).all(|key| sender.blocking_send(key).is_ok())
            });
        }
        let screen = Self { before, keys };
        write(OTHER_SCREEN)?;
        Ok(screen)
    }

    /// Waits for a key. Without a terminal, there is never one.
    pub(super) async fn key(screen: &mut Option<Self>) -> u8 {
        if let Some(screen) = screen
            && let Some(key) = screen.keys.recv().await
        {
            return key;
        }
        std::future::pending().await
    }

    /// Draws a table in the place of the last one, as much as there is room for.
    pub(super) fn draw(&mut self, table: &Table, lines: usize) -> Result<()> {
        let rows = rustix::termios::tcgetwinsize(rustix::stdio::stdout())
            .map_or(24, |size| usize::from(size.ws_row))
            .max(3);
        let mut text = String::from("\x1b[H");
        for line in table.lines().take(rows - 2) {
            text += line.trim_end();
            text += "\x1b[K\r\n";
        }
        let hidden = (lines + 1).saturating_sub(rows - 2);
        let more = if hidden > 0 { format!("{hidden} more. ") } else { String::new() };
        text += &format!("\x1b[J{more}q ends; c, m, p, b, n sort");
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(FORMER_SCREEN);
        if let Some(before) = &self.before {
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("write to the terminal")
}

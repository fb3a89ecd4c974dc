//! This command's terminal.

use std::io::{IsTerminal, stdin};

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Refuses an input that is no terminal for a program that gets one: at its end, which a terminal does
/// not pass on, the program would wait for ever.
pub(super) fn check(is_wanted: bool) -> Result<()> {
    if is_wanted && !stdin().is_terminal() {
        bail!(
            "-i -t: the input of this command is not a terminal; leave -t out to pass a file or a \
             pipe on"
        );
    }
    Ok(())
}

/// This command's terminal in raw mode: each key goes to the program. Set back on drop.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// Sets the terminal of the standard input. `None` if it is none.
    pub(super) fn of_stdin() -> Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("tcgetattr of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("set the terminal to raw mode")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Returns the columns and rows of the terminal of the standard input, if it is one.
pub(super) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

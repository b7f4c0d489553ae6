//! Standard error where it is a terminal: progress bars at its end, and lines that go above them.
//!
//! Bars and log lines are written by different threads to one place; a line that does not wait for the bars to make room
//! tears them. So all bars are drawn here, and the log is written through [`Lines`]. Where standard error is no
//! terminal, no bar is drawn.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::LazyLock;

static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// A bar on standard error, which draws nothing unless that is a terminal.
pub(crate) fn bar(label: impl Into<Cow<'static, str>>, total: u64, template: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()));
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(label);
    bar
}

/// Takes all bars away, before the last words of a process.
pub(crate) fn clear() {
    // A terminal that can not be written has nothing to clear.
    let _ = BARS.clear();
}

/// Writes lines above the bars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines;

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(lines))?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

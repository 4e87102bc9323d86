//! What a long command tells while it runs, on stderr: a line for each stage, and on a terminal a bar for what takes time.
//!
//! Owns the look of it. Must not decide anything.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::seams::Clock;

/// Tells stages.
pub(super) struct Say {
    clock: Arc<dyn Clock>,
    began: Duration,
    terminal: bool,
}

impl Say {
    /// Begins now.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { began: clock.monotonic(), clock, terminal: std::io::stderr().is_terminal() }
    }

    /// Time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.began)
    }

    /// Tells that a stage is reached.
    pub(super) fn stage(&self, text: impl AsRef<str>) {
        // With stderr closed there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "{:>6.1} s  {}", self.elapsed().as_secs_f64(), text.as_ref());
    }

    /// A bar over so many bytes, with rate and estimate.
    pub(super) fn bytes(&self, what: &'static str, total: u64) -> ProgressBar {
        self.bar(what, total, "          {msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
    }

    /// A bar over so many transactions.
    pub(super) fn transactions(&self, what: &'static str, total: usize) -> ProgressBar {
        self.bar(what, total as u64, "          {msg} {wide_bar} {pos}/{len}")
    }

    /// A bar over so much of something, whose message says what happens.
    pub(super) fn told(&self, what: &'static str, total: u64) -> ProgressBar {
        self.bar(what, total, "          {msg} {wide_bar}")
    }

    fn bar(&self, what: &'static str, total: u64, template: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        // A template that does not read leaves the usual look.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style).with_message(what)
    }
}

//! Progress of long work on a terminal: bytes, rate, estimate. Nothing when stderr is no terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Below this many bytes a bar would only flicker.
const WORTH_SHOWING: u64 = 4 * 1024 * 1024;

/// A bar for `bytes` (if known) of `what`; hidden when it is short work or nobody looks.
pub(super) fn bytes(what: &str, bytes: Option<u64>) -> ProgressBar {
    let seen = std::io::stderr().is_terminal() && bytes.is_none_or(|bytes| bytes >= WORTH_SHOWING);
    let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(bytes, target).with_message(what.to_owned());
    let template = match bytes {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A line that says how far something has come, in words; hidden when nobody looks.
pub(super) fn state() -> ProgressBar {
    let seen = std::io::stderr().is_terminal();
    let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    match ProgressStyle::with_template("{wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

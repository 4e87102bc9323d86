//! Signals that ask a command to end: Ctrl-C, SIGTERM, SIGHUP. For commands that must clean up behind them.
//!
//! Owns listening. Must not decide what follows.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, Exit};

/// Catches signals from when it is made on.
pub(super) struct Signals(Vec<(Signal, &'static str)>);

impl Signals {
    /// Begins to listen. Must be called within a runtime.
    pub(super) fn listen() -> Result<Self, CliError> {
        let mut signals = Self::but_hangup()?;
        signals.0.extend(Self::of([(SignalKind::hangup(), "SIGHUP")])?.0);
        Ok(signals)
    }

    /// The same, where SIGHUP does not ask to end.
    pub(super) fn but_hangup() -> Result<Self, CliError> {
        Self::of([(SignalKind::interrupt(), "Ctrl-C"), (SignalKind::terminate(), "SIGTERM")])
    }

    fn of<const N: usize>(kinds: [(SignalKind, &'static str); N]) -> Result<Self, CliError> {
        let listen = |(kind, name)| signal(kind).map(|signal| (signal, name));
        let signals = kinds.into_iter().map(listen).collect::<Result<_, _>>();
        signals.map(Self).map_err(|error| CliError::new(Exit::Failed, error))
    }

    /// The name of the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        let waits = self.0.iter_mut().map(|(signal, name)| {
            Box::pin(async move {
                // A stream of signals that ended gives none any more.
                if signal.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                *name
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}

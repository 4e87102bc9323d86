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
        let kinds = [
            (SignalKind::interrupt(), "Ctrl-C"),
            (SignalKind::terminate(), "SIGTERM"),
            (SignalKind::hangup(), "SIGHUP"),
        ];
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

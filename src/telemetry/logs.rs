//! What is written to stderr: pretty for people, JSON for machines. stdout is for data and never touched.
//!
//! `SEALCAST_LOG` filters, in the syntax of `tracing-subscriber`: `debug`, or `sealcast::node=debug,info`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::core::id::{ParcelId, TransactionId};

/// The environment variable that filters.
pub const FILTER_VARIABLE: &str = "SEALCAST_LOG";

/// What is written when nothing is said: our own events from info on, libraries' from warnings on. openraft warns at every
/// heartbeat of a peer that does not answer; our own events say that once.
const DEFAULT_FILTER: &str = "warn,openraft=error,sealcast=info";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One line of text each, coloured on a terminal.
    #[default]
    Pretty,
    /// One JSON object each.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = LogError;
    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format { given: other.chars().take(64).collect() }),
        }
    }
}

/// Why logs cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("{FILTER_VARIABLE}: {cause}; write a level (error, warn, info, debug, trace) or MODULE=LEVEL,...")]
    Filter {
        /// What is wrong with it.
        cause: String,
    },
    /// No such format.
    #[error("log format {given:?}: write pretty or json")]
    Format {
        /// What was given, cut to 64 characters.
        given: String,
    },
    /// The process already writes logs: an application that embeds Sealcast set up its own, which then has these events.
    #[error("logs are set up already in this process")]
    Taken,
}

impl LogError {
    /// Whether trying again can help: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Sets up the process's logs. `filter` is the value of [`FILTER_VARIABLE`], when set; an empty one counts as not set.
/// Errors: [`LogError`].
pub fn install(format: LogFormat, filter: Option<&str>) -> Result<(), LogError> {
    let filter = parse(filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Pretty => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init(),
    }
    .map_err(|_| LogError::Taken)
}

fn parse(filter: Option<&str>) -> Result<EnvFilter, LogError> {
    let filter = filter.filter(|text| !text.trim().is_empty()).unwrap_or(DEFAULT_FILTER);
    EnvFilter::builder().parse(filter).map_err(|error| LogError::Filter { cause: error.to_string() })
}

/// A span about one parcel: `parcel` is what ties the lines of client, brokers' side and nodes together. `step` is one
/// of the verbs: seal, split, publish, collect, gather, recover, open, stage, commit, hold.
pub fn parcel_span(step: &'static str, parcel: ParcelId) -> tracing::Span {
    tracing::info_span!("parcel", step, %parcel, transaction = tracing::field::Empty)
}

/// A span about one transaction, in its parcel where that is known.
pub fn transaction_span(step: &'static str, parcel: Option<ParcelId>, transaction: TransactionId) -> tracing::Span {
    let span = tracing::info_span!("transaction", step, parcel = tracing::field::Empty, %transaction);
    if let Some(parcel) = parcel {
        span.record("parcel", tracing::field::display(parcel));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_and_an_empty_one_is_none() {
        assert_eq!(parse(Some(" ")).unwrap().to_string(), parse(None).unwrap().to_string());
        assert!(parse(Some("sealcast::node=debug,info")).is_ok());
        let error = parse(Some("sealcast=loud")).unwrap_err();
        assert!(error.to_string().starts_with("SEALCAST_LOG: "), "{error}");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("pretty".parse(), Ok(LogFormat::Pretty));
        assert!("xml".parse::<LogFormat>().is_err());
    }
}

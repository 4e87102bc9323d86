//! Where metrics are kept until somebody asks for them as Prometheus text. One for the process: the nodes and clients in
//! it differ by their labels.

use std::sync::{Mutex, PoisonError};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::names;

/// Upper bounds of histograms of seconds: from one millisecond, below which nothing durable happens, to a minute.
const SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

/// Upper bounds of histograms of counts.
const COUNTS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Why metrics cannot be kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecorderError {
    /// The process has another recorder of the `metrics` crate: an application that embeds Sealcast installed its own,
    /// which then has these metrics too.
    #[error("another metrics recorder is installed in this process")]
    Taken,
    /// The exporter refused its settings.
    #[error("the metrics exporter refuses its settings: {cause}")]
    Settings {
        /// What it said.
        cause: String,
    },
}

impl RecorderError {
    /// Whether trying again can help: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Reads what was recorded. Cheap to clone.
#[derive(Clone)]
pub struct Recorded(PrometheusHandle);

impl Recorded {
    /// All metrics as Prometheus text, version 0.0.4.
    pub fn text(&self) -> String {
        self.0.render()
    }

    /// Sorts samples into their buckets. Must be called every few seconds: until then each sample of a histogram takes
    /// memory. [`Recorded::text`] does it too.
    pub fn tidy(&self) {
        self.0.run_upkeep();
    }
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorded")
    }
}

static INSTALLED: Mutex<Option<Recorded>> = Mutex::new(None);

/// Installs the process's recorder, or gives the one that an earlier call installed. Errors: [`RecorderError`].
pub fn install() -> Result<Recorded, RecorderError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(recorded) = installed.as_ref() {
        return Ok(recorded.clone());
    }
    let settings =
        |error: metrics_exporter_prometheus::BuildError| RecorderError::Settings { cause: error.to_string() };
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets(&COUNTS))
        .map_err(settings)?
        .build_recorder();
    let recorded = Recorded(recorder.handle());
    metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Taken)?;
    names::describe();
    *installed = Some(recorded.clone());
    Ok(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::NodeName;
    use crate::telemetry::Meter;

    #[test]
    fn two_nodes_of_one_process_have_series_of_their_own() {
        let recorded = install().unwrap();
        let again = install().unwrap();
        for (node, by) in [("recorder-a", 2), ("recorder-b", 3)] {
            let meter = Meter::node(&NodeName::new(node).unwrap());
            meter.count(names::RPC_CALLS, by);
            meter.took(names::STORE_COMMIT_SECONDS, std::time::Duration::from_millis(3));
        }
        recorded.tidy();
        let text = again.text();
        assert!(text.contains("sealcast_rpc_calls_total{node=\"recorder-a\"} 2"), "{text}");
        assert!(text.contains("sealcast_rpc_calls_total{node=\"recorder-b\"} 3"), "{text}");
        assert!(text.contains("# HELP sealcast_rpc_calls_total"), "{text}");
        assert!(text.contains("sealcast_store_commit_seconds_bucket{node=\"recorder-a\",le=\"0.005\"} 1"), "{text}");
    }
}

//! Writes metrics with the labels of who measures. Several nodes and clients live in one process, so nothing is written
//! without saying whose it is.

use metrics::{Key, Label, Level, Metadata, SharedString};

use super::names::{CounterName, GaugeName, HistogramName};
use crate::core::id::{DestinationName, NodeName, ReaderName, SenderName};

const METADATA: Metadata<'static> = Metadata::new("sealcast", Level::INFO, None);

/// Whose metrics these are. Cheap enough to clone for each task; a hot path keeps the handles that [`Meter::counter`],
/// [`Meter::gauge`] and [`Meter::histogram`] give. Without an installed recorder everything is dropped.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    labels: Vec<Label>,
}

impl Meter {
    /// The metrics of a node: label `node`.
    pub fn node(name: &NodeName) -> Self {
        Self::default().with("node", name.to_string())
    }

    /// The metrics of a sender's client: label `sender`.
    pub fn sender(name: &SenderName) -> Self {
        Self::default().with("sender", name.to_string())
    }

    /// The metrics of a reader: label `reader`.
    pub fn reader(name: &ReaderName) -> Self {
        Self::default().with("reader", name.to_string())
    }

    /// The same, about one destination: label `destination`.
    pub fn destination(&self, name: &DestinationName) -> Self {
        self.with("destination", name.to_string())
    }

    /// The same with one more label. Values must come from a small closed set: each makes a series of its own.
    pub fn with(&self, label: &'static str, value: impl Into<SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(label, value));
        Self { labels }
    }

    fn key(&self, name: &'static str) -> Key {
        Key::from_parts(name, self.labels.clone())
    }

    /// Adds to a counter.
    pub fn count(&self, name: CounterName, by: u64) {
        self.counter(name).increment(by);
    }

    /// Adds one to a counter, with one more label.
    pub fn count_as(&self, name: CounterName, label: &'static str, value: impl Into<SharedString>) {
        self.with(label, value).count(name, 1);
    }

    /// Sets a gauge.
    pub fn set(&self, name: GaugeName, to: f64) {
        self.gauge(name).set(to);
    }

    /// Adds a duration to a histogram of seconds.
    pub fn took(&self, name: HistogramName, duration: std::time::Duration) {
        self.histogram(name).record(duration.as_secs_f64());
    }

    /// Adds a value to a histogram.
    pub fn observe(&self, name: HistogramName, value: f64) {
        self.histogram(name).record(value);
    }

    /// A counter to keep.
    pub fn counter(&self, name: CounterName) -> metrics::Counter {
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(name.name()), &METADATA))
    }

    /// A gauge to keep.
    pub fn gauge(&self, name: GaugeName) -> metrics::Gauge {
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(name.name()), &METADATA))
    }

    /// A histogram to keep.
    pub fn histogram(&self, name: HistogramName) -> metrics::Histogram {
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(name.name()), &METADATA))
    }
}

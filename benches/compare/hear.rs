//! Hears what nodes say when they have opened a transaction: their own event in `sealcast::node::stage`, as any operator sees it
//! in a log at level debug, with this process's clock.
//!
//! Must not slow them down: every other event is off, unless SEALCAST_LOG asks for it.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::Failure;
use crate::flights::Flights;

const NODES: [&str; 3] = ["a", "b", "c"];

struct Hear(Arc<Flights>);

#[derive(Default)]
struct Said {
    node: String,
    transaction: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let to = match field.name() {
            "node" => &mut self.node,
            "transaction" => &mut self.transaction,
            _ => return,
        };
        // Writing to a string cannot fail.
        let _ = write!(to, "{value:?}");
    }
}

impl<S: Subscriber> Layer<S> for Hear {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if let Some(reader) = NODES.iter().position(|node| *node == said.node) {
            self.0.opened(&said.transaction, reader);
        }
    }
}

fn is_opening(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
        && *metadata.level() == Level::DEBUG
        && metadata.target() == "sealcast::node::stage"
        && metadata.fields().field("transaction").is_some()
}

/// Listens from now on, for as long as the process runs.
pub fn listen(flights: Arc<Flights>) -> Result<(), Failure> {
    let shown = std::env::var(sealcast::telemetry::logs::FILTER_VARIABLE).unwrap_or_else(|_| "off".to_owned());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(EnvFilter::try_new(shown)?);
    tracing_subscriber::registry().with(Hear(flights).with_filter(filter_fn(is_opening))).with(lines).try_init()?;
    Ok(())
}

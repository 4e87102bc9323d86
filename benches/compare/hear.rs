//! Hears what nodes say when they have opened a transaction: their own event in `sealcast::node::stage`, as any operator sees it
//! in a log at level debug, with this process's clock. With `--stages` also what clients and nodes say on the way to committed.
//!
//! Must not slow them down: every other event is off, unless SEALCAST_LOG asks for it.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::Failure;
use crate::flights::Flights;
use crate::stages::{Said as Step, Stages};

/// The nodes' names, one of each reader; with fewer readers the first.
pub const NODES: [&str; 3] = ["a", "b", "c"];

struct Hear(Arc<Flights>);

#[derive(Default)]
struct Said {
    message: String,
    node: String,
    parcel: String,
    transaction: String,
    read_us: u64,
}

impl Visit for Said {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "read_us" {
            self.read_us = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let to = match field.name() {
            "message" => &mut self.message,
            "node" => &mut self.node,
            "parcel" => &mut self.parcel,
            "transaction" => &mut self.transaction,
            _ => return,
        };
        // Writing to a string cannot fail.
        let _ = write!(to, "{value:?}");
    }
}

impl Said {
    fn reader(&self) -> Option<usize> {
        NODES.iter().position(|node| *node == self.node)
    }
}

impl<S: Subscriber> Layer<S> for Hear {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if let Some(reader) = said.reader() {
            self.0.opened(&said.transaction, reader);
        }
    }
}

fn is_opening(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
        && *metadata.level() == Level::DEBUG
        && metadata.target().starts_with("sealcast::node::stage")
        && metadata.fields().field("transaction").is_some()
}

/// Hears every step.
struct Steps(Arc<Stages>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Steps {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(said);
        }
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(said) = span.extensions_mut().get_mut::<Said>()
        {
            values.record(said);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(about) = span.extensions().get::<Said>() {
                let fill = |own: &mut String, of: &String| {
                    if own.is_empty() {
                        own.clone_from(of);
                    }
                };
                fill(&mut said.parcel, &about.parcel);
                fill(&mut said.transaction, &about.transaction);
            }
        }
        let node = said.reader();
        let Said { message, parcel, transaction, read_us, .. } = said;
        self.0.hear(Step { message, parcel, transaction, node, read_us });
    }
}

fn is_step(metadata: &Metadata<'_>) -> bool {
    let of = ["client", "transport::publisher", "node::collect", "node::stage", "node::propose", "node::hold"];
    // Spans are made by a function of the telemetry.
    metadata.is_span() && metadata.target().starts_with("sealcast")
        || metadata.target().strip_prefix("sealcast::").is_some_and(|target| of.iter().any(|of| target.starts_with(of)))
}

/// Listens from now on, for as long as the process runs.
pub fn listen(flights: Arc<Flights>, stages: Option<Arc<Stages>>) -> Result<(), Failure> {
    let shown = std::env::var(sealcast::telemetry::logs::FILTER_VARIABLE).unwrap_or_else(|_| "off".to_owned());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(EnvFilter::try_new(shown)?);
    let hear = Hear(flights).with_filter(filter_fn(is_opening));
    // Not an empty layer where nobody asked for the steps: with one, every span and event of every library is made.
    let mut layers = vec![hear.boxed(), lines.boxed()];
    layers.extend(stages.map(|stages| Steps(stages).with_filter(filter_fn(is_step)).boxed()));
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(())
}

//! Where the time of a transaction goes: the moments of its way to *delivered* and *committed*, from what clients and nodes
//! themselves say in their logs at levels debug and trace (`--stages`).
//!
//! Owns these moments. Must not measure anything that the arms are compared by: writing so much down costs time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::figures::rows::Row;
use crate::figures::stats::{Spread, quantile};
use crate::figures::words::{Arm, Condition};

/// Nodes that are heard.
const NODES: usize = crate::hear::NODES.len();

/// The moments, in the order in which they are shown; those of nodes count once for each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The application called `submit`.
    Called,
    /// A thread begins to seal.
    Sealing,
    /// Sealed, split, signed, and in the outbox.
    Kept,
    /// The first segment was handed to the Kafka client.
    HandedOver,
    /// The first acknowledgement of a segment.
    FirstAcknowledged,
    /// The last acknowledgement of a segment.
    Acknowledged,
    /// A node has the first segment from the broker.
    FirstRead,
    /// A node has the last segment that it needs.
    Read,
    /// It has verified it.
    Verified,
    /// The last stripe is recovered.
    Whole,
    /// Opened: authenticated to its last byte.
    Opened,
    /// Durable on a node.
    Staged,
    /// The leader writes it into the log.
    Proposed,
    /// A node has applied the entry.
    Decided,
    /// The sender has verified a receipt of the first node.
    FirstReceipt,
    /// Of a majority.
    Committed,
}

impl Moment {
    const ALL: [Self; 16] = [
        Self::Called,
        Self::Sealing,
        Self::Kept,
        Self::HandedOver,
        Self::FirstAcknowledged,
        Self::Acknowledged,
        Self::FirstRead,
        Self::Read,
        Self::Verified,
        Self::Whole,
        Self::Opened,
        Self::Staged,
        Self::Proposed,
        Self::Decided,
        Self::FirstReceipt,
        Self::Committed,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Called => "until submit is called",
            Self::Sealing => "until a thread begins to seal",
            Self::Kept => "until sealed, split and in the outbox",
            Self::HandedOver => "until the first segment is handed over",
            Self::FirstAcknowledged => "until the first segment is acknowledged",
            Self::Acknowledged => "until the last segment is acknowledged",
            Self::FirstRead => "until a node has the first segment",
            Self::Read => "until a node has the last that it needs",
            Self::Verified => "until that is verified",
            Self::Whole => "until the last stripe is recovered",
            Self::Opened => "until all is opened",
            Self::Staged => "until it is durable on a node",
            Self::Proposed => "until the leader proposes it",
            Self::Decided => "until a node has its fate",
            Self::FirstReceipt => "until a receipt came back",
            Self::Committed => "until a majority's came back",
        }
    }
}

#[derive(Default)]
struct Way {
    client: BTreeMap<Moment, Instant>,
    nodes: [BTreeMap<Moment, Instant>; NODES],
}

#[derive(Default)]
struct All {
    /// By parcel.
    ways: BTreeMap<String, Way>,
    /// By transaction.
    parcels: BTreeMap<String, String>,
    /// By transaction: when it was due, when it was sent, its bytes.
    due: BTreeMap<String, (Instant, Instant, u64)>,
}

/// What was said so far.
#[derive(Default)]
pub struct Stages(Mutex<All>);

/// One event of a client or a node.
#[derive(Debug, Default)]
pub struct Said {
    /// Its text.
    pub message: String,
    /// The parcel that it is about, from itself or its span.
    pub parcel: String,
    /// The transaction.
    pub transaction: String,
    /// Which node said it.
    pub node: Option<usize>,
    /// Microseconds since the record that it is about was read.
    pub read_us: u64,
}

impl Stages {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction is submitted now.
    pub fn submits(&self, transaction: String, due: Instant, bytes: u64) {
        self.lock().due.insert(transaction, (due, Instant::now(), bytes));
    }

    /// Takes what somebody said.
    pub fn hear(&self, said: Said) {
        let now = Instant::now();
        let mut all = self.lock();
        if said.message == "submitted" {
            all.parcels.insert(said.transaction, said.parcel);
            return;
        }
        let parcel = match said.parcel.is_empty() {
            true => all.parcels.get(&said.transaction).cloned().unwrap_or_default(),
            false => said.parcel,
        };
        let way = all.ways.entry(parcel).or_default();
        let mut first = |moment| {
            way.client.entry(moment).or_insert(now);
        };
        let of_node = |way: &mut Way, node: usize, moment| {
            if let Some(of) = way.nodes.get_mut(node) {
                of.entry(moment).or_insert(now);
            }
        };
        match (said.message.as_str(), said.node) {
            ("sealing" | "sealing as it is read", _) => first(Moment::Sealing),
            ("durable in the outbox", _) => first(Moment::Kept),
            ("a segment is handed over", _) => first(Moment::HandedOver),
            ("proposed", _) => first(Moment::Proposed),
            ("a receipt is genuine", _) => first(Moment::FirstReceipt),
            ("a majority signed its fate", _) => first(Moment::Committed),
            ("a segment is acknowledged", _) => {
                first(Moment::FirstAcknowledged);
                way.client.insert(Moment::Acknowledged, now);
            }
            ("a segment is genuine", Some(node)) => {
                if let Some(of) = way.nodes.get_mut(node).filter(|of| !of.contains_key(&Moment::Opened)) {
                    let read = now.checked_sub(Duration::from_micros(said.read_us)).unwrap_or(now);
                    of.entry(Moment::FirstRead).or_insert(read);
                    // What comes after the last stripe was whole is not needed: see below.
                    of.insert(Moment::Read, read);
                    of.insert(Moment::Verified, now);
                }
            }
            ("a stripe is whole", Some(node)) => {
                if let Some(of) = way.nodes.get_mut(node) {
                    of.insert(Moment::Whole, now);
                }
            }
            ("opened: whole and genuine", Some(node)) => of_node(way, node, Moment::Opened),
            ("staged: durable here", Some(node)) => of_node(way, node, Moment::Staged),
            ("decided", Some(node)) => of_node(way, node, Moment::Decided),
            _ => {}
        }
    }

    /// The median of each moment, since a transaction was due, and forgets all that was heard.
    pub fn rows(&self) -> Vec<Row> {
        let all = std::mem::take(&mut *self.lock());
        let mut times: BTreeMap<(u64, Moment), Vec<f64>> = BTreeMap::new();
        for (transaction, (due, called, bytes)) in &all.due {
            let Some(way) = all.parcels.get(transaction).and_then(|parcel| all.ways.get(parcel)) else { continue };
            let mut add = |moment: Moment, at: Instant| {
                let time = at.saturating_duration_since(*due).as_secs_f64() * 1e3;
                times.entry((*bytes, moment)).or_default().push(time);
            };
            add(Moment::Called, *called);
            let nodes = way.nodes.iter().flatten();
            way.client.iter().chain(nodes).for_each(|(moment, at)| add(*moment, *at));
        }
        let mut rows = Vec::new();
        let sizes: Vec<u64> =
            times.keys().map(|(bytes, _)| *bytes).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        for bytes in sizes {
            for moment in Moment::ALL {
                let Some(of) = times.get(&(bytes, moment)) else { continue };
                let at = |q| quantile(of, q).unwrap_or_default();
                let spread = Spread { value: at(0.5), least: at(0.1), most: at(0.9) };
                rows.push(Row::new(moment.words(), Arm::Memory, Condition::AllWell, bytes, spread));
            }
        }
        rows
    }
}

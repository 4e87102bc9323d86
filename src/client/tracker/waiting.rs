//! Who waits for what: handles of submitted transactions, and tickets that somebody attached to. Must not move anything on.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::super::error::ClientError;
use super::super::handle::{Ended, Handle, Progress};
use super::Tracker;
use crate::core::id::{DestinationName, ParcelId, PayloadTag, Ticket, Time, TransactionId};
use crate::store::outbox::{Outcome, TransactionRow};

/// A ticket of which more is to be said.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Since when it stands as it does, by this machine's clock: submitted, or known to be committed.
    pub since: Time,
    /// Whether it is committed, and voters are lacking.
    pub decided: bool,
    /// The payload tag, where it is known here.
    pub tag: Option<PayloadTag>,
}

/// A ticket about which receipts matter.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The parcel that its transaction travels in, or did; `None` for tickets of other processes.
    pub parcel: Option<ParcelId>,
    /// The payload tag that receipts must name it by; `None` for tickets of other processes.
    pub tag: Option<PayloadTag>,
}

/// A transaction that is in the outbox already.
pub struct Known {
    tag: PayloadTag,
    bytes: u64,
    handles: Vec<Handle>,
}

impl Known {
    /// The handles of the first time, for the same payload. Errors: [`Known::other`].
    pub fn same(self, bytes: u64, tag: PayloadTag) -> Result<Vec<Handle>, ClientError> {
        if self.has_length(bytes) && self.tag == tag { Ok(self.handles) } else { Err(Self::other()) }
    }

    /// What whoever submits another payload under its id is told.
    pub fn other() -> ClientError {
        let problem = "another payload was submitted under it: give this one an id of its own".to_owned();
        ClientError::Transaction { field: "id", problem }
    }

    /// Whether a payload of this length can be the same.
    pub fn has_length(&self, bytes: u64) -> bool {
        self.bytes == bytes
    }
}

impl Tracker {
    pub(super) fn handle_of(
        &self,
        row: &TransactionRow,
        destination: &DestinationName,
        progress: watch::Receiver<Progress>,
    ) -> Handle {
        let (ticket, clock) = (row.ticket(destination), self.clock.clone());
        Handle { ticket, submitted: row.submitted, payload_bytes: Some(row.payload_bytes), progress, clock }
    }

    /// What a transaction that is submitted again must be compared with while it is in the outbox (R6); `None` when it is not
    /// there. Errors: [`ClientError::Transaction`] when it was submitted without one of these destinations.
    pub fn known(&self, id: TransactionId, destinations: &[DestinationName]) -> Option<Result<Known, ClientError>> {
        let state = self.state();
        let tracked = state.transactions.get(&id)?;
        let mut handles = Vec::new();
        for name in destinations {
            let Some(way) = tracked.ways.get(name) else {
                let problem = format!("it was submitted without {name} before: give it an id of its own there");
                return Some(Err(ClientError::Transaction { field: "id", problem }));
            };
            handles.push(self.handle_of(&tracked.row, name, way.subscribe()));
        }
        Some(Ok(Known { tag: tracked.row.payload_tag, bytes: tracked.row.payload_bytes, handles }))
    }

    /// A handle for a ticket that this outbox knows. One of the same id with another deadline is another ticket: the id was
    /// submitted again.
    pub fn attach(&self, ticket: &Ticket) -> Option<Handle> {
        let state = self.state();
        let tracked = state.tracked(ticket)?;
        let way = tracked.ways.get(&ticket.destination)?;
        Some(self.handle_of(&tracked.row, &ticket.destination, way.subscribe()))
    }

    /// Handles of everything in this outbox about which more is to be known, in the order of the transactions' ids.
    pub fn open_handles(&self) -> Vec<Handle> {
        let state = self.state();
        let ways = state.transactions.values().flat_map(|tracked| tracked.ways.iter().map(move |way| (tracked, way)));
        let open = ways.filter(|(_, (_, way))| !way.borrow().outcome.done());
        open.map(|(tracked, (name, way))| self.handle_of(&tracked.row, name, way.subscribe())).collect()
    }

    /// A handle for a ticket that this outbox does not know: receipts alone tell. True when nobody waited for it before.
    pub fn attach_other(&self, ticket: &Ticket) -> (Handle, bool) {
        let mut state = self.state();
        let (mut new, closed) = (false, state.closed);
        let way = state.others.entry(ticket.clone()).or_insert_with(|| {
            new = true;
            let mut progress = Progress::new(Outcome::Submitted);
            progress.ended = closed.then_some(Ended::Closed);
            watch::Sender::new(progress)
        });
        let listener = way.subscribe();
        let (ticket, clock) = (ticket.clone(), self.clock.clone());
        let submitted = ticket.transaction.time();
        (Handle { ticket, submitted, payload_bytes: None, progress: listener, clock }, new)
    }

    /// What is known of a ticket while receipts about it still matter: it is in the outbox, or somebody attached to it.
    pub fn wanted(&self, ticket: &Ticket) -> Option<Wanted> {
        let state = self.state();
        let tracked = state.tracked(ticket);
        let kept = tracked.and_then(|tracked| {
            tracked.row.outcomes.iter().find(|at| at.destination == ticket.destination).map(|at| at.outcome)
        });
        let attached = state.others.get(ticket).map(|way| way.borrow().outcome);
        [kept, attached].into_iter().flatten().any(|outcome| !outcome.done()).then(|| Wanted {
            parcel: state.transactions.get(&ticket.transaction).map(|tracked| tracked.row.parcel),
            tag: tracked.map(|tracked| tracked.row.payload_tag),
        })
    }

    /// Tickets of which more is to be said: those without a fate, and those that are committed and not complete while
    /// somebody here has a handle to wait with.
    pub fn open_tickets(&self) -> BTreeMap<Ticket, Open> {
        let state = self.state();
        let mut open = BTreeMap::new();
        for tracked in state.transactions.values() {
            for at in &tracked.row.outcomes {
                let heard = || tracked.ways.get(&at.destination).is_some_and(|way| way.receiver_count() > 0);
                let decided = at.outcome.decided();
                if at.outcome.done() || (decided && !heard()) {
                    continue;
                }
                let since = if decided { at.since } else { tracked.row.submitted };
                let known = Open { since, decided, tag: Some(tracked.row.payload_tag) };
                open.insert(tracked.row.ticket(&at.destination), known);
            }
        }
        for (ticket, way) in &state.others {
            let decided = way.borrow().outcome.decided();
            if way.borrow().outcome.done() || (decided && way.receiver_count() == 0) {
                continue;
            }
            open.insert(ticket.clone(), Open { since: ticket.transaction.time(), decided, tag: None });
        }
        open
    }
}

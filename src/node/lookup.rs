//! What reads wait for, and what became of a transaction (R23).
//!
//! Owns freshness and the states of transactions. Must not open what is sealed, nor decide who may read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use super::group::{GroupContext, Served};
use super::peer::unavailable;
use crate::core::decide::{Decision, Row, Standing, View, Wait, standing};
use crate::core::id::{Fate, Position, SenderName, Ticket, Time, TransactionId};
use crate::raft::Group;
use crate::rpc::client::{Dialer, explain};
use crate::rpc::{convert, proto};
use crate::store::StoreError;
use crate::store::group::{Snapshot, StagedRow};

/// How long a read waits when it does not say, and at most.
const TIMEOUT: Duration = Duration::from_millis(5000);
const TIMEOUT_MOST: Duration = Duration::from_millis(60_000);
/// How soon a linearizable read asks for the leader's word again.
const CONFIRM_AGAIN: Duration = Duration::from_millis(50);

/// What a read waits for, checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fresh {
    linearizable: bool,
    at_least: Option<Position>,
    /// Longest wait.
    pub timeout: Duration,
}

impl Fresh {
    /// Errors: INVALID_ARGUMENT for an unknown consistency or too long a wait.
    pub fn of(message: Option<proto::Freshness>) -> Result<Self, Status> {
        let message = message.unwrap_or_default();
        let consistency = proto::Consistency::try_from(message.consistency);
        let consistency = consistency.map_err(|_| Status::invalid_argument("Freshness.consistency is unknown"))?;
        let timeout = match message.timeout_ms {
            0 => TIMEOUT,
            given => Duration::from_millis(given.into()),
        };
        if timeout > TIMEOUT_MOST {
            return Err(Status::invalid_argument("Freshness.timeout_ms is above 60,000"));
        }
        Ok(Self {
            linearizable: consistency == proto::Consistency::Linearizable,
            at_least: message.at_least.map(Into::into),
            timeout,
        })
    }

    /// Waits until a destination is as fresh as asked for. Errors: UNAVAILABLE when that takes too long.
    pub async fn wait(&self, served: &Served) -> Result<(), Status> {
        let clock = &served.context.seams.clock;
        // Why the leader's word is not there yet.
        let unconfirmed = Mutex::new(None);
        let waiting = async {
            if self.linearizable {
                let index = confirmed(served, &unconfirmed).await?;
                let mut progress = served.context.store.progress();
                let stopping = |_| Status::unavailable("this node is stopping");
                progress.wait_for(|progress| progress.applied >= index).await.map_err(stopping)?;
                let last =
                    served.context.store.snapshot().and_then(|found| found.last_position()).map_err(unavailable)?;
                hold(served, last).await?;
            }
            match self.at_least {
                Some(position) => hold(served, position).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            outcome = waiting => outcome,
            () = clock.sleep(self.timeout) => {
                let why = unconfirmed.into_inner().unwrap_or_else(PoisonError::into_inner);
                Err(Status::unavailable(format!(
                    "{}: {} after {} ms; try again or ask another node",
                    served.context.destination,
                    why.unwrap_or_else(|| {
                        format!("this node's held prefix ends at {}", served.context.store.progress().borrow().held)
                    }),
                    self.timeout.as_millis()
                )))
            }
        }
    }
}

/// [`read_index`], asked for again while there is no leader, or the one that is known does not answer: elections take a moment.
/// Errors: UNAVAILABLE when this node is stopping.
async fn confirmed(served: &Served, unconfirmed: &Mutex<Option<String>>) -> Result<u64, Status> {
    let context = &served.context;
    let mut leadership = served.group.leadership();
    loop {
        leadership.mark_unchanged();
        let status = match read_index(context, &served.group, &served.dialer).await {
            Ok(index) => {
                *unconfirmed.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Ok(index);
            }
            Err(status) => status,
        };
        *unconfirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.message().to_owned());
        tokio::select! {
            () = context.seams.clock.sleep(CONFIRM_AGAIN) => {}
            Ok(()) = leadership.changed() => {}
            () = context.stop.cancelled() => return Err(status),
        }
    }
}

/// The log index that holds everything committed until now, confirmed by a majority: the leader's, asked over the network
/// when that is another node. Errors: UNAVAILABLE.
pub async fn read_index(context: &GroupContext, group: &Group, dialer: &Dialer) -> Result<u64, Status> {
    let leadership = group.leadership().borrow().clone();
    let unconfirmed = |why: &str| Status::unavailable(format!("no majority confirms what is committed: {why}"));
    match leadership.leader {
        _ if leadership.own => group.read_index().await.map_err(|error| unconfirmed(&error.to_string())),
        None => Err(unconfirmed("no leader is known")),
        Some(leader) => {
            let mut peer = dialer.peer(&leader).map_err(|error| unconfirmed(&error.to_string()))?;
            let request = proto::ReadIndexRequest { group: Bytes::copy_from_slice(&context.tag.0) };
            let answer = dialer.within(TIMEOUT, peer.read_index(request)).await;
            let answer = answer.map_err(|status| unconfirmed(&explain(&status)))?.into_inner();
            answer.index.ok_or_else(|| unconfirmed(&format!("{leader} does not lead any more")))
        }
    }
}

/// Waits until the held prefix reaches a position.
pub async fn hold(served: &Served, position: Position) -> Result<(), Status> {
    let mut progress = served.context.store.progress();
    let reached = progress.wait_for(|progress| progress.held >= position).await;
    reached.map(drop).map_err(|_| Status::unavailable("this node is stopping"))
}

/// What is asked for by `Status`.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Ids that begin so; 16 bytes are one id. The number counts half bytes.
    Beginning(Vec<u8>, usize),
    /// One ticket.
    Ticket(Ticket),
}

impl Asked {
    /// Errors: INVALID_ARGUMENT.
    pub fn of(message: Option<proto::status_request::Of>) -> Result<Self, Status> {
        use proto::status_request::Of;
        match convert::required(message, "StatusRequest.of")? {
            Of::Transaction(id) => {
                Ok(Self::Beginning(convert::transaction(&id, "StatusRequest.transaction")?.to_bytes().to_vec(), 32))
            }
            Of::Ticket(ticket) => Ok(Self::Ticket(Ticket::try_from(&ticket)?)),
            Of::Prefix(text) => {
                let digits: String = text.chars().filter(|&one| one != '-').collect();
                let hex = |one: char| one.is_ascii_digit() || ('a'..='f').contains(&one);
                if !(8..=32).contains(&digits.len()) || !digits.chars().all(hex) {
                    let text = "StatusRequest.prefix: 8 to 32 lower-case hexadecimal digits, with or without hyphens";
                    return Err(Status::invalid_argument(text));
                }
                let whole = digits.get(..digits.len() & !1).unwrap_or_default();
                let mut bytes = data_encoding::HEXLOWER.decode(whole.as_bytes()).unwrap_or_default();
                let half = digits.get(whole.len()..).and_then(|half| u8::from_str_radix(half, 16).ok());
                bytes.extend(half.map(|half| half << 4));
                Ok(Self::Beginning(bytes, digits.len()))
            }
        }
    }

    fn matches(&self, id: &TransactionId) -> bool {
        match self {
            Self::Ticket(ticket) => ticket.transaction == *id,
            Self::Beginning(bytes, halves) => {
                let id = id.to_bytes();
                let whole = halves / 2;
                let last = |bytes: &[u8]| bytes.get(whole).map(|byte| byte >> 4);
                id.get(..whole) == bytes.get(..whole) && (halves % 2 == 0 || last(&id) == last(bytes))
            }
        }
    }

    fn whole_bytes(&self) -> Vec<u8> {
        match self {
            Self::Ticket(ticket) => ticket.transaction.to_bytes().to_vec(),
            Self::Beginning(bytes, halves) => bytes.iter().copied().take(halves / 2).collect(),
        }
    }
}

/// Staged parcels that are looked through for a status.
const PAGE: usize = 256;

/// What became of the transactions asked for, in one destination; at most `most`. Errors: UNAVAILABLE.
pub fn statuses(served: &Served, asked: &Asked, most: usize) -> Result<Vec<proto::TransactionStatus>, Status> {
    let snapshot = served.context.store.snapshot().map_err(unavailable)?;
    let mut found = Vec::new();
    for row in snapshot.rows_beginning(&asked.whole_bytes(), most.saturating_mul(2)).map_err(unavailable)? {
        if asked.matches(&row.transaction) && found.len() < most {
            found.push(of_row(served, &snapshot, &row, asked).map_err(unavailable)?);
        }
    }
    let mut after = None;
    while found.len() < most {
        let page = snapshot.staged_after(after.as_ref(), PAGE).map_err(unavailable)?;
        let Some(last) = page.last() else { break };
        after = Some(last.manifest.digest);
        for staged in page {
            for at in 0..staged.manifest.items.len() {
                if found.len() < most
                    && staged.manifest.items.get(at).is_some_and(|item| asked.matches(&item.transaction))
                    && let Some(status) = of_staged(served, &snapshot, &staged, at).map_err(unavailable)?
                {
                    found.push(status);
                }
            }
        }
    }
    if let (Asked::Ticket(ticket), true) = (asked, found.is_empty()) {
        let state = match standing(None, ticket.deadline, None, snapshot.group_time(), retention(&snapshot)) {
            Standing::Expired => proto::State::Expired,
            Standing::Forgotten => proto::State::Forgotten,
            _ => proto::State::NotFound,
        };
        found.push(proto::TransactionStatus { ticket: Some(ticket.into()), state: state.into(), ..Default::default() });
    }
    Ok(found)
}

fn retention(snapshot: &Snapshot) -> Duration {
    let entry = snapshot.directory().and_then(|directory| directory.destinations.get(View::destination(snapshot)));
    entry.map_or(Duration::MAX, |entry| entry.retention)
}

/// The status of a decided transaction.
pub fn of_row(
    served: &Served,
    snapshot: &Snapshot,
    row: &Row,
    asked: &Asked,
) -> Result<proto::TransactionStatus, StoreError> {
    let deadline = match asked {
        Asked::Ticket(ticket) => ticket.deadline,
        Asked::Beginning(..) => row.deadline,
    };
    let held = snapshot.has_body(&row.digest, row.index)?;
    let standing = standing(Some(row), deadline, None, snapshot.group_time(), retention(snapshot));
    let (fate, position) = match standing {
        Standing::Decided(decision, position) => (decision.fate(), position),
        _ => (Fate::Expired, Position::default()),
    };
    let (state, rejection) = convert::state_of(fate);
    let waiting = (row.is_committed() && !held).then(|| proto::Waiting {
        reason: proto::WaitingFor::Body.into(),
        text: "this node fetches its bytes from another".to_owned(),
        nodes: vec![served.context.node.to_string()],
        predecessor: None,
    });
    let ticket = Ticket { destination: served.context.destination.clone(), transaction: row.transaction, deadline };
    Ok(proto::TransactionStatus {
        ticket: Some((&ticket).into()),
        sender: row.sender.to_string(),
        state: state.into(),
        position: Some(position.into()),
        rejection: rejection.into(),
        parcel: Some(Bytes::copy_from_slice(&row.parcel.to_bytes())),
        digest: Some(Bytes::copy_from_slice(&row.digest.0)),
        payload_bytes: Some(row.payload_bytes),
        held: held && row.is_committed(),
        staged_ms: None,
        decided_ms: Some(row.decided.0),
        waiting: waiting.into_iter().collect(),
        first_transaction: match row.decision {
            Decision::Duplicate(first) => Some(Bytes::copy_from_slice(&first.transaction.to_bytes())),
            _ => None,
        },
    })
}

fn of_staged(
    served: &Served,
    snapshot: &Snapshot,
    staged: &StagedRow,
    at: usize,
) -> Result<Option<proto::TransactionStatus>, StoreError> {
    let manifest = &staged.manifest;
    let Some(item) = manifest.items.get(at) else { return Ok(None) };
    if snapshot.transaction(&manifest.sender, item.transaction)?.is_some() {
        return Ok(None);
    }
    let ticket = Ticket {
        destination: served.context.destination.clone(),
        transaction: item.transaction,
        deadline: item.deadline,
    };
    let expired = crate::core::decide::expired(snapshot.group_time(), item.deadline);
    let state = if expired { proto::State::Expired } else { proto::State::Staged };
    Ok(Some(proto::TransactionStatus {
        ticket: Some((&ticket).into()),
        sender: manifest.sender.to_string(),
        state: state.into(),
        parcel: Some(Bytes::copy_from_slice(&manifest.parcel.to_bytes())),
        digest: Some(Bytes::copy_from_slice(&manifest.digest.0)),
        payload_bytes: Some(item.payload_bytes),
        staged_ms: Some(staged.staged.0),
        waiting: if expired { Vec::new() } else { waits(served, snapshot, &manifest.sender, item.transaction) },
        ..Default::default()
    }))
}

fn waits(served: &Served, snapshot: &Snapshot, sender: &SenderName, id: TransactionId) -> Vec<proto::Waiting> {
    use proto::WaitingFor;
    let say = |reason: WaitingFor, text: &str| proto::Waiting {
        reason: reason.into(),
        text: text.to_owned(),
        nodes: Vec::new(),
        predecessor: None,
    };
    let names = |nodes: Vec<crate::core::id::NodeName>| nodes.iter().map(ToString::to_string).collect();
    let leader = served.group.leadership().borrow().leader.clone();
    let waiting = match served.desk.waits_for(snapshot, sender, id) {
        Some(Wait::Quorum(nodes)) => {
            proto::Waiting { nodes: names(nodes), ..say(WaitingFor::Quorum, "more nodes must stage it") }
        }
        Some(Wait::Predecessor(ticket)) => proto::Waiting {
            predecessor: Some((&ticket).into()),
            ..say(WaitingFor::Predecessor, "its predecessor has no fate")
        },
        Some(Wait::Release(nodes)) => {
            proto::Waiting { nodes: names(nodes), ..say(WaitingFor::Release, "all nodes must hold its predecessor") }
        }
        Some(Wait::Commit) => say(WaitingFor::Commit, "it is proposed, or stands in an entry on its way"),
        None => match leader {
            None => say(WaitingFor::Leader, "no leader is known"),
            Some(leader) => proto::Waiting {
                nodes: vec![leader.to_string()],
                ..say(WaitingFor::Commit, "the leader knows more: ask it")
            },
        },
    };
    vec![waiting]
}

/// Where a read's answer stands.
pub fn held(served: &Served) -> (Position, Time) {
    let progress = served.context.store.progress();
    let progress = progress.borrow();
    (progress.held, progress.group_time)
}

//! How a node does: what `node status` shows, and whether it is ready.
//!
//! Must not change anything.

use bytes::Bytes;

use super::alarms::Alarms;
use super::group::Served;
use crate::core::id::Position;
use crate::raft::{Role, Stage};
use crate::rpc::proto;
use crate::store::StoreError;
use crate::telemetry::health::Readiness;

/// The alarms as messages.
pub fn alarms(of: &Alarms) -> Vec<proto::Alarm> {
    let standing = of.standing().into_iter();
    standing.map(|(name, row)| proto::Alarm { name, text: row.text, since_ms: row.since.0 }).collect()
}

/// How this node does in one destination. Errors: the store's.
pub fn group(served: &Served) -> Result<proto::GroupStatus, StoreError> {
    let context = &served.context;
    let snapshot = context.store.snapshot()?;
    let progress = context.store.progress().borrow().clone();
    let state = served.group.status();
    let lag = *context.lag.borrow();
    let now = context.seams.clock.monotonic();
    let heard = served.desk.heard();
    let directory = context.in_force.borrow().clone();
    let voters = directory.destinations.get(&context.destination).map(|entry| entry.nodes.clone()).unwrap_or_default();
    let members = voters
        .into_iter()
        .map(|node| {
            let own = node == context.node;
            let member = state.members.iter().find(|member| member.node == node);
            let reported = heard.get(&node);
            let held: Option<Position> = if own { Some(progress.held) } else { reported.map(|heard| heard.held) };
            let incarnation =
                if own { Some(context.store.incarnation()) } else { reported.map(|heard| heard.incarnation) };
            proto::MemberStatus {
                raft_id: member.map_or(0, |member| member.raft_id),
                voter: member.is_some_and(|member| member.voter),
                held: held.map(Into::into),
                matched: if own { Some(state.last_index) } else { member.and_then(|member| member.matched) },
                silent_ms: reported
                    .filter(|_| !own)
                    .map(|heard| u64::try_from(now.saturating_sub(heard.at).as_millis()).unwrap_or(u64::MAX)),
                incarnation: incarnation.map(|incarnation| Bytes::copy_from_slice(&incarnation.0)),
                node: node.to_string(),
            }
        })
        .collect();
    Ok(proto::GroupStatus {
        destination: context.destination.to_string(),
        group: Bytes::copy_from_slice(&context.tag.0),
        role: role(state.role).into(),
        term: state.term,
        leader: state.leader.as_ref().map(ToString::to_string),
        position: Some(snapshot.last_position()?.into()),
        held: Some(snapshot.held()?.into()),
        state_digest: Bytes::copy_from_slice(&snapshot.state_digest().0),
        state_index: snapshot.applied(),
        members,
        transactions: Some(proto::TransactionCounts {
            committed: progress.counts.committed,
            rejected: progress.counts.rejected,
            undecided: progress.counts.undecided,
            missing: progress.counts.missing,
        }),
        bytes: progress.counts.bytes,
        lag: Some(proto::Lag {
            records: lag.records,
            age_ms: u64::try_from(lag.age.as_millis()).unwrap_or(u64::MAX),
            gathering: lag.gathering,
            deferred: lag.deferred,
        }),
        alarms: alarms(&context.alarms),
        group_time_ms: progress.group_time.0,
        // What the log has and the node does not go by yet is not in force here.
        directory_version: progress.directory_version.min(directory.version),
        incarnation: Bytes::copy_from_slice(&context.store.incarnation().0),
        raft_id: state.raft_id,
        last_index: state.last_index,
    })
}

fn role(role: Role) -> proto::Role {
    match role {
        Role::Leader => proto::Role::Leader,
        Role::Follower => proto::Role::Follower,
        Role::Candidate => proto::Role::Candidate,
        Role::Learner => proto::Role::Learner,
        Role::Starting => proto::Role::Starting,
        Role::Stopped => proto::Role::Stopped,
    }
}

/// What these destinations wait for before they can do their work.
pub fn readiness<'a>(all: impl Iterator<Item = &'a Served>) -> Readiness {
    let mut readiness = Readiness::default();
    for served in all {
        let status = served.group.status();
        let why = if let Stage::Starting(text) | Stage::Refused(text) | Stage::Failed(text) = status.stage {
            text
        } else if status.leader.is_none() {
            "no leader is known: fewer than a majority of its nodes can be reached, or an election is under way"
                .to_owned()
        } else if !*served.replayed.borrow() {
            "its log is being replayed".to_owned()
        } else {
            continue;
        };
        readiness.waiting.insert(served.context.destination.to_string(), why);
    }
    readiness
}

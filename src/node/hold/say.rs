//! Says what became of transactions: the receipts that fates, repeats and bodies that came call for.

use std::time::Duration;

use super::Holder;
use crate::core::decide::{Row, Standing, View, standing};
use crate::core::gather::ParcelKey;
use crate::core::id::{Fate, Rejection, Time};
use crate::core::receipt::{Decided, StageTimes, Statement, Verdict};
use crate::node::answer::verdict;
use crate::store::StoreError;
use crate::store::group::{ItemStanding, Settled, Snapshot};
use crate::telemetry::{logs, names};

/// Whether a receipt may say this row's fate here: of a committed one the body must be here.
pub(super) fn can_be_said(snapshot: &Snapshot, row: &Row) -> Result<bool, StoreError> {
    Ok(!row.is_committed() || snapshot.has_body(&row.digest, row.index)?)
}

impl Holder {
    /// Says a row's fate about the ticket with this deadline, unless it is committed and its body is not here. Whether it
    /// was said.
    pub(super) fn say_row(
        &self,
        snapshot: &Snapshot,
        row: &Row,
        deadline: Time,
        times: StageTimes,
    ) -> Result<bool, StoreError> {
        let here = can_be_said(snapshot, row)?;
        if here {
            self.say_held(row, deadline, times);
        }
        Ok(here)
    }

    /// The same for a row that is known to be held, or not committed.
    pub(super) fn say_held(&self, row: &Row, deadline: Time, times: StageTimes) {
        let _span = logs::transaction_span("receipt", Some(row.parcel), row.transaction).entered();
        tracing::debug!(position = %row.position, "its fate is said");
        self.signer.say(Statement {
            sender: row.sender.clone(),
            transaction: row.transaction,
            deadline,
            directory: row.directory,
            verdict: verdict(row),
            times,
        });
    }

    /// Says again what became of a parcel that was decided since this start: whoever sent it again did not hear. What was
    /// decided before is gathered and staged again, and said then.
    pub(super) fn say_again(&mut self, snapshot: &Snapshot, parcel: &ParcelKey) -> Result<(), StoreError> {
        let directory = self.news.in_force.borrow().clone();
        let Some(sender) = directory.sender_by_key(&parcel.sender) else { return Ok(()) };
        let again = self.recent.again(parcel, self.context.seams.clock.monotonic()).to_vec();
        for transaction in &again {
            if let Some(row) = snapshot.transaction(&sender.name, *transaction)? {
                self.say_row(snapshot, &row, row.deadline, StageTimes::default())?;
            }
        }
        Ok(())
    }

    /// Says how an item stands that was staged here. Just applied, the row's own ticket is said with the row; `late` is an
    /// item that was staged after its fate: whoever sent it again did not hear.
    pub(super) fn say_settled(&mut self, snapshot: &Snapshot, settled: &Settled, late: bool) -> Result<(), StoreError> {
        let item = &settled.item;
        let row = match &settled.standing {
            ItemStanding::Undecided => return Ok(()),
            ItemStanding::Expired => None,
            // Said with its row.
            ItemStanding::Decided(row) if !late && row.digest == settled.digest && row.index == item.index => {
                return Ok(());
            }
            ItemStanding::Decided(row) => Some(row.as_ref()),
        };
        let retention = snapshot
            .directory()
            .and_then(|directory| directory.destinations.get(&self.context.destination))
            .map_or(Duration::MAX, |entry| entry.retention);
        let time = snapshot.group_time();
        let version = snapshot.directory().map_or(0, |directory| directory.version);
        let times = self.times(settled, !late);
        let say = |directory, verdict| {
            self.signer.say_if_room(Statement {
                sender: settled.sender.clone(),
                transaction: item.transaction,
                deadline: item.deadline,
                directory,
                verdict,
                times,
            });
        };
        match standing(row, item.deadline, Some(&item.payload_tag), time, retention) {
            Standing::Decided(..) => {
                if let Some(row) = row {
                    let own = row.digest == settled.digest && row.index == item.index;
                    if own && late && self.missing.contains_key(&row.position) {
                        self.found(snapshot, row.position, times)?;
                    } else if (late || !own)
                        && !self.say_row(snapshot, row, item.deadline, times)?
                        && let Some(missing) = self.missing.get_mut(&row.position)
                    {
                        missing.owe(item.deadline);
                    }
                }
            }
            Standing::IdReuse(position) => {
                let decided = Decided { position, payload_tag: item.payload_tag, digest: settled.digest };
                let directory = row.map_or(version, |row| row.directory);
                if !late {
                    self.count_unwritten(settled, Fate::Rejected(Rejection::IdReuse));
                }
                say(directory, Verdict::Rejected(decided, Rejection::IdReuse));
            }
            Standing::Expired => {
                if !late {
                    self.count_unwritten(settled, Fate::Expired);
                }
                say(version, Verdict::Expired { group_time: time });
            }
            Standing::Forgotten => say(version, Verdict::Forgotten { group_time: time }),
            Standing::Undecided => {}
        }
        Ok(())
    }

    /// Counts and logs a fate that follows from the state and has no row of its own: only nodes that staged the transaction
    /// know of it.
    fn count_unwritten(&self, settled: &Settled, fate: Fate) {
        let (word, reason) = match fate {
            Fate::Rejected(reason) => ("rejected", reason.word()),
            _ => ("expired", ""),
        };
        self.context.meter.with("fate", word).count_as(names::DECIDE_TRANSACTIONS, "reason", reason);
        let (sender, destination, digest) = (&settled.sender, &self.context.destination, &settled.digest);
        logs::transaction_span("commit", None, settled.item.transaction)
            .in_scope(|| tracing::debug!(%sender, %destination, %digest, %fate, "decided"));
    }

    /// How long it took here. `decided`: its fate was applied just now, so it was held at once. What was staged after its
    /// fate took no time to commit; what is said again after a restart is said without any.
    pub(super) fn times(&self, settled: &Settled, decided: bool) -> StageTimes {
        let took = |from: Time, to: Time| u32::try_from(to.since(from).as_millis()).unwrap_or(u32::MAX);
        StageTimes {
            delivered: settled.first.map(|first| took(settled.item.transaction.time(), first)),
            staged: settled.first.map(|first| took(first, settled.staged)),
            committed: decided.then(|| took(settled.staged, self.context.seams.clock.now())),
            held: decided.then_some(0),
        }
    }
}

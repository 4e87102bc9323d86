//! What is checked of a transaction before anything is done for it: its limits, and what the directory allows. Must not seal
//! or keep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bundle::Prepared;
use super::error::{ClientError, SubmitError};
use super::service::Client;
use super::transaction::{Deadline, Transaction};
use crate::core::directory::{Directory, Validity};
use crate::core::id::{DestinationName, Time, TransactionId};
use crate::core::limits;

/// The deadline of a transaction that names none, where its destinations allow it.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Client {
    /// Checks a transaction against its limits and the directory, and gives it its id and deadline.
    pub(super) fn prepare(
        &self,
        destinations: &[DestinationName],
        transaction: Transaction,
    ) -> Result<Prepared, SubmitError> {
        let (directory, now) = (self.directory(), self.inner.seams.clock.now());
        let checked = self.check(&directory, destinations, &transaction, now);
        match checked {
            Ok((id, deadline)) => {
                let mut destinations = destinations.to_vec();
                destinations.sort();
                Ok(Prepared {
                    transaction,
                    id,
                    deadline,
                    submitted: now,
                    started: self.inner.seams.clock.monotonic(),
                    destinations,
                    number: 0,
                    predecessors: BTreeMap::new(),
                    measured: None,
                })
            }
            Err(error) => Err(SubmitError { error, transaction: Box::new(transaction) }),
        }
    }

    fn check(
        &self,
        directory: &Directory,
        destinations: &[DestinationName],
        transaction: &Transaction,
        now: Time,
    ) -> Result<(TransactionId, Time), ClientError> {
        transaction.check()?;
        if matches!(directory.validity(now), Validity::GraceEnded) {
            return Err(ClientError::DirectoryEnded);
        }
        let wrong = |field, problem: String| Err(ClientError::Transaction { field, problem });
        let distinct: BTreeSet<_> = destinations.iter().collect();
        if !(1..=limits::DESTINATIONS).contains(&destinations.len()) || distinct.len() < destinations.len() {
            return wrong("destinations", format!("1 to {}, each once", limits::DESTINATIONS));
        }
        let mut life = Duration::MAX;
        for name in destinations {
            let Some(entry) = directory.destinations.get(name) else {
                return Err(ClientError::NoDestination { destination: name.clone() });
            };
            if !directory.may_send(&self.inner.sender, name) {
                return Err(ClientError::NotPermitted { destination: name.clone() });
            }
            let suite = self.inner.suite;
            if entry.current_key(suite).is_none() || suite < entry.minimum_suite {
                return Err(ClientError::Suite { destination: name.clone(), suite });
            }
            life = life.min(entry.max_life);
        }
        let after = transaction.after.keys().map(|name| ("after", name));
        let expected = transaction.expected_versions.keys().map(|name| ("expected version", name));
        if let Some((field, other)) = after.chain(expected).find(|(_, name)| !destinations.contains(name)) {
            return wrong(field, format!("{other} is none of its destinations"));
        }
        let id = match transaction.id {
            Some(id) => id,
            None => TransactionId::from_parts(now, self.inner.seams.randomness.array()?),
        };
        let latest = id.time().after(life);
        let deadline = match transaction.deadline {
            Deadline::Default => id.time().after(DEFAULT_LIFE.min(life)),
            Deadline::After(after) => now.after(after),
            Deadline::At(time) => time,
        };
        if deadline > latest {
            let most = humantime::format_duration(life);
            return wrong("deadline", format!("at most {most} after it is submitted: the destination's longest life"));
        }
        if deadline <= now {
            return wrong("deadline", "it is past already".to_owned());
        }
        Ok((id, deadline))
    }
}

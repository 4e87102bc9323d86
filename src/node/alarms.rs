//! What a person should look at: named, with since when and what to do. An alarm stands until it is cleared; those of a
//! destination are kept in its store, so that a restart does not hide them. Most end with their reason. Of some the reason
//! is over when they are raised, and what to make of it a person must say: these are acknowledged.
//!
//! Owns the standing alarms. Must not decide when one is raised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::seams::Clock;
use crate::store::StoreError;
use crate::store::group::{AlarmRow, GroupStore, Mutation};
pub use crate::telemetry::alarms::*;
use crate::telemetry::{Meter, names};

/// The standing alarms of one destination, or of the node as a whole. Cheap to clone.
#[derive(Clone)]
pub struct Alarms(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    meter: Meter,
    store: Option<GroupStore>,
    standing: Mutex<BTreeMap<String, AlarmRow>>,
    /// Those whose gauge shows that they stand.
    shown: Mutex<BTreeSet<String>>,
}

impl Alarms {
    /// Alarms that are not kept: those of the node as a whole, which every start looks at anew.
    pub fn new(clock: Arc<dyn Clock>, meter: Meter) -> Self {
        Self(Arc::new(Inner { clock, meter, store: None, standing: Mutex::default(), shown: Mutex::default() }))
    }

    /// Alarms that are kept in a store; those that it holds stand at once. Errors: the store's.
    pub fn kept_in(store: &GroupStore, clock: Arc<dyn Clock>, meter: Meter) -> Result<Self, StoreError> {
        let standing: BTreeMap<_, _> = store.snapshot()?.alarms()?.into_iter().collect();
        // A node that is started again in its process finds the gauges as it left them.
        let shown = Mutex::new(standing.keys().cloned().collect());
        let (store, standing) = (Some(store.clone()), Mutex::new(standing));
        Ok(Self(Arc::new(Inner { clock, meter, store, standing, shown })))
    }

    /// Raises an alarm, or changes the text of one that stands. `name`: lower-case words with hyphens, of a small set.
    pub fn raise(&self, name: &str, text: impl Into<String>) {
        let text = text.into();
        let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match standing.get(name) {
            Some(row) if row.text == text => return,
            Some(row) => row.since,
            None => {
                tracing::warn!(alarm = name, destination = self.destination(), "{text}");
                self.0.clock.now()
            }
        };
        let row = AlarmRow { since, text };
        standing.insert(name.to_owned(), row.clone());
        self.keep(Mutation::Raise { name: name.to_owned(), row });
    }

    /// Whether an alarm stands, as far as this part of the node raised or acknowledged it.
    pub fn stands(&self, name: &str) -> bool {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Clears an alarm, if it stands.
    pub fn clear(&self, name: &str) {
        let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.remove(name).is_some() {
            tracing::info!(alarm = name, destination = self.destination(), "alarm cleared");
            self.keep(Mutation::Clear { name: name.to_owned() });
        }
    }

    /// Clears an alarm that a person looked at, and waits until that is durable. Whether it stood. Errors: the store's.
    pub async fn acknowledge(&self, name: &str) -> Result<bool, StoreError> {
        // Also one that another part of the node raised, in the store.
        if !self.standing().iter().any(|(standing, _)| standing == name) {
            return Ok(false);
        }
        tracing::info!(alarm = name, destination = self.destination(), "alarm acknowledged");
        let (done, answer) = oneshot::channel();
        {
            let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
            standing.remove(name);
            if let Some(store) = &self.0.store {
                let clear = vec![Mutation::Clear { name: name.to_owned() }];
                store.submit(clear, Box::new(move |result| drop(done.send(result))));
            } else {
                // No store keeps it: it is cleared by now, and nobody answers.
                return Ok(true);
            }
        }
        answer.await.unwrap_or(Ok(())).map(|()| true)
    }

    /// Has the gauge show what stands, whoever raised and cleared it: the same as `node status` shows.
    pub fn show(&self) {
        let standing: BTreeSet<String> = self.standing().into_iter().map(|(name, _)| name).collect();
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let set = |name: &String, to: f64| self.0.meter.with("alarm", name.clone()).set(names::ALARM, to);
        shown.difference(&standing).for_each(|name| set(name, 0.0));
        standing.iter().for_each(|name| set(name, 1.0));
        *shown = standing;
    }

    /// The alarms that stand, by name: those in the store, where other parts of the node raise theirs.
    pub fn standing(&self) -> Vec<(String, AlarmRow)> {
        let kept = self.0.store.as_ref().and_then(|store| store.snapshot().and_then(|snapshot| snapshot.alarms()).ok());
        if let Some(kept) = kept {
            return kept;
        }
        let standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.iter().map(|(name, row)| (name.clone(), row.clone())).collect()
    }

    /// Whose they are; `None` of the node as a whole.
    fn destination(&self) -> Option<&str> {
        self.0.store.as_ref().map(|store| store.destination().as_str())
    }

    /// With the lock held, so that the store sees changes in their order.
    fn keep(&self, mutation: Mutation) {
        if let Some(store) = &self.0.store {
            // A store that cannot keep it stops the node, and says why itself.
            store.submit(vec![mutation], Box::new(drop));
        }
    }
}

impl std::fmt::Debug for Alarms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.standing().iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::Seams;

    #[tokio::test]
    async fn an_alarm_that_no_store_keeps_is_acknowledged_at_once() {
        let alarms = Alarms::new(Seams::real().clock, Meter::default());
        alarms.raise("gap-0", "records may have been lost");
        assert!(alarms.acknowledge("gap-0").await.unwrap());
        assert!(alarms.standing().is_empty());
        assert!(!alarms.acknowledge("gap-0").await.unwrap());
    }
}

//! What a person should look at: named, with since when and what to do. An alarm stands until it is cleared; those of a
//! destination are kept in its store, so that a restart does not hide them.
//!
//! Owns the standing alarms. Must not decide when one is raised.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::seams::Clock;
use crate::store::StoreError;
use crate::store::group::{AlarmRow, GroupStore, Mutation};
use crate::telemetry::{Meter, names};

/// The standing alarms of one destination, or of the node as a whole. Cheap to clone.
#[derive(Clone)]
pub struct Alarms(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    meter: Meter,
    store: Option<GroupStore>,
    standing: Mutex<BTreeMap<String, AlarmRow>>,
}

impl Alarms {
    /// Alarms that are not kept: those of the node as a whole, which every start looks at anew.
    pub fn new(clock: Arc<dyn Clock>, meter: Meter) -> Self {
        Self(Arc::new(Inner { clock, meter, store: None, standing: Mutex::default() }))
    }

    /// Alarms that are kept in a store; those that it holds stand at once. Errors: the store's.
    pub fn kept_in(store: &GroupStore, clock: Arc<dyn Clock>, meter: Meter) -> Result<Self, StoreError> {
        let standing: BTreeMap<_, _> = store.snapshot()?.alarms()?.into_iter().collect();
        for name in standing.keys() {
            show(&meter, name, 1.0);
        }
        Ok(Self(Arc::new(Inner { clock, meter, store: Some(store.clone()), standing: Mutex::new(standing) })))
    }

    /// Raises an alarm, or changes the text of one that stands. `name`: lower-case words with hyphens, of a small set.
    pub fn raise(&self, name: &str, text: impl Into<String>) {
        let text = text.into();
        let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match standing.get(name) {
            Some(row) if row.text == text => return,
            Some(row) => row.since,
            None => {
                tracing::warn!(alarm = name, "{text}");
                self.0.clock.now()
            }
        };
        let row = AlarmRow { since, text };
        standing.insert(name.to_owned(), row.clone());
        show(&self.0.meter, name, 1.0);
        self.keep(Mutation::Raise { name: name.to_owned(), row });
    }

    /// Clears an alarm, if it stands.
    pub fn clear(&self, name: &str) {
        let mut standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.remove(name).is_some() {
            tracing::info!(alarm = name, "alarm cleared");
            show(&self.0.meter, name, 0.0);
            self.keep(Mutation::Clear { name: name.to_owned() });
        }
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

fn show(meter: &Meter, name: &str, to: f64) {
    meter.with("alarm", name.to_owned()).set(names::ALARM, to);
}

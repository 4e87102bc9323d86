//! Which fault strikes a record: it follows from the seed, from the record, and from how often the record came by.
//!
//! Owns the records' history: how often each came by, which of each group are hurt, which are withheld. Must not carry a fault
//! out, nor know a transport.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::AdversaryOptions;
use crate::transport::Record;

/// Records whose history the adversary remembers; beyond it the oldest are forgotten.
const MEMORY: usize = 65_536;

/// What belongs together: of all records with one `key`, at most `most` are lost or damaged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Names the group, for example a stripe's digest.
    pub key: Vec<u8>,
    /// How many different records of it may be lost or damaged, for example m.
    pub most: usize,
}

/// Tells which group a record belongs to; records of none (`None`) are left alone.
pub type Classifier = Arc<dyn Fn(&Record) -> Option<Group> + Send + Sync>;

/// How often each fault strikes a record: shares of 1. At most one strikes at a time, so their sum should be at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Acknowledged and never there.
    pub drop: f64,
    /// One bit of its value is flipped.
    pub corrupt: f64,
    /// Its value ends early.
    pub truncate: f64,
    /// There, and never given to a reader.
    pub withhold: f64,
    /// There twice.
    pub duplicate: f64,
    /// An older record appears once more beside it.
    pub replay: f64,
    /// Appended and acknowledged later, up to [`AdversaryOptions::delay`].
    pub delay: f64,
    /// Appended behind records that came after it.
    pub reorder: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Drop,
    Corrupt,
    Truncate,
    Withhold,
    Duplicate,
    Replay,
    Delay,
    Reorder,
}

impl Fault {
    fn hurts(self) -> bool {
        matches!(self, Self::Drop | Self::Corrupt | Self::Truncate | Self::Withhold)
    }
}

/// What the adversary remembers of the records that it was given.
#[derive(Default)]
pub(super) struct History {
    /// How often each record came by, so that a record sent again meets another fate; oldest first to be forgotten.
    seen: BTreeMap<[u8; 16], u32>,
    seen_order: VecDeque<[u8; 16]>,
    /// Which records of each group are hurt.
    hurt: BTreeMap<Vec<u8>, BTreeSet<[u8; 16]>>,
    hurt_order: VecDeque<Vec<u8>>,
    /// Records to withhold from readers.
    withheld: BTreeSet<[u8; 16]>,
}

fn name_of(record: &Record) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    hash.update(&(record.key.len() as u64).to_be_bytes()).update(&record.key).update(&record.value);
    let mut name = [0; 16];
    hash.finalize_xof().fill(&mut name);
    name
}

impl Rates {
    fn pick(&self, chance: f64) -> Option<Fault> {
        let shares = [
            (self.drop, Fault::Drop),
            (self.corrupt, Fault::Corrupt),
            (self.truncate, Fault::Truncate),
            (self.withhold, Fault::Withhold),
            (self.duplicate, Fault::Duplicate),
            (self.replay, Fault::Replay),
            (self.delay, Fault::Delay),
            (self.reorder, Fault::Reorder),
        ];
        let mut below = 0.0;
        for (share, fault) in shares {
            below += share;
            if chance < below {
                return Some(fault);
            }
        }
        None
    }
}

impl History {
    /// The fault that strikes this record now, if any, and the number that decides its details.
    pub(super) fn strike(&mut self, options: &AdversaryOptions, record: &Record) -> (Option<Fault>, u64) {
        let name = name_of(record);
        let attempt = self.attempt(name);
        let mut hash = blake3::Hasher::new();
        hash.update(&options.seed.to_be_bytes()).update(&name).update(&attempt.to_be_bytes());
        let mut numbers = [[0; 8]; 2];
        hash.finalize_xof().fill(numbers.as_flattened_mut());
        let [chance, detail] = numbers.map(u64::from_be_bytes);
        let fault = options.rates.pick(chance as f64 / (u64::MAX as f64 + 1.0));
        let Some(fault) = fault else { return (None, detail) };
        if fault.hurts()
            && let Some(classifier) = &options.classifier
        {
            let allowed = classifier(record).is_some_and(|group| self.may_hurt(group, name));
            if !allowed {
                return (None, detail);
            }
        }
        if fault == Fault::Withhold {
            self.withheld.insert(name);
            while self.withheld.len() > MEMORY {
                self.withheld.pop_first();
            }
        }
        (Some(fault), detail)
    }

    /// Whether any record is withheld from readers.
    pub(super) fn withholds_any(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// Whether this record is withheld from readers.
    pub(super) fn withholds(&self, record: &Record) -> bool {
        self.withheld.contains(&name_of(record))
    }

    fn attempt(&mut self, name: [u8; 16]) -> u32 {
        if let Some(attempt) = self.seen.get_mut(&name) {
            *attempt += 1;
            return *attempt;
        }
        self.seen.insert(name, 0);
        self.seen_order.push_back(name);
        if self.seen_order.len() > MEMORY
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        0
    }

    fn may_hurt(&mut self, group: Group, name: [u8; 16]) -> bool {
        if !self.hurt.contains_key(&group.key) {
            self.hurt_order.push_back(group.key.clone());
            if self.hurt_order.len() > MEMORY
                && let Some(oldest) = self.hurt_order.pop_front()
            {
                self.hurt.remove(&oldest);
            }
        }
        let hurt = self.hurt.entry(group.key).or_default();
        if hurt.len() < group.most {
            hurt.insert(name);
        }
        hurt.contains(&name)
    }
}

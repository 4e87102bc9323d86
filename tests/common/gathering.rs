//! What a node does around the reassembler (log, notes, cursors, blocking work), for tests of gathering.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::directory::Directory;
use sealcast::core::gather::{
    Action, Address, Caps, Cursor, DeferReason, Equivocation, Gate, Identity, Mark, Missing, ParcelKey, Reassembler,
    Refused,
};
use sealcast::core::id::{Digest, RefusalReason, Time};
use sealcast::core::split::header::{Core, Profile};
use sealcast::core::split::stripe::Stripe;

use crate::segments::*;

/// A node's collecting half: partitions of records, cursors, durable notes, and what became of each parcel.
pub struct Node {
    pub reassembler: Reassembler,
    pub gate: Gate,
    pub log: Vec<Vec<Bytes>>,
    pub cursors: Vec<Cursor>,
    pub notes: BTreeMap<Address, DeferReason>,
    pub passed: BTreeSet<Address>,
    pub assembling: BTreeMap<ParcelKey, Vec<u8>>,
    pub staged: BTreeMap<ParcelKey, (Digest, Vec<u8>)>,
    pub refused: Vec<Refused>,
    pub abandoned: Vec<ParcelKey>,
    pub missing: Vec<Missing>,
    pub equivocations: Vec<Equivocation>,
    pub repeated: Vec<ParcelKey>,
    /// When the first segment of each parcel came, as the last delivery said.
    pub since: BTreeMap<ParcelKey, Option<Time>>,
    pub rereads: usize,
    pub most_held: usize,
    pub now: Time,
    pub group_time: Time,
    /// Refuse parcels of this sender with this reason when their first stripe is opened.
    pub refuse_first: Option<RefusalReason>,
}

impl Node {
    pub fn new(caps: Caps) -> Self {
        let directory = Arc::new(directory());
        Self {
            reassembler: Reassembler::new(directory.clone(), orders(), caps),
            gate: Gate::new(directory, orders()),
            log: vec![Vec::new(); 3],
            cursors: vec![Cursor::new(Mark::default()); 3],
            notes: BTreeMap::new(),
            passed: BTreeSet::new(),
            assembling: BTreeMap::new(),
            staged: BTreeMap::new(),
            refused: Vec::new(),
            abandoned: Vec::new(),
            missing: Vec::new(),
            equivocations: Vec::new(),
            repeated: Vec::new(),
            since: BTreeMap::new(),
            rereads: 0,
            most_held: 0,
            now: Time(1_000_000),
            group_time: NOW,
            refuse_first: None,
        }
    }

    pub fn append(&mut self, partition: usize, record: &Bytes) -> Address {
        self.log[partition].push(record.clone());
        Address { partition: partition as i32, offset: self.log[partition].len() as i64 - 1 }
    }

    /// Appends to partition 0 and reads it.
    pub fn send(&mut self, record: &Bytes) -> Address {
        let at = self.append(0, record);
        self.collect(0);
        at
    }

    pub fn send_stripe(&mut self, stripe: &Stripe) {
        for segment in &stripe.segments {
            self.send(&segment.record);
        }
    }

    /// Reads the next record of a partition.
    pub fn collect(&mut self, partition: usize) {
        let offset = self.cursors[partition].next();
        if let Some(record) = self.log[partition].get(offset as usize).cloned() {
            self.cursors[partition].see(offset, Identity::of(b"", &record));
            self.read(Address { partition: partition as i32, offset });
        }
    }

    pub fn read(&mut self, at: Address) {
        let record = self.log[at.partition as usize][at.offset as usize].clone();
        let checked = self.gate.check(&record, self.group_time);
        let actions = self.reassembler.take(checked, at, self.now);
        self.act(actions);
    }

    pub fn act(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            self.most_held = self.most_held.max(self.reassembler.held_bytes());
            match action {
                Action::Recover(job) => queue.extend(self.reassembler.recovered(job.run(), self.now)),
                Action::Deliver(delivery) => {
                    let key = delivery.parcel;
                    self.since.insert(key, delivery.since);
                    assert!(!self.staged.contains_key(&key), "handed out after it was staged");
                    if let Some(reason) = self.refuse_first {
                        queue.extend(self.reassembler.refuse(&key, reason, self.now));
                        continue;
                    }
                    let bytes = self.assembling.entry(key).or_default();
                    bytes.extend_from_slice(&delivery.sealed);
                    if delivery.header.last {
                        let bytes = self.assembling.remove(&key).unwrap();
                        self.staged.insert(key, (delivery.digest, bytes));
                        queue.extend(self.reassembler.end(
                            &key,
                            delivery.digest,
                            delivery.header.core.expiry,
                            self.now,
                        ));
                    }
                }
                Action::Refuse(refused) => self.refused.push(refused),
                Action::Abandon { parcel, because } => {
                    self.assembling.remove(&parcel);
                    if because.is_none() {
                        self.abandoned.push(parcel);
                    }
                }
                Action::Defer { addresses, reason } => {
                    for at in addresses.iter() {
                        self.notes.insert(at, reason);
                        self.cursors[at.partition as usize].pass(at.offset);
                    }
                }
                Action::Pass(addresses) => {
                    for at in addresses.iter() {
                        self.notes.remove(&at);
                        self.passed.insert(at);
                        self.cursors[at.partition as usize].pass(at.offset);
                    }
                }
                Action::Reread(addresses) => {
                    self.rereads += addresses.len();
                    for at in addresses {
                        let record = self.log[at.partition as usize][at.offset as usize].clone();
                        let checked = self.gate.check(&record, self.group_time);
                        queue.extend(self.reassembler.take(checked, at, self.now));
                    }
                }
                Action::Missing(missing) => self.missing.push(missing),
                Action::Repeated(parcel) => self.repeated.push(parcel),
                Action::Equivocation(equivocation) => self.equivocations.push(equivocation),
            }
        }
    }

    pub fn wait(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        let actions = self.reassembler.due(self.now);
        self.act(actions);
    }

    /// Puts a directory in force.
    pub fn set_directory(&mut self, directory: Arc<Directory>) {
        self.gate.set_directory(directory.clone());
        let actions = self.reassembler.set_directory(directory, self.now);
        self.act(actions);
    }

    pub fn set_group_time(&mut self, time: Time) {
        self.group_time = time;
        let actions = self.reassembler.set_group_time(time, self.now);
        self.act(actions);
    }

    /// Nothing is open, held, deferred or noted; every cursor stands at its end.
    pub fn assert_clean(&self) {
        assert_eq!(self.reassembler.open_parcels(), 0);
        assert_eq!(self.reassembler.held_bytes(), 0);
        assert_eq!(self.reassembler.deferred(), 0);
        assert!(self.notes.is_empty(), "{:?}", self.notes);
        for (cursor, log) in self.cursors.iter().zip(&self.log) {
            assert_eq!((cursor.mark().offset, cursor.open()), (log.len() as i64, 0));
        }
    }
}

pub fn key_of(core: &Core) -> ParcelKey {
    ParcelKey::of(core)
}

pub fn tiny() -> Profile {
    Profile::new(3, 2, 16).unwrap()
}

pub fn parcel(number: u8, length: usize) -> (Core, Vec<u8>, Vec<Stripe>) {
    let core = core(&web(), number, tiny());
    let sealed = sealed(length, number);
    let stripes = split(core.clone(), &web(), &sealed);
    (core, sealed, stripes)
}

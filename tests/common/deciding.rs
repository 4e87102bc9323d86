//! A group's state in memory, and transactions to decide: for the tests of `core::decide`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sealcast::core::decide::{
    Changes, Claim, Commit, DirectoryOp, Entry, Manifest, ManifestItem, Op, Predecessor, Report, Row, Staged, Standing,
    View, apply, standing,
};
use sealcast::core::directory::Directory;
use sealcast::core::id::{
    DestinationName, Digest, Epoch, IdempotencyTag, Incarnation, KeyTag, NodeName, OnPredecessor, ParcelId, PayloadTag,
    Position, Release, SenderName, Time, TransactionId, VerifyingKeyBytes,
};

use crate::segments::{directory, secret};

/// When everything begins; ids have this time.
pub const START: Time = Time(1_800_000_000_000);

/// The replicated state of the group "orders", as plain maps.
#[derive(Clone)]
pub struct Model {
    pub destination: DestinationName,
    pub index: u64,
    pub time: Time,
    pub directories: Vec<Arc<Directory>>,
    pub operator: Option<VerifyingKeyBytes>,
    pub rows: BTreeMap<(SenderName, TransactionId), Row>,
    pub claims: BTreeMap<(SenderName, IdempotencyTag), Claim>,
    pub keys: BTreeMap<KeyTag, Position>,
    pub digest: Digest,
}

impl View for Model {
    type Error = Infallible;

    fn destination(&self) -> &DestinationName {
        &self.destination
    }
    fn group_time(&self) -> Time {
        self.time
    }
    fn directory(&self) -> Option<&Arc<Directory>> {
        self.directories.last()
    }
    fn operator(&self) -> Option<VerifyingKeyBytes> {
        self.operator
    }
    fn transaction(&self, sender: &SenderName, transaction: TransactionId) -> Result<Option<Row>, Infallible> {
        Ok(self.rows.get(&(sender.clone(), transaction)).cloned())
    }
    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, Infallible> {
        Ok(self.claims.get(&(sender.clone(), tag)).copied())
    }
    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, Infallible> {
        Ok(self.keys.get(&tag).copied())
    }
}

impl Model {
    /// Before any entry.
    pub fn empty() -> Self {
        Self {
            destination: "orders".parse().unwrap(),
            index: 0,
            time: Time(0),
            directories: Vec::new(),
            operator: None,
            rows: BTreeMap::new(),
            claims: BTreeMap::new(),
            keys: BTreeMap::new(),
            digest: Digest([0; 32]),
        }
    }

    /// After the founding entry, with group time at [`START`].
    pub fn founded() -> Self {
        let mut model = Self::empty();
        model.run(&Entry::founding(directory_op(&directory())));
        model.run(&Entry { time: START, ops: Vec::new() });
        model
    }

    /// Applies an entry, having written and read it, and puts its changes in place.
    pub fn run(&mut self, entry: &Entry) -> Changes {
        let entry = Entry::decode(&entry.encode()).unwrap();
        let changes = apply(self, self.index + 1, &entry).unwrap();
        self.put(&changes);
        changes
    }

    pub fn put(&mut self, changes: &Changes) {
        assert_eq!(changes.index, self.index + 1);
        assert!(changes.group_time >= self.time, "group time went back");
        self.digest = changes.state_digest(&self.digest);
        self.index = changes.index;
        self.time = changes.group_time;
        for change in &changes.directories {
            self.operator = Some(change.operator);
            self.directories.push(Arc::clone(&change.directory));
        }
        for row in &changes.rows {
            let row = Row::decode(&row.encode()).unwrap();
            let before = self.rows.insert((row.sender.clone(), row.transaction), row);
            assert_eq!(before, None, "a transaction got a second fate");
        }
        self.keys.extend(changes.keys.iter().copied());
        for (sender, tag, claim) in &changes.claims {
            self.claims.insert((sender.clone(), *tag), Claim::decode(&claim.encode()).unwrap());
        }
    }

    /// How a ticket of "web" stands.
    pub fn standing(&self, item: &ManifestItem) -> Standing {
        let row = self.rows.get(&(web(), item.transaction));
        let retention = self.directories.last().unwrap().destinations[&self.destination].retention;
        standing(row, item.deadline, Some(&item.payload_tag), self.time, retention)
    }
}

pub fn directory_op(directory: &Directory) -> DirectoryOp {
    DirectoryOp { operator: secret(1).public().bytes(), bytes: directory.bytes().clone() }
}

pub fn web() -> SenderName {
    "web".parse().unwrap()
}

pub fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub fn incarnation(name: &str) -> Incarnation {
    Incarnation([name.as_bytes()[0]; 16])
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The transaction of this number: an hour to live, no key, no predecessor.
pub fn item(number: u32) -> ManifestItem {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    ManifestItem {
        index: 0,
        transaction: TransactionId::from_parts(START, random),
        deadline: START.after(seconds(3600)),
        payload_bytes: 10,
        ciphertext_bytes: 100,
        ciphertext_digest: Digest([number as u8; 32]),
        tx_commit: [3; 32],
        payload_tag: PayloadTag([number as u8; 32]),
        key_tag: None,
        idempotency_tag: None,
        predecessor: None,
        expected_version: None,
    }
}

/// That one must be decided first.
pub fn after(item: ManifestItem, predecessor: &ManifestItem) -> ManifestItem {
    let predecessor = Predecessor {
        transaction: predecessor.transaction,
        deadline: predecessor.deadline,
        on_predecessor: OnPredecessor::Reject,
        release: Release::Committed,
    };
    ManifestItem { predecessor: Some(predecessor), ..item }
}

/// A parcel of "web" with these transactions.
pub fn manifest(number: u32, items: Vec<ManifestItem>) -> Manifest {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    Manifest {
        parcel: ParcelId::from_parts(START, random),
        digest: Digest(*blake3::hash(&number.to_be_bytes()).as_bytes()),
        sender: web(),
        epoch: Epoch([1; 8]),
        expiry: START.after(seconds(7200)),
        items: (0..).zip(items).map(|(index, item)| ManifestItem { index, ..item }).collect(),
    }
}

/// All of a manifest in one commit that "a" and "b" reported.
pub fn commit(manifest: &Manifest) -> Commit {
    Commit {
        parcel: manifest.parcel,
        digest: manifest.digest,
        sender: manifest.sender.clone(),
        epoch: manifest.epoch,
        expiry: manifest.expiry,
        manifest_digest: manifest.manifest_digest(),
        reporters: ["a", "b"].map(|name| (node(name), incarnation(name))).into(),
        items: manifest.items.clone(),
    }
}

/// An entry with one commit for each group of transactions, at this many seconds.
pub fn entry(second: u64, groups: Vec<Vec<ManifestItem>>) -> Entry {
    let ops =
        (0..).zip(groups).map(|(number, items)| Op::Commit(commit(&manifest(second as u32 * 100 + number, items))));
    Entry { time: START.after(seconds(second)), ops: ops.collect() }
}

/// A whole report of a node: these parcels, its clock this many seconds after the start.
pub fn report(name: &str, number: u64, second: u64, held: Position, manifests: &[Manifest]) -> Report {
    Report {
        node: node(name),
        incarnation: incarnation(name),
        clock: START.after(seconds(second)),
        held,
        number,
        last: true,
        staged: manifests
            .iter()
            .map(|manifest| Staged {
                parcel: manifest.parcel,
                digest: manifest.digest,
                manifest_digest: manifest.manifest_digest(),
                manifest: Some(Arc::new(manifest.clone())),
            })
            .collect(),
    }
}

/// Counts look-ups of transactions in the state.
pub struct Counting<'a> {
    pub model: &'a Model,
    pub looks: Cell<usize>,
}

impl View for Counting<'_> {
    type Error = Infallible;

    fn destination(&self) -> &DestinationName {
        self.model.destination()
    }
    fn group_time(&self) -> Time {
        self.model.group_time()
    }
    fn directory(&self) -> Option<&Arc<Directory>> {
        self.model.directory()
    }
    fn operator(&self) -> Option<VerifyingKeyBytes> {
        self.model.operator()
    }
    fn transaction(&self, sender: &SenderName, transaction: TransactionId) -> Result<Option<Row>, Infallible> {
        self.looks.set(self.looks.get() + 1);
        self.model.transaction(sender, transaction)
    }
    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, Infallible> {
        self.model.claim(sender, tag)
    }
    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, Infallible> {
        self.model.key_version(tag)
    }
}

//! What nodes keep and decide: log append, apply, commit. On the disk that the build folder lies on. Baselines are an fdatasync of
//! as many bytes into a file that has its length already, and redb, which the store is made on, without anything around it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::RaftLogStorageExt;
use openraft::testing::log_id;
use redb::{Database, Durability, TableDefinition};
use sealcast::core::decide::{Entry, Op, apply};
use sealcast::raft::storage::LogStore;
use sealcast::raft::{EntryBytes, Group, LogEntry, TypeConfig};
use sealcast::seams::{RealDisk, Seams};
use sealcast::store::group::{ApplyEntry, GroupStore, StoreOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::deciding::{Model, commit, directory_op, item, manifest, seconds};
use crate::ledger::{orders, seams};
use crate::measure::{Arm, Part, Target, Unit};
use crate::segments::{directory, sealed as some_bytes};
use crate::trio::{NAMES, Wires, open_group, until};

pub fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for (entries, payload) in [(1, 512), (1, 64 << 10), (64, 512)] {
        let condition = if entries == 1 { "one entry".to_owned() } else { format!("{entries} entries at once") };
        let arms = move || append(entries, payload);
        parts.push(Part::new("log-append", condition, entries * payload, Unit::Micros, arms));
    }
    for transactions in [1, 256] {
        let condition = format!("entry of {transactions}, state in memory");
        parts.push(Part::new("apply", condition, 0, Unit::Micros, move || apply_pure(transactions)));
        let condition = format!("entry of {transactions}, store");
        parts.push(Part::new("apply", condition, 0, Unit::Micros, move || apply_store(transactions)));
    }
    // Both ask the same group, which is founded for the first that runs.
    let shared: Rc<RefCell<Option<Rc<Three>>>> = Rc::default();
    let founded = shared.clone();
    let three = move || founded.borrow_mut().get_or_insert_with(|| Rc::new(Three::start())).clone();
    let again = three.clone();
    parts.push(Part::new("commit", "group of three on one disk, one at a time", 0, Unit::Micros, move || {
        let (three, disk) = (again(), folder());
        let own = Arm::each("sealcast", || (), move |()| three.commit(1));
        vec![own, fdatasync(4096, disk.path()).target(Target::AtMost(3.0)).keep(disk)]
    }));
    let again = three.clone();
    parts.push(Part::new("commit-batch", "256 in one entry", 0, Unit::PerSecond, move || {
        let (one, batch) = (again(), again());
        let own = Arm::each("sealcast", || (), move |()| batch.commit(256)).operations(256);
        let baseline = Arm::each("one at a time", || (), move |()| one.commit(1));
        vec![own, baseline.target(Target::AtLeast(50.0))]
    }));
    parts.push(Part::new("commit-batch", "256 entries side by side", 0, Unit::PerSecond, move || {
        let (one, many) = (three(), three());
        let own = Arm::each("sealcast", || (), move |()| many.commit_side_by_side(256)).operations(256);
        vec![own, Arm::each("one at a time", || (), move |()| one.commit(1))]
    }));
    parts
}

/// A folder of its own, on the disk that the build lies on: a temporary one may lie in memory, where nothing is ever synced.
fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn disk_seams() -> Seams {
    static SEED: AtomicU64 = AtomicU64::new(1);
    seams(RealDisk, SEED.fetch_add(1, Ordering::Relaxed))
}

fn options(folder: &Path) -> StoreOptions {
    StoreOptions { folder: folder.to_owned(), destination: orders() }
}

/// Writes so many bytes over a file that has its length, block after block, and makes each write durable.
fn fdatasync(bytes: usize, folder: &Path) -> Arm {
    const LENGTH: u64 = 8 << 20;
    let file = File::create_new(folder.join("plain")).unwrap();
    file.write_all_at(&vec![1; LENGTH as usize], 0).unwrap();
    file.sync_all().unwrap();
    let (block, at) = (some_bytes(bytes, 1), Cell::new(0));
    let step = (bytes as u64).next_multiple_of(4096);
    Arm::each(
        "fdatasync",
        || (),
        move |()| {
            file.write_all_at(&block, at.get()).unwrap();
            file.sync_data().unwrap();
            at.set(if at.get() + 2 * step > LENGTH { 0 } else { at.get() + step });
        },
    )
}

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

/// Inserts rows of these bytes in one commit, and nothing else.
fn redb_insert(rows: usize, bytes: usize, durability: Durability, folder: &Path) -> Arm {
    let database = Database::create(folder.join("plain.redb")).unwrap();
    let (row, next) = (some_bytes(bytes, 1), Cell::new(0));
    Arm::each(
        "redb insert",
        || (),
        move |()| {
            let mut write = database.begin_write().unwrap();
            write.set_durability(durability).unwrap();
            {
                let mut table = write.open_table(ROWS).unwrap();
                for _ in 0..rows {
                    table.insert(next.get(), row.as_slice()).unwrap();
                    next.set(next.get() + 1);
                }
            }
            write.commit().unwrap();
        },
    )
}

/// The log as consensus writes it: durable when it returns.
fn append(entries: usize, bytes: usize) -> Vec<Arm> {
    let (runtime, disk) = (Runtime::new().unwrap(), folder());
    let store = GroupStore::open(&options(&disk.path().join("store")), &disk_seams()).unwrap();
    let mut log = LogStore::new(store).unwrap();
    let (payload, next) = (Bytes::from(some_bytes(bytes, 1)), Cell::new(0));
    let prepare = move || {
        let first = next.get();
        next.set(first + entries as u64);
        let entry = |index| LogEntry {
            log_id: log_id::<TypeConfig>(1, 1, index),
            payload: openraft::EntryPayload::Normal(EntryBytes(payload.clone())),
        };
        (first..next.get()).map(entry).collect::<Vec<_>>()
    };
    let run = move |entries: Vec<LogEntry>| runtime.block_on(log.blocking_append(entries)).unwrap();
    let own = Arm::each("sealcast", prepare, run);
    let baselines = [
        fdatasync(entries * bytes, disk.path()),
        redb_insert(entries, bytes, Durability::Immediate, disk.path()).keep(disk),
    ];
    [own].into_iter().chain(baselines).collect()
}

/// An entry with this many parcels of one transaction, numbered from `first`.
fn entry_of(first: u32, parcels: u32) -> Entry {
    let ops = (first..first + parcels).map(|number| Op::Commit(commit(&manifest(number, vec![item(number)]))));
    Entry { time: crate::deciding::START.after(seconds(1)), ops: ops.collect() }
}

/// The pure function over a state in memory: it has no baseline but what keeping its rows costs.
fn apply_pure(transactions: u32) -> Vec<Arm> {
    let mut model = Model::founded();
    let entry = entry_of(1, transactions);
    let (index, before) = (model.index + 1, model.clone());
    let rows = model.run(&entry).rows;
    assert_eq!(rows.len(), transactions as usize, "all are committed");
    let own = Arm::fast("sealcast", move || apply(&before, index, &entry).unwrap());
    let keep_rows = move || {
        let mut kept = BTreeMap::new();
        for row in &rows {
            kept.insert((row.sender.clone(), row.transaction), row.clone());
        }
        kept
    };
    vec![own, Arm::fast("BTreeMap insert", keep_rows)]
}

/// The store's writer applies and keeps; what it made is durable with the next durable commit, as redb's rows are.
fn apply_store(transactions: u32) -> Vec<Arm> {
    let (runtime, disk) = (Runtime::new().unwrap(), folder());
    let store = GroupStore::open(&options(&disk.path().join("store")), &disk_seams()).unwrap();
    let to_apply = |index: u64, entry: Entry| {
        let id = Bytes::copy_from_slice(&index.to_be_bytes());
        vec![ApplyEntry { index, id, membership: None, entry: Some(entry) }]
    };
    runtime.block_on(store.apply(to_apply(1, Entry::founding(directory_op(&directory()))))).unwrap();
    let (first, next) = (Cell::new(1), Cell::new(2));
    let prepare = move || {
        let entries = to_apply(next.get(), entry_of(first.get(), transactions));
        next.set(next.get() + 1);
        first.set(first.get() + transactions);
        entries
    };
    let run = move |entries| {
        let applied = runtime.block_on(store.apply(entries)).unwrap();
        assert_eq!(applied[0].changes.as_ref().unwrap().rows.len(), transactions as usize, "all are committed");
        applied
    };
    let row = Model::founded().run(&entry_of(1, 1)).rows[0].encode().len();
    let baseline = redb_insert(transactions as usize, row, Durability::None, disk.path()).keep(disk);
    vec![Arm::each("sealcast", prepare, run), baseline]
}

/// Three nodes' groups in this process, each with a store of its own on the disk, calls between them in memory.
struct Three {
    runtime: Runtime,
    wires: Wires,
    next: Cell<u32>,
    _disk: TempDir,
}

impl Three {
    fn start() -> Self {
        let (runtime, disk, wires) = (Runtime::new().unwrap(), folder(), Wires::default());
        runtime.block_on(async {
            for name in NAMES {
                // Nobody needs the news.
                drop(open_group(name, &options(&disk.path().join(name)), disk_seams(), &wires).await);
            }
        });
        let three = Self { runtime, wires, next: Cell::new(1), _disk: disk };
        let founding = Entry::founding(directory_op(&directory()));
        three.runtime.block_on(three.propose(&founding));
        three
    }

    /// Until it is applied at the leader, whoever leads by then.
    async fn propose(&self, entry: &Entry) -> u64 {
        loop {
            match self.leader().await.propose(entry).await {
                Ok(index) => return index,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn leader(&self) -> Group {
        let led = || self.wires.groups.lock().unwrap().values().find(|group| group.leadership().borrow().own).cloned();
        until("a leader", led).await
    }

    fn numbers(&self, count: u32) -> u32 {
        let first = self.next.get();
        self.next.set(first + count);
        first
    }

    /// One entry with so many parcels, as the leader proposes what is staged: until it is applied at the leader.
    fn commit(&self, parcels: u32) -> u64 {
        let entry = entry_of(self.numbers(parcels), parcels);
        self.runtime.block_on(self.propose(&entry))
    }

    /// So many entries of one parcel each, all proposed at once.
    fn commit_side_by_side(&self, entries: u32) -> Vec<u64> {
        let first = self.numbers(entries);
        let entries: Vec<Entry> = (first..first + entries).map(|number| entry_of(number, 1)).collect();
        let proposed = entries.iter().map(|entry| self.propose(entry));
        self.runtime.block_on(futures_util::future::join_all(proposed))
    }
}

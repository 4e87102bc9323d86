//! R19: the power goes after every single write, sync and rename of a store's files, and keeps none, all or some of what was
//! not synced; a sync fails; the disk is full at any moment. The store starts again, nothing that was acknowledged is lost,
//! and its state is never ahead of its log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use crate::disk::CrashDisk;
use crate::ledger::{NOW, body, commit, directory_op, options, parcel, seams, transaction, try_parcel, web};
use bytes::Bytes;
use futures_util::future::join;
use sealcast::core::decide::{Entry, Manifest, View};
use sealcast::core::gather::Mark;
use sealcast::core::id::{Digest, Time};
use sealcast::core::limits;
use sealcast::seams::{Randomness, SeededRandomness};
use sealcast::store::StoreError;
use sealcast::store::group::{ApplyEntry, GroupStore, Mutation, NewBody};

const LARGE: usize = limits::SMALL_BODY_BYTES + 10_000;
/// Parcels of the scenario.
const PARCELS: u64 = 4;

/// What the store has acknowledged so far.
#[derive(Debug, Clone, Default)]
struct Acknowledged {
    /// Index of the last log entry.
    last: u64,
    vote: u8,
    /// Parcels that are staged, from 1.
    staged: u64,
    /// Bodies that were fetched, by the parcel's number.
    fetched: Vec<u64>,
}

/// What every run must come to: the entries of the log, and the state after each of them.
#[derive(Default)]
struct Expected {
    log: BTreeMap<u64, Bytes>,
    digests: BTreeMap<u64, Digest>,
    manifests: BTreeMap<u64, Manifest>,
}

/// The lengths of a parcel's bodies; a third of the parcels is rejected, so that their files go.
fn lengths(number: u64) -> Vec<usize> {
    if number.is_multiple_of(2) { vec![LARGE, 40] } else { vec![0, 70, LARGE] }
}

/// A parcel whose bodies are not here when its fate comes.
fn fetched_later(number: u64) -> bool {
    number == 3
}

async fn apply(store: &GroupStore, index: u64, bytes: &Bytes) -> Result<(), StoreError> {
    let entry = Some(Entry::decode(bytes).unwrap());
    let id = Bytes::copy_from_slice(&index.to_be_bytes());
    store.apply(vec![ApplyEntry { index, id, membership: None, entry }]).await.map(drop)
}

/// One life of a store as a node lives it: votes, entries that are applied while their fsync is under way, parcels, offsets
/// behind them, bodies that are fetched, a tail that a new leader cuts. Ends with the first error.
async fn live(store: &GroupStore, expected: &mut Expected, told: &Mutex<Acknowledged>) -> Result<(), StoreError> {
    let mut index = 0;
    for number in 0..=PARCELS {
        store.write(vec![Mutation::SaveVote(Bytes::from(vec![number as u8 + 1]))]).await?;
        told.lock().unwrap().vote = number as u8 + 1;
        let entry = if number == 0 {
            Entry::founding(directory_op())
        } else {
            let new = try_parcel(store, number, &lengths(number), None)?;
            let mut manifest = new.manifest.clone();
            if !fetched_later(number) {
                store.stage(new).await?;
                told.lock().unwrap().staged = number;
                let mark = Mark { offset: number as i64, previous: None };
                // Nobody waits for it: it rides on what comes next.
                store.submit(vec![Mutation::SetOffset { partition: 0, mark }], Box::new(drop));
            }
            if number == 4 {
                // Rejected: no life may be so long.
                manifest.items.iter_mut().for_each(|item| item.deadline = Time(NOW.0 + 1_000_000_000_000));
            }
            let entry = commit(&manifest, Time(NOW.0 + number));
            expected.manifests.insert(number, manifest);
            entry
        };
        index += 1;
        let bytes = Bytes::from(entry.encode());
        expected.log.insert(index, bytes.clone());
        // A tail that nobody commits, and that the next leader cuts.
        let append = vec![(index, bytes.clone()), (index + 1, Bytes::from_static(b"of a leader that is gone"))];
        let appended = store.write(vec![Mutation::AppendLog(append)]);
        // A majority can have it before this disk does: it is applied at once.
        let (appended, applied) = join(appended, apply(store, index, &bytes)).await;
        appended?;
        applied?;
        told.lock().unwrap().last = index;
        expected.digests.insert(index, store.progress().borrow().state_digest);
        store.write(vec![Mutation::TruncateLog { from: index + 1 }]).await?;
        if fetched_later(number) {
            let manifest = expected.manifests[&number].clone();
            for (item, length) in manifest.items.iter().zip(lengths(number)) {
                let mut writer = store.body_writer();
                writer.push(&body(number * 1000 + u64::from(item.index), length))?;
                let new = NewBody { index: item.index, body: writer.finish()?, wrapped_key: vec![3; 72] };
                store.keep_body(web(), item.transaction, manifest.digest, new).await?;
            }
            told.lock().unwrap().fetched.push(number);
        }
    }
    Ok(())
}

/// Opens what a disk has left, and finds everything there that was acknowledged.
async fn check(disk: &CrashDisk, told: &Acknowledged, expected: &Expected) -> Result<(), String> {
    let store = GroupStore::open(&options(), &seams(disk.clone(), 1)).map_err(|error| format!("opening: {error}"))?;
    let wrong = |what: String| Err(what);
    let snapshot = store.snapshot().unwrap();
    let vote = snapshot.vote().unwrap().map_or(0, |vote| vote[0]);
    if vote < told.vote || vote > told.vote + 1 {
        return wrong(format!("vote {vote}"));
    }
    let last = snapshot.log_bounds().unwrap().entries.map_or(0, |entries| *entries.end());
    let applied = snapshot.applied();
    if applied > last {
        return wrong(format!("the state is at {applied}, the log ends at {last}"));
    }
    if last < told.last {
        return wrong(format!("the log ends at {last}"));
    }
    let mut replayed = applied;
    for (index, bytes) in snapshot.log(1..last + 1, usize::MAX).unwrap() {
        let of_gone = bytes == "of a leader that is gone";
        if !of_gone && expected.log.get(&index) != Some(&bytes) {
            return wrong(format!("entry {index} is another one"));
        }
        if index > applied && !of_gone {
            apply(&store, index, &bytes).await.map_err(|error| format!("applying {index}: {error}"))?;
            replayed = index;
        }
    }
    if replayed < told.last {
        return wrong(format!("after the replay the state is at {replayed}"));
    }
    let digest = store.progress().borrow().state_digest;
    if replayed > 0 && digest != expected.digests[&replayed] {
        return wrong(format!("the state after {replayed} is another one"));
    }
    let snapshot = store.snapshot().unwrap();
    let offset = snapshot.offset(0).unwrap().map_or(0, |mark| mark.offset as u64);
    for (number, manifest) in &expected.manifests {
        let committed = snapshot.transaction(&web(), transaction(number * 1000)).unwrap();
        let staged = snapshot.staged(&manifest.digest).unwrap().is_some();
        let here = told.fetched.contains(number) || (told.staged >= *number && !fetched_later(*number));
        if here && committed.is_none() && !staged {
            return wrong(format!("parcel {number} was staged and is gone"));
        }
        if offset >= *number && !fetched_later(*number) && committed.is_none() && !staged {
            return wrong(format!("the offset passed parcel {number}, which is not here"));
        }
        let kept = staged || committed.is_some_and(|row| row.is_committed());
        for (item, length) in manifest.items.iter().zip(lengths(*number)) {
            let found = snapshot.body(&manifest.digest, item.index).map_err(|error| format!("a body: {error}"))?;
            match found {
                Some(found) => {
                    let same = found.reader.read(0, usize::MAX).ok();
                    let bytes = body(number * 1000 + u64::from(item.index), length);
                    if same.as_deref() != Some(bytes.as_slice()) {
                        return wrong(format!("a body of parcel {number} is another one"));
                    }
                }
                None if here && kept => return wrong(format!("a body of parcel {number} is gone")),
                None => {}
            }
        }
    }
    drop(snapshot);
    // It goes on: what is new is taken.
    let new = parcel(&store, 9, &[10, LARGE], None);
    store.stage(new).await.map_err(|error| format!("going on: {error}"))?;
    store.close();
    Ok(())
}

fn new_store(disk: &CrashDisk) -> Result<GroupStore, StoreError> {
    GroupStore::open(&options(), &seams(disk.clone(), 1))
}

/// The run that nothing disturbs.
async fn undisturbed() -> Expected {
    let mut expected = Expected::default();
    let store = new_store(&CrashDisk::new()).unwrap();
    live(&store, &mut expected, &Mutex::default()).await.unwrap();
    expected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_the_power_may_go_after_every_write_sync_and_rename_and_keep_none_all_or_some() {
    let expected = undisturbed().await;
    let disk = CrashDisk::new();
    let told = Arc::new(Mutex::new(Acknowledged::default()));
    let (images, checked) = mpsc::sync_channel::<(u64, &'static str, Acknowledged, CrashDisk)>(8);
    let count = Arc::new(AtomicU64::new(0));
    let (counting, telling, cutting) = (count.clone(), told.clone(), disk.clone());
    let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(19));
    disk.after_each(move || {
        let at = counting.fetch_add(1, Ordering::SeqCst);
        let told = telling.lock().unwrap().clone();
        let mut some = || drawn.array::<1>().unwrap()[0] % 2 == 0;
        let left = [
            ("none", cutting.crash()),
            ("all", cutting.killed()),
            ("some", cutting.crash_keeping(&mut some)),
            ("some others", cutting.crash_keeping(&mut some)),
        ];
        for (what, image) in left {
            // Whoever checks may have found something, and have ended.
            let _ = images.send((at, what, told.clone(), image));
        }
    });
    let checking = tokio::task::spawn_blocking(move || {
        let mut wrong = Vec::new();
        while let Ok((at, what, told, image)) = checked.recv() {
            if let Err(cause) = tokio::runtime::Handle::current().block_on(check(&image, &told, &expected)) {
                wrong.push(format!("cut after change {at}, {what} of the rest kept, {told:?}: {cause}"));
            }
        }
        wrong
    });
    let opening = disk.clone();
    let store = tokio::task::spawn_blocking(move || new_store(&opening)).await.unwrap().unwrap();
    live(&store, &mut Expected::default(), &told).await.unwrap();
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
    disk.after_each(|| {});
    let wrong = checking.await.unwrap();
    assert_eq!(wrong, [""; 0], "{} of {} cuts", wrong.len(), 4 * count.load(Ordering::SeqCst));
    assert!(count.load(Ordering::SeqCst) > 100, "every change is looked at: {count:?}");
}

/// Lives until the disk fails, and gives what was acknowledged by then; the store must have stopped, and stay so.
async fn live_until_it_fails(disk: &CrashDisk) -> (Acknowledged, bool) {
    let told = Mutex::new(Acknowledged::default());
    let failed = match new_store(disk) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            true
        }
        Ok(store) => {
            let outcome = live(&store, &mut Expected::default(), &told).await;
            if let Err(error) = &outcome {
                let stopped = matches!(error, StoreError::Stopped { .. });
                let harmless = matches!(error, StoreError::DiskFull { .. } | StoreError::Unwritten { .. });
                let of_a_file = matches!(error, StoreError::Failed { .. });
                assert!(stopped || harmless || of_a_file, "{error}");
                if stopped {
                    // The disk is well again, and it is not asked: what it kept of the last write nobody knows.
                    let again = store.write(vec![Mutation::SaveVote(Bytes::from_static(b"x"))]).await;
                    assert!(matches!(again, Err(StoreError::Stopped { .. })), "{again:?}");
                }
            }
            tokio::task::block_in_place(|| store.close());
            outcome.is_err()
        }
    };
    (told.into_inner().unwrap(), failed)
}

/// The disk as the next start may find it.
fn left(disk: &CrashDisk, seed: u64) -> Vec<CrashDisk> {
    let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(seed));
    vec![disk.killed(), disk.crash(), disk.crash_keeping(|| drawn.array::<1>().unwrap()[0] % 2 == 0)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_a_sync_that_fails_once_stops_the_store_and_loses_nothing_acknowledged() {
    let expected = undisturbed().await;
    let mut number = 0;
    loop {
        number += 1;
        let disk = CrashDisk::new();
        disk.fail_one_sync(number);
        let (told, failed) = live_until_it_fails(&disk).await;
        if !failed {
            break;
        }
        for image in left(&disk, number) {
            let found = check(&image, &told, &expected).await;
            assert_eq!(found, Ok(()), "sync {number} failed, {told:?} was acknowledged");
        }
    }
    assert!(number > 10, "every sync is tried: {number}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_a_disk_that_is_full_at_any_moment_loses_nothing_acknowledged() {
    let expected = undisturbed().await;
    let mut tried = 0;
    // Not every change, for the sake of time; none is left out by its kind.
    for changes in (1..).step_by(7) {
        let disk = CrashDisk::new();
        disk.fill_after(changes);
        let (told, failed) = live_until_it_fails(&disk).await;
        if !failed {
            break;
        }
        tried += 1;
        for image in left(&disk, changes) {
            let found = check(&image, &told, &expected).await;
            assert_eq!(found, Ok(()), "full after {changes} changes, {told:?} was acknowledged");
        }
    }
    assert!(tried > 10, "it fills at many moments: {tried}");
}

/// A vote and a log.
type Found = (Option<Vec<u8>>, Vec<(u64, Bytes)>);

/// What a store says of them; or why it does not start, by name.
fn opened(disk: &CrashDisk) -> Result<Found, String> {
    let store = new_store(disk).map_err(|error| error.to_string())?;
    let snapshot = store.snapshot().map_err(|error| error.to_string())?;
    let vote = snapshot.vote().map_err(|error| error.to_string())?;
    let log = snapshot.log(0..u64::MAX, usize::MAX).map_err(|error| error.to_string())?;
    Ok((vote, log))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_a_file_with_a_damaged_byte_starts_with_the_same_log_or_refuses_by_name() {
    let disk = CrashDisk::new();
    let store = new_store(&disk).unwrap();
    live(&store, &mut Expected::default(), &Mutex::default()).await.unwrap();
    tokio::task::block_in_place(|| store.close());
    let path = options().folder.join("group.redb");
    let length = disk.bytes(&path).len() as u64;
    let whole = opened(&disk.killed()).unwrap();
    let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(23));
    let mut refused = 0;
    // Every place of the file's own header, and places everywhere.
    let places = (0..320).chain((0..200).map(|_| u64::from_be_bytes(drawn.array().unwrap()) % length));
    for at in places {
        let damaged = disk.killed();
        damaged.flip(&path, at as usize);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| opened(&damaged)));
        match found.unwrap_or_else(|_| panic!("damage at {at} of {length} ends in a panic")) {
            Ok(found) => assert_eq!(found, whole, "damage at {at} of {length}"),
            Err(cause) => {
                assert!(!cause.is_empty());
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

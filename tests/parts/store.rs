//! The group's store: what is acknowledged survives a power cut, fates and bodies fit together, damage is named.

mod ranks;

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::disk::CrashDisk;
use crate::ledger::{NOW, body, commit, directory_op, options, parcel, seams, transaction, web};
use bytes::Bytes;
use sealcast::core::decide::{Decision, Entry, Op, View};
use sealcast::core::gather::{Address, DeferReason, Identity, Mark};
use sealcast::core::id::{Digest, KeyTag, Position, Time};
use sealcast::core::limits;
use sealcast::store::StoreError;
use sealcast::store::group::{Applied, ApplyEntry, DeferredRow, GroupStore, ItemStanding, Mutation, NewBody};

fn undefer(at: Address) -> Mutation {
    Mutation::Undefer { partition: at.partition, offsets: at.offset..=at.offset }
}

fn open(disk: &CrashDisk) -> GroupStore {
    GroupStore::open(&options(), &seams(disk.clone(), 1)).unwrap()
}

async fn apply(store: &GroupStore, index: u64, entry: Entry) -> Applied {
    let id = Bytes::copy_from_slice(&index.to_be_bytes());
    let entries = vec![ApplyEntry { index, id, membership: None, entry: Some(entry) }];
    store.apply(entries).await.unwrap().pop().unwrap()
}

async fn founded(disk: &CrashDisk) -> GroupStore {
    let store = open(disk);
    apply(&store, 1, Entry::founding(directory_op())).await;
    store
}

/// A durable write, and another: files go after the first is answered, and before the second is begun.
async fn settle(store: &GroupStore) {
    for _ in 0..2 {
        store.write(vec![Mutation::Note { name: "n".to_owned(), value: Bytes::from_static(b"1") }]).await.unwrap();
    }
}

const LARGE: usize = limits::SMALL_BODY_BYTES + 100_000;

#[tokio::test]
async fn r19_staged_bodies_and_rows_survive_a_power_cut() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[0, 10, LARGE], None);
    let manifest = new.manifest.clone();
    let standings = store.stage(new).await.unwrap();
    assert!(standings.iter().all(|(_, standing)| *standing == ItemStanding::Undecided));

    let store = open(&disk.crash());
    let snapshot = store.snapshot().unwrap();
    let staged = snapshot.staged(&manifest.digest).unwrap().unwrap();
    assert_eq!(staged.manifest, manifest);
    assert_eq!(staged.left, 3);
    for (index, length) in [(0, 0), (1, 10), (2, LARGE)] {
        let found = snapshot.body(&manifest.digest, index).unwrap().unwrap();
        assert_eq!(found.wrapped_key, vec![3; 72]);
        assert_eq!(found.length, length as u64);
        assert_eq!(found.reader.read(0, usize::MAX).unwrap(), body(1000 + u64::from(index), length));
        assert_eq!(found.reader.read(length as u64, 10).unwrap().len(), 0);
        assert!(found.reader.matches(&found.digest).unwrap());
    }
    assert_eq!(snapshot.undecided(&web(), &transaction(1002)).unwrap(), vec![(manifest.digest, 2)]);
    assert_eq!(snapshot.counts().unwrap().undecided, 3);
}

#[tokio::test]
async fn a_body_that_was_never_staged_leaves_no_file() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let before = disk.files().len();
    let mut writer = store.body_writer();
    writer.push(&body(1, LARGE)).unwrap();
    drop(writer);
    let mut writer = store.body_writer();
    writer.push(&body(1, LARGE)).unwrap();
    drop(writer.finish().unwrap());
    assert_eq!(disk.files().len(), before);
    // Half written when the power went: swept at the next start.
    let mut writer = store.body_writer();
    writer.push(&body(1, LARGE)).unwrap();
    assert_eq!(disk.files().len(), before + 1);
    std::mem::forget(writer);
    store.close();
    drop(store);
    drop(open(&disk));
    assert_eq!(disk.files().len(), before);
}

#[tokio::test]
async fn a_commit_makes_a_row_and_keeps_the_body_and_a_rejection_drops_it() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let kept = parcel(&store, 1, &[LARGE], Some(4));
    let other = parcel(&store, 2, &[LARGE], None);
    let (one, mut two) = (kept.manifest.clone(), other.manifest.clone());
    store.stage(kept).await.unwrap();
    store.stage(other).await.unwrap();

    let applied = apply(&store, 2, commit(&one, NOW)).await;
    assert_eq!(applied.settled.len(), 1);
    assert!(matches!(&applied.settled[0].standing, ItemStanding::Decided(row) if row.is_committed()));

    // The second one's deadline is later than its life allows: the log names it so, and it is rejected.
    two.items[0].deadline = Time(NOW.0 + 1_000_000_000_000);
    let applied = apply(&store, 3, commit(&two, NOW)).await;
    assert!(matches!(applied.changes.unwrap().rows[0].decision, Decision::Rejected(_)));
    settle(&store).await;

    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.has_body(&one.digest, 0).unwrap());
    assert!(!snapshot.has_body(&two.digest, 0).unwrap());
    assert_eq!(disk.files().iter().filter(|path| path.starts_with("/node/orders/bodies")).count(), 1);
    assert!(snapshot.staged(&one.digest).unwrap().is_none());
    let row = snapshot.transaction(&web(), transaction(1000)).unwrap().unwrap();
    assert_eq!(row.position, Position { index: 2, number: 0 });
    assert_eq!(snapshot.rows_of(&transaction(1000)).unwrap(), vec![row.clone()]);
    assert_eq!(snapshot.rows_beginning(&transaction(1000).to_bytes()[..5], 10).unwrap().len(), 2);
    assert_eq!(snapshot.latest_of_key(&KeyTag([4; 16]), snapshot.held().unwrap()).unwrap(), Some(row.clone()));
    assert_eq!(snapshot.key_version(KeyTag([4; 16])).unwrap(), Some(row.position));
    assert_eq!(snapshot.first_of_last(snapshot.held().unwrap(), 5).unwrap(), Some(row));
    let counts = snapshot.counts().unwrap();
    assert_eq!((counts.committed, counts.rejected, counts.undecided, counts.bytes), (1, 1, 0, LARGE as u64));
}

#[tokio::test]
async fn r01_a_body_of_another_d_goes_when_its_transaction_is_committed_from_one() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = |number, of| {
        let mut new = parcel(&store, number, &[LARGE], None);
        new.manifest.items[0].transaction = transaction(of);
        new
    };
    let [first, second, late] = [1, 2, 3].map(|number| new(number, 1000));
    let [one, two, three] = [&first, &second, &late].map(|new| new.manifest.clone());
    store.stage(first).await.unwrap();
    store.stage(second).await.unwrap();
    apply(&store, 2, commit(&one, NOW)).await;
    store.stage(late).await.unwrap();
    settle(&store).await;
    let snapshot = store.snapshot().unwrap();
    assert_eq!([&one, &two, &three].map(|it| snapshot.has_body(&it.digest, 0).unwrap()), [true, false, false]);
    assert_eq!(snapshot.counts().unwrap().bytes, LARGE as u64);
    assert_eq!(disk.files().iter().filter(|path| path.starts_with("/node/orders/bodies")).count(), 1);
    // Nor is a fetched one kept that is of another D.
    let mut writer = store.body_writer();
    writer.push(&body(1, 10)).unwrap();
    let fetched = NewBody { index: 0, body: writer.finish().unwrap(), wrapped_key: vec![1] };
    store.keep_body(web(), transaction(1000), two.digest, fetched).await.unwrap();
    assert!(!store.snapshot().unwrap().has_body(&two.digest, 0).unwrap());
}

#[tokio::test]
async fn r11_a_missing_body_holds_the_held_prefix_back_until_it_is_fetched() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let scratch = CrashDisk::new();
    let elsewhere = open(&scratch);
    let mut manifests = Vec::new();
    for number in 1..=3 {
        // The second is staged on another node only.
        let on = if number == 2 { &elsewhere } else { &store };
        let new = parcel(on, number, &[100], None);
        manifests.push(new.manifest.clone());
        on.stage(new).await.unwrap();
    }
    for (index, manifest) in (2..).zip(&manifests) {
        apply(&store, index, commit(manifest, Time(NOW.0 + index))).await;
    }
    let at = |index| Position { index, number: 0 };
    assert_eq!(store.progress().borrow().held, at(2));
    let snapshot = store.snapshot().unwrap();
    let missing = snapshot.missing(Position::default(), 10).unwrap();
    assert_eq!(missing.iter().map(|row| row.position).collect::<Vec<_>>(), vec![at(3)]);
    assert_eq!(snapshot.rows_after(at(0), snapshot.held().unwrap(), 10).unwrap().len(), 1);

    let mut writer = store.body_writer();
    writer.push(&body(2000, 100)).unwrap();
    let fetched = NewBody { index: 0, body: writer.finish().unwrap(), wrapped_key: vec![1] };
    store.keep_body(web(), transaction(2000), manifests[1].digest, fetched).await.unwrap();
    assert_eq!(store.progress().borrow().held, at(4));
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.rows_after(at(2), snapshot.held().unwrap(), 10).unwrap().len(), 2);
    assert_eq!(snapshot.before(Time(NOW.0 + 3)).unwrap(), at(2));
    assert_eq!(snapshot.before(Time(0)).unwrap(), at(0));
    assert_eq!(snapshot.before(Time(u64::MAX)).unwrap(), at(4));
}

#[tokio::test]
async fn r07_group_time_expires_what_is_staged_and_a_late_parcel_is_not_kept() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[LARGE, 5], None);
    let digest = new.manifest.digest;
    store.stage(new).await.unwrap();
    let deadline = Time(NOW.0 + 60_000);
    let tick = |time| Entry { time, ops: Vec::new() };
    assert!(apply(&store, 2, tick(deadline)).await.settled.is_empty(), "at the deadline it has not passed");
    let applied = apply(&store, 3, tick(Time(deadline.0 + 1))).await;
    assert_eq!(applied.settled.len(), 2);
    assert!(applied.settled.iter().all(|settled| settled.standing == ItemStanding::Expired));
    settle(&store).await;
    let again = store.stage(parcel(&store, 1, &[LARGE, 5], None)).await.unwrap();
    assert!(again.iter().all(|(_, standing)| *standing == ItemStanding::Expired));
    // Body files go after the next durable commit.
    settle(&store).await;
    let snapshot = store.snapshot().unwrap();
    assert!(snapshot.staged(&digest).unwrap().is_none());
    assert_eq!(snapshot.counts().unwrap(), Default::default());
    assert!(disk.files().iter().all(|path| !path.starts_with("/node/orders/bodies")));
}

#[tokio::test]
async fn one_id_twice_in_a_parcel_cannot_lose_a_body() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let mut new = parcel(&store, 1, &[10, 20], None);
    new.manifest.items[1].transaction = new.manifest.items[0].transaction;
    let mut manifest = new.manifest.clone();
    store.stage(new).await.unwrap();
    manifest.items.remove(0);
    apply(&store, 2, commit(&manifest, NOW)).await;
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.held().unwrap(), Position { index: 2, number: 0 });
    assert!(snapshot.has_body(&manifest.digest, 1).unwrap());
    assert!(!snapshot.has_body(&manifest.digest, 0).unwrap());
    assert_eq!(snapshot.counts().unwrap().undecided, 0);
}

#[tokio::test]
async fn r19_what_apply_computed_never_outruns_the_log() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[10], None);
    let manifest = new.manifest.clone();
    store.stage(new).await.unwrap();
    let before = disk.crash();
    let syncs = disk.syncs.load(Ordering::SeqCst);
    apply(&store, 2, commit(&manifest, NOW)).await;
    assert_eq!(disk.syncs.load(Ordering::SeqCst), syncs, "apply alone needs no fsync");
    assert_eq!(store.snapshot().unwrap().applied(), 2);
    drop(before);
    // Cut now: the state is that of before the entry, and applying it again gives the same.
    let again = open(&disk.crash());
    assert_eq!(again.snapshot().unwrap().applied(), 1);
    apply(&again, 2, commit(&manifest, NOW)).await;
    assert_eq!(again.progress().borrow().clone(), store.progress().borrow().clone());
    // With the next durable commit it is durable too.
    settle(&store).await;
    assert_eq!(open(&disk.crash()).snapshot().unwrap().applied(), 2);
}

#[tokio::test]
async fn r19_a_bodys_file_goes_only_when_its_row_is_gone_for_good() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[LARGE], None);
    let digest = new.manifest.digest;
    store.stage(new).await.unwrap();
    let expired = Entry { time: Time(NOW.0 + 60_001), ops: Vec::new() };
    let applied = apply(&store, 2, expired).await;
    assert_eq!(applied.settled.len(), 1);
    // What apply computed is not durable: after a power cut the row is there again, whatever else the disk kept.
    for disk in [disk.crash(), disk.killed()] {
        let found = open(&disk).snapshot().unwrap().body(&digest, 0).unwrap().unwrap();
        assert_eq!(found.reader.read(0, usize::MAX).unwrap(), body(1000, LARGE));
    }
    settle(&store).await;
    assert!(disk.files().iter().all(|path| !path.starts_with("/node/orders/bodies")));
}

#[tokio::test]
async fn r19_one_commit_serves_all_that_wait() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let syncs = disk.syncs.load(Ordering::SeqCst);
    let vote = |number: u8| store.write(vec![Mutation::SaveVote(Bytes::from(vec![number]))]);
    futures_util::future::join_all((0..200).map(vote)).await.into_iter().for_each(|result| result.unwrap());
    let used = disk.syncs.load(Ordering::SeqCst) - syncs;
    assert!(used < 100, "{used} fsyncs for 200 writes");
    assert_eq!(store.snapshot().unwrap().vote().unwrap(), Some(vec![199]));
}

#[tokio::test]
async fn r19_a_failed_fsync_stops_the_store_for_good() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    disk.fail_syncs();
    let error = store.write(vec![Mutation::SaveVote(Bytes::from_static(b"v"))]).await.unwrap_err();
    assert!(matches!(error, StoreError::Stopped { .. }), "{error}");
    assert!(store.failed().await.contains("the disk is broken"));
    let error = store.stage(parcel(&store, 1, &[1], None)).await.unwrap_err();
    assert!(matches!(error, StoreError::Stopped { .. }), "{error}");
}

#[tokio::test]
async fn r19_a_full_disk_refuses_what_is_new_and_finishes_what_it_took() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[10], None);
    let manifest = new.manifest.clone();
    store.stage(new).await.unwrap();
    disk.set_free(1000);
    let error = store.stage(parcel(&store, 2, &[10], None)).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }) && error.retryable(), "{error}");
    store.write(vec![Mutation::AppendLog(vec![(1, Bytes::from_static(b"entry"))])]).await.unwrap();
    apply(&store, 2, commit(&manifest, NOW)).await;
    disk.set_free(u64::MAX);
    store.stage(parcel(&store, 2, &[10], None)).await.unwrap();
}

#[tokio::test]
async fn large_bodies_leave_the_reserve_alone() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let before = disk.files();
    let full = |error: StoreError| assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    // It was written while there was room, and is refused: the file goes with it.
    let new = parcel(&store, 1, &[LARGE], None);
    disk.set_free(1000);
    full(store.stage(new).await.unwrap_err());
    assert_eq!(disk.files(), before);
    // No file is begun, and one that was begun is not finished.
    full(store.body_writer().push(&body(1, LARGE)).unwrap_err());
    disk.set_free(u64::MAX);
    let mut writer = store.body_writer();
    writer.push(&body(1, LARGE)).unwrap();
    disk.set_free(1000);
    let ends = (0..64).find_map(|_| writer.push(&body(1, LARGE)).err());
    full(ends.expect("it does not go on for ever"));
    drop(writer);
    assert_eq!(disk.files(), before);
    disk.set_free(u64::MAX);
    store.stage(parcel(&store, 1, &[LARGE], None)).await.unwrap();
}

#[tokio::test]
async fn a_body_that_gets_no_file_is_lost_alone() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    disk.refuse_bodies(Some(ErrorKind::StorageFull));
    let error = store.body_writer().push(&body(1, LARGE)).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    disk.refuse_bodies(Some(ErrorKind::PermissionDenied));
    let error = store.body_writer().push(&body(1, LARGE)).unwrap_err();
    assert!(matches!(error, StoreError::Unwritten { .. }) && error.retryable(), "{error}");
    disk.refuse_bodies(None);
    store.stage(parcel(&store, 1, &[LARGE], None)).await.unwrap();
}

#[tokio::test]
async fn r16_no_offset_passes_a_note_that_a_full_disk_refused() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let at = Address { partition: 3, offset: 41 };
    let row = DeferredRow { since: NOW, reason: DeferReason::Stalled };
    let refusal = || Mutation::Refuse { digest: Digest([7; 32]), notice: Bytes::from_static(b"signed") };
    let mark = Mark { offset: 42, previous: Some((41, Identity::of(b"key", b"value"))) };
    let advance = || store.write(vec![Mutation::SetOffset { partition: 3, mark }]);
    let full = |result| assert!(matches!(result, Err(StoreError::DiskFull { .. })), "{result:?}");
    disk.set_free(1000);
    advance().await.unwrap();
    full(store.write(vec![Mutation::Defer { at, row }]).await);
    full(store.write(vec![refusal()]).await);
    full(advance().await);
    // Free space alone notes nothing.
    disk.set_free(u64::MAX);
    full(advance().await);
    store.write(vec![Mutation::Defer { at, row }]).await.unwrap();
    full(advance().await);
    store.write(vec![refusal()]).await.unwrap();
    advance().await.unwrap();
    // What is done with meanwhile needs no note.
    disk.set_free(1000);
    full(store.write(vec![Mutation::Defer { at, row }]).await);
    store.write(vec![undefer(at), Mutation::SetOffset { partition: 3, mark }]).await.unwrap();
}

#[tokio::test]
async fn the_folders_of_a_new_store_survive_a_power_cut() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let incarnation = store.incarnation();
    assert_eq!(open(&disk.crash()).incarnation(), incarnation, "the database is there, in a folder that is there");
    let new = parcel(&store, 1, &[LARGE], None);
    let digest = new.manifest.digest;
    store.stage(new).await.unwrap();
    let found = open(&disk.crash()).snapshot().unwrap().body(&digest, 0).unwrap().unwrap();
    assert!(found.reader.matches(&found.digest).unwrap());
}

#[tokio::test]
async fn a_store_that_was_closed_leaves_its_folder_free_whoever_still_has_it() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[10], None);
    let digest = new.manifest.digest;
    store.stage(new).await.unwrap();
    let (clone, left) = (store.clone(), store.snapshot().unwrap());
    assert!(matches!(GroupStore::open(&options(), &seams(disk.clone(), 1)), Err(StoreError::Open(_))), "it is in use");
    store.close();
    let again = open(&disk);
    assert!(again.snapshot().unwrap().has_body(&digest, 0).unwrap());
    // The closed one writes nothing more, also not when the last of it goes.
    assert!(matches!(clone.snapshot(), Err(StoreError::Stopped { .. })));
    let note = Mutation::Note { name: "n".to_owned(), value: Bytes::from_static(b"1") };
    assert!(matches!(clone.write(vec![note]).await, Err(StoreError::Stopped { .. })));
    drop((store, clone, left));
    assert!(
        matches!(GroupStore::open(&options(), &seams(disk.clone(), 1)), Err(StoreError::Open(_))),
        "by the new one"
    );
    settle(&again).await;
}

#[tokio::test]
async fn r19_a_damaged_log_refuses_to_start() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let marked = Bytes::from_static(b"an entry that is easy to find");
    store.write(vec![Mutation::AppendLog(vec![(1, marked.clone()), (2, marked.clone())])]).await.unwrap();
    store.close();
    drop(store);
    let path = options().folder.join("group.redb");
    let bytes = disk.bytes(&path);
    let places: Vec<_> = (0..bytes.len() - marked.len()).filter(|at| bytes[*at..].starts_with(&marked)).collect();
    assert!(!places.is_empty());
    for at in places {
        disk.flip(&path, at);
    }
    let error = GroupStore::open(&options(), &seams(disk.clone(), 1)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Open(_)), "{error}");
}

#[tokio::test]
async fn r19_a_log_with_a_hole_refuses_to_start() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let entry = |index| (index, Bytes::from_static(b"entry"));
    store.write(vec![Mutation::AppendLog(vec![entry(1), entry(3)])]).await.unwrap();
    store.close();
    drop(store);
    let error = GroupStore::open(&options(), &seams(disk, 1)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { table: "log", .. }), "{error}");
}

#[tokio::test]
async fn r16_a_note_is_durable_when_it_is_acknowledged() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let at = Address { partition: 2, offset: 9 };
    let row = DeferredRow { since: NOW, reason: DeferReason::UnknownSender };
    store.write(vec![Mutation::Defer { at, row }]).await.unwrap();
    assert_eq!(open(&disk.crash()).snapshot().unwrap().deferred().unwrap(), vec![(at, row)]);
}

#[tokio::test]
async fn r22_a_refusal_is_durable_when_it_is_acknowledged() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let digest = Digest([8; 32]);
    store.write(vec![Mutation::Refuse { digest, notice: Bytes::from_static(b"signed") }]).await.unwrap();
    assert_eq!(open(&disk.crash()).snapshot().unwrap().refusal(&digest).unwrap().unwrap(), "signed");
}

#[tokio::test]
async fn r24_the_envelope_goes_when_all_have_a_fate() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let new = parcel(&store, 1, &[10, 20], None);
    let manifest = new.manifest.clone();
    store.stage(new).await.unwrap();
    let mut first = commit(&manifest, NOW);
    if let Some(Op::Commit(commit)) = first.ops.first_mut() {
        commit.items.truncate(1);
    }
    apply(&store, 2, first).await;
    let left = |store: &GroupStore| store.snapshot().unwrap().staged(&manifest.digest).unwrap().map(|row| row.left);
    assert_eq!(left(&store), Some(1), "the other one may need it");
    apply(&store, 3, commit(&manifest, NOW)).await;
    assert_eq!(left(&store), None);
    settle(&store).await;
    assert_eq!(left(&open(&disk.crash())), None);
}

#[tokio::test]
async fn r19_no_entry_is_applied_twice() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    let time = |second: u64| Entry { time: Time(NOW.0 + second), ops: Vec::new() };
    apply(&store, 2, time(1)).await;
    let digest = store.progress().borrow().state_digest;
    let again = ApplyEntry { index: 2, id: Bytes::from_static(b"2"), membership: None, entry: Some(time(2)) };
    assert!(store.apply(vec![again]).await.is_err());
    assert_eq!(store.progress().borrow().state_digest, digest);
}

#[tokio::test]
async fn offsets_deferred_addresses_and_refusals_come_back() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let incarnation = store.incarnation();
    let mark = Mark { offset: 7, previous: Some((6, Identity(Digest([4; 32])))) };
    let address = |offset| Address { partition: 2, offset };
    let row = DeferredRow { since: NOW, reason: DeferReason::UnknownSender };
    let defer = |at| Mutation::Defer { at: address(at), row };
    let refuse = Mutation::Refuse { digest: Digest([8; 32]), notice: Bytes::from_static(b"signed") };
    let offset = Mutation::SetOffset { partition: 2, mark };
    store.write(vec![offset, defer(10), defer(9), defer(9), refuse]).await.unwrap();
    store.write(vec![undefer(address(10))]).await.unwrap();
    settle(&store).await;

    let store = open(&disk.crash());
    assert_eq!(store.incarnation(), incarnation);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.offset(2).unwrap(), Some(mark));
    assert_eq!(snapshot.offset(1).unwrap(), None);
    assert_eq!(snapshot.deferred().unwrap(), vec![(address(9), row)]);
    assert_eq!(snapshot.refusal(&Digest([8; 32])).unwrap().unwrap(), "signed");
}

#[tokio::test]
async fn another_destinations_folder_and_a_second_process_are_refused() {
    let disk = CrashDisk::new();
    let store = open(&disk);
    let error = GroupStore::open(&options(), &seams(disk.clone(), 1)).unwrap_err();
    assert!(matches!(&error, StoreError::Open(_)) && error.retryable(), "{error}");
    store.close();
    drop(store);
    let mut other = options();
    other.destination = "billing".parse().unwrap();
    let error = GroupStore::open(&other, &seams(disk, 1)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { table: "meta", .. }), "{error}");
}

/// The way of many commits, cut at many moments: whatever was acknowledged is there, and the state follows from the log.
#[tokio::test]
async fn r19_every_acknowledged_write_is_there_after_a_cut_at_any_moment() {
    let disk = CrashDisk::new();
    let store = founded(&disk).await;
    for number in 1..=20u64 {
        let new = parcel(&store, number, &[50, if number % 5 == 0 { LARGE } else { 70 }], None);
        let manifest = new.manifest.clone();
        store.stage(new).await.unwrap();
        let entry = Bytes::from(commit(&manifest, NOW).encode());
        store.write(vec![Mutation::AppendLog(vec![(number + 1, entry)])]).await.unwrap();
        let cut = open(&disk.crash());
        let snapshot = cut.snapshot().unwrap();
        let last = *snapshot.log_bounds().unwrap().entries.unwrap().end();
        assert_eq!(last, number + 1);
        for index in snapshot.applied() + 1..=last {
            let (_, bytes) = snapshot.log(index..index + 1, usize::MAX).unwrap().pop().unwrap();
            apply(&cut, index, Entry::decode(&bytes).unwrap()).await;
        }
        apply(&store, number + 1, commit(&manifest, NOW)).await;
        assert_eq!(cut.progress().borrow().state_digest, store.progress().borrow().state_digest);
        let held = Position { index: number + 1, number: 1 };
        assert_eq!(cut.progress().borrow().held, held);
        assert_eq!(store.progress().borrow().held, held);
    }
    let stopped = tokio::time::timeout(Duration::from_millis(10), store.failed()).await;
    assert!(stopped.is_err(), "nothing failed");
}

//! The outbox keeps exactly what was sealed, durably or not at all, within its limit (R3).

use std::path::Path;

use crate::disk::CrashDisk;
use crate::ledger;
use sealcast::core::id::{Digest, ParcelId, PayloadTag, Position, Time, TransactionId};
use sealcast::seams::Seams;
use sealcast::store::outbox::{
    Bodies, Change, NewBody, NewParcel, Outbox, OutboxError, OutboxOptions, Outcome, OutcomeRow, ParcelRow,
    StripeFrame, TransactionRow,
};

fn parcel(number: u8) -> ParcelId {
    ParcelId::from_parts(Time(1_700_000_000_000), [number; 10])
}

fn transaction(number: u8) -> TransactionId {
    TransactionId::from_parts(Time(1_700_000_000_000), [number; 10])
}

fn frames(stripes: usize, bytes: usize) -> Vec<StripeFrame> {
    (0..stripes)
        .map(|stripe| StripeFrame {
            header: vec![stripe as u8; 200].into(),
            signature: [9; 64],
            sealed: vec![stripe as u8 + 1; if stripe + 1 == stripes { bytes / 3 + 1 } else { bytes }].into(),
        })
        .collect()
}

fn options(folder: Option<&Path>, bytes: u64) -> OutboxOptions {
    OutboxOptions { folder: folder.map(Path::to_owned), bytes }
}

fn new_parcel(outbox: &Outbox, number: u8, body: NewBody, bytes: u64) -> NewParcel {
    NewParcel {
        row: ParcelRow {
            parcel: parcel(number),
            destinations: vec!["orders".parse().unwrap()],
            expiry: Time(77),
            digest: Digest([number; 32]),
            stripes: 0,
            sealed_bytes: 0,
            frame_bytes: 0,
            bodies: Bodies::Row,
            notices_from: vec![(0, 17), (1, 4)],
        },
        body,
        transactions: vec![TransactionRow {
            id: transaction(number),
            deadline: Time(5),
            submitted: Time(1),
            number: 40 + u64::from(number),
            parcel: parcel(number),
            index: 0,
            payload_bytes: 11,
            payload_tag: PayloadTag([3; 32]),
            wrapped_key: vec![1; 72],
            ordering_key: Some(b"customer-42".to_vec()),
            outcomes: vec![OutcomeRow::submitted("orders".parse().unwrap(), Time(1))],
        }],
        reservation: outbox.reserve(bytes).unwrap(),
    }
}

#[tokio::test]
async fn r03_what_was_added_is_there_again_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (small, large) = (frames(2, 1000), frames(5, 100_000));
    {
        let (outbox, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
        assert!(contents.parcels.is_empty() && contents.abandoned.is_empty());
        let mut file = outbox.start_file(parcel(2)).unwrap();
        outbox.append(&mut file, &large[..3]).unwrap();
        outbox.append(&mut file, &large[3..]).unwrap();
        let one = new_parcel(&outbox, 1, NewBody::Frames(small.clone()), 4000);
        let two = new_parcel(&outbox, 2, NewBody::File(file), 600_000);
        outbox.add(vec![one, two]).await.unwrap();
        outbox.close(&*Seams::real().clock).await;
    }
    let (outbox, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
    assert_eq!(contents.parcels.len(), 2);
    assert_eq!(contents.transactions.len(), 2);
    for (row, frames) in contents.parcels.iter().zip([&small, &large]) {
        assert_eq!(row.notices_from, [(0, 17), (1, 4)]);
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(outbox.stripe(row, index as u32).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(outbox.stripe(row, frames.len() as u32).unwrap(), None);
    }
    assert_eq!(contents.transactions.iter().map(|row| row.number).collect::<Vec<_>>(), [41, 42]);
    assert_eq!(outbox.bytes().0, contents.parcels.iter().map(|row| row.sealed_bytes).sum::<u64>());
}

#[tokio::test]
async fn r03_what_was_acknowledged_survives_a_power_cut_stripe_by_stripe() {
    let disk = CrashDisk::new();
    let (options, seams) = (options(Some(Path::new("/outbox")), 1 << 30), |disk: CrashDisk| ledger::seams(disk, 1));
    let (outbox, _) = Outbox::open(&options, &seams(disk.clone())).unwrap();
    let (small, large) = (frames(2, 1000), frames(5, 100_000));
    outbox.add(vec![new_parcel(&outbox, 1, NewBody::Frames(small.clone()), 4000)]).await.unwrap();
    // Each part is published as soon as it is written.
    let mut file = outbox.start_file(parcel(2)).unwrap();
    for part in large.chunks(2) {
        outbox.append(&mut file, part).unwrap();
        let path = Path::new("/outbox/parcels").join(parcel(2).to_string());
        let cut = disk.crash();
        assert!(cut.files().contains(&path), "the file has its name");
        assert_eq!(cut.bytes(&path).len() as u64, file.length());
    }
    let abandoned = Outbox::open(&options, &seams(disk.crash())).unwrap().1;
    assert_eq!((abandoned.parcels.len(), abandoned.abandoned), (1, vec![parcel(2)]));
    outbox.add(vec![new_parcel(&outbox, 2, NewBody::File(file), 600_000)]).await.unwrap();
    let (outbox, contents) = Outbox::open(&options, &seams(disk.crash())).unwrap();
    assert_eq!((contents.parcels.len(), contents.transactions.len()), (2, 2));
    for (row, frames) in contents.parcels.iter().zip([&small, &large]) {
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(outbox.stripe(row, index as u32).unwrap().as_ref(), Some(frame));
        }
    }
}

#[tokio::test]
async fn r03_a_parcel_whose_sealing_did_not_finish_is_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    {
        let (outbox, _) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
        let mut file = outbox.start_file(parcel(3)).unwrap();
        outbox.append(&mut file, &frames(2, 1000)).unwrap();
        std::mem::forget(file); // as a crash would: nothing is tidied up
    }
    let (outbox, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
    assert_eq!(contents.abandoned, [parcel(3)]);
    assert!(contents.parcels.is_empty());
    drop(outbox);
    let (_, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
    assert!(contents.abandoned.is_empty(), "said once, gone for good");
}

#[tokio::test]
async fn a_full_outbox_says_so_and_has_room_again_after_a_fate() {
    for folder in [None, Some(tempfile::tempdir().unwrap())] {
        let options = options(folder.as_ref().map(|folder| folder.path()), 10_000);
        let (outbox, _) = Outbox::open(&options, &Seams::real()).unwrap();
        let one = new_parcel(&outbox, 1, NewBody::Frames(frames(1, 9000)), 9500);
        let held = outbox.reserve(1000).unwrap_err();
        assert!(matches!(held, OutboxError::Full { needed: 1000, held: 9500, most: 10_000 }) && held.retryable());
        outbox.add(vec![one]).await.unwrap();
        assert!(outbox.bytes().0 < 9500, "what was not needed of the reservation is free again");
        // Named twice, it is given back once.
        outbox.change(Change { forget_parcels: vec![parcel(1); 2], ..Change::default() }).await.unwrap();
        assert_eq!(outbox.bytes().0, 0);
        drop(outbox.reserve(10_000).unwrap());
        assert_eq!(outbox.bytes().0, 0, "a reservation that is dropped is given back");
    }
}

#[tokio::test]
async fn outcomes_change_and_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(&options(Some(folder.path()), 1 << 20), &Seams::real()).unwrap();
    for number in 1..=2 {
        let parcel = new_parcel(&outbox, number, NewBody::Frames(frames(1, 10)), 1000);
        outbox.add(vec![parcel]).await.unwrap();
    }
    let mut row = outbox.transaction(transaction(1)).unwrap().unwrap();
    row.outcomes[0].signers = vec!["alfa".parse().unwrap(), "bravo".parse().unwrap()];
    row.outcomes[0].first = Some(transaction(7));
    row.outcomes[0].outcome = Outcome::Complete(Position { index: 9, number: 1 });
    outbox.change(Change { transactions: vec![row.clone()], ..Change::default() }).await.unwrap();
    assert_eq!(outbox.transaction(transaction(1)).unwrap(), Some(row));
    let forget_transactions = vec![transaction(1)];
    outbox.change(Change { forget_transactions, ..Change::default() }).await.unwrap();
    assert_eq!(outbox.transaction(transaction(1)).unwrap(), None);
    assert!(outbox.transaction(transaction(2)).unwrap().is_some());
}

#[tokio::test]
async fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(Some(folder.path()), 1 << 20);
    let (_first, _) = Outbox::open(&options, &Seams::real()).unwrap();
    let second = Outbox::open(&options, &Seams::real()).unwrap_err();
    assert!(second.retryable() && second.to_string().contains("in use"), "{second}");
}

#[tokio::test]
async fn adds_that_wait_together_all_become_durable() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(Some(folder.path()), 1 << 30);
    {
        let (outbox, _) = Outbox::open(&options, &Seams::real()).unwrap();
        let adds = (0..100).map(|number| {
            let parcel = new_parcel(&outbox, number, NewBody::Frames(frames(1, 100)), 1000);
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.add(vec![parcel]).await })
        });
        for add in adds.collect::<Vec<_>>() {
            add.await.unwrap().unwrap();
        }
        outbox.close(&*Seams::real().clock).await;
    }
    let (_, contents) = Outbox::open(&options, &Seams::real()).unwrap();
    assert_eq!(contents.parcels.len(), 100);
}

#[tokio::test]
async fn what_was_asked_to_be_added_is_kept_whole_though_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let large = frames(5, 100_000);
    {
        let (outbox, _) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
        let mut file = outbox.start_file(parcel(2)).unwrap();
        outbox.append(&mut file, &large).unwrap();
        let new = new_parcel(&outbox, 2, NewBody::File(file), 600_000);
        let mut adding = Box::pin(outbox.add(vec![new]));
        let _ = futures_util::poll!(&mut adding);
        drop(adding);
        // Whatever is asked for next is committed after it.
        outbox.change(Change::default()).await.unwrap();
        let row = outbox.parcel(parcel(2)).unwrap().unwrap();
        assert_eq!(outbox.bytes().0, row.sealed_bytes);
        outbox.close(&*Seams::real().clock).await;
    }
    let (outbox, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
    assert!(contents.missing.is_empty() && contents.abandoned.is_empty());
    for (index, frame) in large.iter().enumerate() {
        assert_eq!(outbox.stripe(&contents.parcels[0], index as u32).unwrap().as_ref(), Some(frame));
    }
}

#[tokio::test]
async fn a_parcel_whose_file_was_taken_away_is_named() {
    let folder = tempfile::tempdir().unwrap();
    {
        let (outbox, _) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
        for number in 1..=3 {
            let mut file = outbox.start_file(parcel(number)).unwrap();
            outbox.append(&mut file, &frames(2, 100_000)).unwrap();
            let new = new_parcel(&outbox, number, NewBody::File(file), 300_000);
            outbox.add(vec![new]).await.unwrap();
        }
        outbox.close(&*Seams::real().clock).await;
    }
    let file = |number| folder.path().join("parcels").join(parcel(number).to_string());
    std::fs::remove_file(file(1)).unwrap();
    std::fs::File::options().write(true).open(file(3)).unwrap().set_len(1000).unwrap();
    let (_, contents) = Outbox::open(&options(Some(folder.path()), 1 << 30), &Seams::real()).unwrap();
    assert_eq!(contents.missing, [parcel(1), parcel(3)]);
    assert_eq!((contents.parcels.len(), contents.transactions.len()), (3, 3));
}

#[tokio::test]
async fn what_is_forgotten_twice_frees_its_room_once() {
    let (outbox, _) = Outbox::open(&options(None, 1 << 20), &Seams::real()).unwrap();
    for number in 1..=2 {
        let new = new_parcel(&outbox, number, NewBody::Frames(frames(1, 1000)), 2000);
        outbox.add(vec![new]).await.unwrap();
    }
    let left = outbox.parcel(parcel(2)).unwrap().unwrap().sealed_bytes;
    let forget_parcels = vec![parcel(1), parcel(1)];
    outbox.change(Change { forget_parcels: forget_parcels.clone(), ..Change::default() }).await.unwrap();
    outbox.change(Change { forget_parcels, ..Change::default() }).await.unwrap();
    assert_eq!(outbox.bytes().0, left);
}

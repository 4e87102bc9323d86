//! The adversary: harmless, it conforms; told to, it hurts exactly as much as it may.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sealcast::seams::Seams;
use sealcast::transport::adversary::{Adversary, AdversaryOptions, Deeds, Group, Mood, Rates};
use sealcast::transport::{AppendError, Domain, Record, Transport};

use super::conformance::{append, collect, conforms, partition, record, topic};
use super::embedded::open;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmless_one_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let seams = Seams::real();
    conforms(&open(folder.path()).behind_adversary(AdversaryOptions::harmless(1), &seams)).await;
}

/// What a reader finds of 20 groups of 12 records under these rates: how many of each are whole.
async fn whole_of_each_group(rates: Rates, most: usize, seed: u64) -> (Vec<usize>, Deeds) {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "groups").await;
    let classifier = Arc::new(move |record: &Record| Some(Group { key: record.value[..1].to_vec(), most }));
    let options = AdversaryOptions { rates, classifier: Some(classifier), ..AdversaryOptions::harmless(seed) };
    let adversary = Adversary::new(inner.clone(), options, &Seams::real());
    for group in 0..20u8 {
        for number in 0..12u8 {
            append(&adversary, &partition(&topic, i32::from(number) % 3), record(&[group, number], &[group; 50])).await;
        }
    }
    let mut whole = BTreeMap::new();
    for number in 0..3 {
        let from = partition(&topic, number);
        let batch = inner.read(from.clone(), 0).await.expect("a read");
        let there = batch.records.len();
        for fetched in collect(&inner, &from, 0, there).await {
            let value = fetched.value.expect("a value");
            if value.len() == 50 && value.iter().all(|byte| *byte == fetched.key[0]) {
                *whole.entry(fetched.key[0]).or_default() += 1;
            }
        }
    }
    (whole.into_values().collect(), adversary.deeds())
}

#[tokio::test]
async fn of_each_group_no_more_is_hurt_than_may_be() {
    let rates = Rates { drop: 0.4, corrupt: 0.3, truncate: 0.3, ..Rates::default() };
    let (whole, deeds) = whole_of_each_group(rates, 4, 7).await;
    assert_eq!(whole, [8; 20], "at full rates, exactly the four that may be hurt of each twelve");
    assert_eq!((deeds.hurt(), deeds.appended), (80, 240));
    assert!(deeds.dropped > 0 && deeds.corrupted > 0 && deeds.truncated > 0, "{deeds:?}");
}

#[tokio::test]
async fn the_same_seed_does_the_same() {
    let rates = Rates { drop: 0.1, corrupt: 0.1, ..Rates::default() };
    let first = whole_of_each_group(rates, 12, 3).await;
    assert_eq!(whole_of_each_group(rates, 12, 3).await, first);
    assert_ne!(whole_of_each_group(rates, 12, 4).await.0, first.0);
}

#[tokio::test]
async fn a_record_that_is_sent_again_gets_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "again").await;
    let options = AdversaryOptions { rates: Rates { drop: 0.5, ..Rates::default() }, ..AdversaryOptions::harmless(5) };
    let adversary = Adversary::new(inner, options, &Seams::real());
    let to = partition(&topic, 0);
    for _ in 0..20 {
        append(&adversary, &to, record(b"key", b"again and again")).await;
    }
    let dropped = adversary.deeds().dropped;
    assert!((1..20).contains(&dropped), "{dropped} of 20");
}

#[tokio::test]
async fn duplicates_replays_delays_and_new_orders_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "shuffle").await;
    let rates = Rates { duplicate: 0.2, replay: 0.2, delay: 0.2, reorder: 0.2, ..Rates::default() };
    let options = AdversaryOptions { rates, delay: Duration::from_millis(5), ..AdversaryOptions::harmless(11) };
    let adversary = Adversary::new(inner.clone(), options, &Seams::real());
    let to = partition(&topic, 0);
    let pending: Vec<_> =
        (0..100u8).map(|number| adversary.append(to.clone(), record(&[number], b"value")).expect("credit")).collect();
    for pending in pending {
        pending.await.expect("acknowledged");
    }
    let deeds = adversary.deeds();
    assert!(deeds.duplicated > 0 && deeds.replayed > 0 && deeds.delayed > 0 && deeds.reordered > 0, "{deeds:?}");
    let count = 100 + deeds.duplicated + deeds.replayed;
    let found = collect(&inner, &to, 0, count as usize).await;
    let mut keys: Vec<_> = found.iter().map(|fetched| fetched.key[0]).collect();
    assert!(!keys.is_sorted(), "the order is another");
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn withheld_records_are_there_and_never_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "withheld").await;
    let options =
        AdversaryOptions { rates: Rates { withhold: 0.5, ..Rates::default() }, ..AdversaryOptions::harmless(2) };
    let adversary = Adversary::new(inner.clone(), options, &Seams::real());
    let to = partition(&topic, 0);
    for number in 0..40u8 {
        append(&adversary, &to, record(&[number], b"value")).await;
    }
    assert_eq!(collect(&inner, &to, 0, 40).await.len(), 40);
    let batch = adversary.read(to, 0).await.expect("a read");
    assert_eq!(batch.next, 40);
    assert_eq!(batch.records.len() as u64 + adversary.deeds().withheld, 40);
    assert!((1..40).contains(&adversary.deeds().withheld));
}

#[tokio::test]
async fn a_domain_can_be_lost_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "lost").await;
    let adversary = Adversary::new(inner, AdversaryOptions::harmless(0), &Seams::real());
    let domain = Domain("embedded-1".into());
    adversary.set_mood(&domain, Mood::Away);
    let up: Vec<_> = adversary.partitions(&topic).iter().map(|partition| partition.up).collect();
    assert_eq!(up, [true, false, true]);
    let lost = adversary.append(partition(&topic, 1), record(b"", b"x")).expect("taken").await;
    assert!(matches!(lost, Err(AppendError::Absent { .. })), "{lost:?}");
    assert!(adversary.read(partition(&topic, 1), 0).await.expect_err("away").retryable());
    append(&adversary, &partition(&topic, 0), record(b"", b"x")).await;
    adversary.set_mood(&domain, Mood::Slow(Duration::from_millis(20)));
    let pending = adversary.append(partition(&topic, 1), record(b"", b"x")).expect("taken");
    assert!(pending.await.expect("acknowledged").took >= Duration::from_millis(20));
    adversary.set_mood(&domain, Mood::Well);
    assert_eq!(append(&adversary, &partition(&topic, 1), record(b"", b"x")).await, 1);
}

#[tokio::test]
async fn what_is_being_read_when_a_domain_goes_is_not_delivered() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = open(folder.path());
    let topic = topic(&inner, "going").await;
    let adversary = Adversary::new(inner.clone(), AdversaryOptions::harmless(0), &Seams::real());
    let to = partition(&topic, 1);
    let domain = Domain("embedded-1".into());
    for mood in [Mood::Away, Mood::Silent] {
        adversary.set_mood(&domain, Mood::Well);
        let end = append(&inner, &to, record(b"", b"before")).await + 1;
        let mut reading = Box::pin(adversary.read(to.clone(), end));
        assert!(futures_util::poll!(&mut reading).is_pending(), "it waits for more");
        adversary.set_mood(&domain, mood);
        append(&inner, &to, record(b"", b"too late")).await;
        match reading.await {
            Ok(batch) => assert!(mood == Mood::Silent && batch.records.is_empty() && batch.next == end, "{batch:?}"),
            Err(error) => assert!(mood == Mood::Away && error.retryable(), "{error}"),
        }
    }
}

//! What every transport does, whoever fulfils the contract.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealcast::core::id::{DestinationName, EnvironmentName, Time};
use sealcast::core::limits;
use sealcast::seams::Seams;
use sealcast::transport::admin::{self, Layout, Made, TopicPlan};
use sealcast::transport::{
    AnyTransport, AppendError, Fetched, Full, Offset, PartitionId, Pending, ReadError, Record, Topic, Transport,
};

/// Longer than any transport takes for anything that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A plan for a topic that nobody else uses.
pub fn plan(what: &str) -> TopicPlan {
    let mut salt = [0; 5];
    getrandom::fill(&mut salt).expect("randomness");
    let environment = EnvironmentName::new("test").expect("a name");
    let name = format!("{what}-{}", data_encoding::HEXLOWER.encode(&salt));
    let destination = DestinationName::new(&name).expect("a name");
    let topic = Topic::segments(&environment, &destination);
    TopicPlan { topic, layout: Layout::PinnedToEach, retention: Duration::from_secs(3600) }
}

/// Makes a topic and waits until the transport knows it.
pub async fn topic(transport: &AnyTransport, what: &str) -> Topic {
    let plan = plan(what);
    assert_eq!(admin::init(transport, &plan).await, Ok(Made::Created));
    let began = Instant::now();
    let mut partitions = transport.known(&plan.topic, PATIENCE, &Seams::real()).await;
    // A broker that was late to answer, on a slow machine, has no partition yet.
    while partitions.len() < 3 && began.elapsed() < PATIENCE {
        admin::grow(transport, &plan).await.expect("more partitions");
        tokio::time::sleep(Duration::from_millis(50)).await;
        partitions = transport.partitions(&plan.topic);
    }
    assert!(partitions.len() >= 3, "{partitions:?}");
    plan.topic
}

pub fn partition(topic: &Topic, number: i32) -> PartitionId {
    PartitionId { topic: topic.clone(), number }
}

pub fn record(key: &[u8], value: &[u8]) -> Record {
    Record { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) }
}

/// Appends, waiting for credit.
pub async fn submit<T: Transport>(
    transport: &T,
    to: &PartitionId,
    record: Record,
) -> Pending<sealcast::transport::Ack> {
    let mut record = record;
    loop {
        match transport.append(to.clone(), record) {
            Ok(pending) => return pending,
            Err(Full(back)) => record = back,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn append<T: Transport>(transport: &T, to: &PartitionId, record: Record) -> Offset {
    let pending = submit(transport, to, record).await;
    tokio::time::timeout(PATIENCE, pending).await.expect("an answer").expect("an acknowledgement").offset
}

/// Reads until `count` records are there. It may take as long as appending them does, while some come.
pub async fn collect<T: Transport>(transport: &T, from: &PartitionId, at: Offset, count: usize) -> Vec<Fetched> {
    let (mut found, mut at, mut came) = (Vec::new(), at, Instant::now());
    while found.len() < count {
        match tokio::time::timeout(PATIENCE, transport.read(from.clone(), at)).await.expect("an answer") {
            Ok(batch) => {
                assert!(batch.low <= at && batch.next >= at && batch.next <= batch.end, "{batch:?}");
                if !batch.records.is_empty() {
                    came = Instant::now();
                }
                at = batch.next;
                found.extend(batch.records);
            }
            Err(error) if error.retryable() => {}
            Err(error) => panic!("{error}"),
        }
        assert!(came.elapsed() < PATIENCE, "{} of {count} records", found.len());
    }
    found
}

fn values(found: &[Fetched]) -> Vec<&[u8]> {
    found.iter().map(|fetched| fetched.value.as_deref().unwrap_or_default()).collect()
}

/// All of it.
pub async fn conforms(transport: &AnyTransport) {
    order_and_offsets(transport).await;
    partitions_stand_apart(transport).await;
    waiting_on_nothing(transport).await;
    out_of_range(transport).await;
    sizes(transport).await;
    keys(transport).await;
    credit(transport).await;
    concurrent_appenders(transport).await;
    unknown_topic(transport).await;
    making_twice(transport).await;
    times(transport).await;
}

async fn order_and_offsets(transport: &AnyTransport) {
    let topic = topic(transport, "order").await;
    let to = partition(&topic, 1);
    let mut offsets = Vec::new();
    for number in 0..200u32 {
        offsets.push(append(transport, &to, record(b"key", &number.to_be_bytes())).await);
    }
    assert_eq!(offsets, (0..200).collect::<Vec<_>>());
    let found = collect(transport, &to, 0, 200).await;
    assert_eq!(found.iter().map(|fetched| fetched.offset).collect::<Vec<_>>(), offsets);
    let wanted: Vec<_> = (0..200u32).map(u32::to_be_bytes).collect();
    assert_eq!(values(&found), wanted.iter().map(|bytes| bytes.as_slice()).collect::<Vec<_>>());
    // From the middle, forward and back again.
    for at in [150, 3, 199, 0, 77] {
        let found = collect(transport, &to, at, 1).await;
        assert_eq!(found[0].offset, at);
        assert_eq!(found[0].value.as_deref(), Some(&wanted[at as usize][..]));
    }
}

async fn partitions_stand_apart(transport: &AnyTransport) {
    let topic = topic(transport, "apart").await;
    let partitions = transport.partitions(&topic);
    let numbers: Vec<_> = partitions.iter().map(|partition| partition.id.number).collect();
    assert_eq!(numbers, (0..partitions.len() as i32).collect::<Vec<_>>());
    assert!(partitions.iter().all(|partition| partition.up && partition.copies == 1), "{partitions:?}");
    let domains: BTreeSet<_> = partitions.iter().map(|partition| &partition.domain).collect();
    assert_eq!(domains.len(), partitions.len(), "each partition fails by itself");
    let tasks = partitions.iter().map(|known| {
        let (transport, id) = (transport.clone(), known.id.clone());
        tokio::spawn(async move {
            let reader = {
                let (transport, id) = (transport.clone(), id.clone());
                tokio::spawn(async move { collect(&transport, &id, 0, 50).await })
            };
            for number in 0..50u8 {
                append(&transport, &id, record(b"", &[id.number as u8, number])).await;
            }
            let found = reader.await.expect("read");
            let wanted: Vec<_> = (0..50u8).map(|number| vec![id.number as u8, number]).collect();
            assert_eq!(values(&found), wanted.iter().map(Vec::as_slice).collect::<Vec<_>>());
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a partition");
    }
}

async fn waiting_on_nothing(transport: &AnyTransport) {
    let topic = topic(transport, "waits").await;
    let from = partition(&topic, 0);
    let empty = transport.read(from.clone(), 0).await.expect("an empty batch is no error");
    assert_eq!((empty.records.len(), empty.next, empty.low), (0, 0, 0));
    let waiting = {
        let (transport, from) = (transport.clone(), from.clone());
        tokio::spawn(async move { collect(&transport, &from, 0, 1).await })
    };
    append(transport, &from, record(b"key", b"now")).await;
    assert_eq!(values(&waiting.await.expect("read")), [b"now"]);
    // At the end of what there is, the same.
    let empty = transport.read(from.clone(), 1).await.expect("an empty batch is no error");
    assert_eq!((empty.records.len(), empty.next), (0, 1));
}

async fn out_of_range(transport: &AnyTransport) {
    let topic = topic(transport, "range").await;
    let from = partition(&topic, 2);
    for _ in 0..3 {
        append(transport, &from, record(b"", b"x")).await;
    }
    let reading = async {
        loop {
            match transport.read(from.clone(), 1000).await {
                Err(ReadError::OutOfRange { asked, low, end, .. }) => return (asked, low, end),
                Err(error) if error.retryable() => {}
                Ok(batch) if batch.records.is_empty() => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, reading).await.expect("an answer");
    assert_eq!(refused, (1000, 0, 3));
    assert_eq!(collect(transport, &from, 0, 3).await.len(), 3, "and it reads on where there is something");
}

async fn sizes(transport: &AnyTransport) {
    let topic = topic(transport, "sizes").await;
    let to = partition(&topic, 0);
    let sizes = [0, 1, 65_536, limits::SEGMENT_BYTES - 1, limits::SEGMENT_BYTES];
    for size in sizes {
        append(transport, &to, record(&[9; limits::KEY_BYTES], &vec![size as u8; size])).await;
    }
    let found = collect(transport, &to, 0, sizes.len()).await;
    for (fetched, size) in found.iter().zip(sizes) {
        assert_eq!(fetched.value.as_ref().map(Bytes::len), Some(size));
        assert!(fetched.value.iter().flatten().all(|byte| *byte == size as u8));
    }
    for (key, value) in [(0, limits::SEGMENT_BYTES + 1), (limits::KEY_BYTES + 1, 0)] {
        let refused = submit(transport, &to, record(&vec![1; key], &vec![1; value])).await.await;
        assert!(matches!(refused, Err(AppendError::Refused { .. })), "{refused:?}");
    }
}

async fn keys(transport: &AnyTransport) {
    let topic = topic(transport, "keys").await;
    let to = partition(&topic, 0);
    for key in [&b""[..], b"\0", b"a key", &[0xff; 16]] {
        append(transport, &to, record(key, b"value")).await;
    }
    let found = collect(transport, &to, 0, 4).await;
    let keys: Vec<_> = found.iter().map(|fetched| fetched.key.as_ref()).collect();
    assert_eq!(keys, [&b""[..], b"\0", b"a key", &[0xff; 16]]);
}

/// Appending without waiting ends in `Full`, which gives back the very record; what was taken is acknowledged.
async fn credit(transport: &AnyTransport) {
    let topic = topic(transport, "credit").await;
    let to = partition(&topic, 1);
    let mut taken = Vec::new();
    let given_back = loop {
        let number = taken.len() as u32;
        let mut value = vec![0; 500_000];
        value[..4].copy_from_slice(&number.to_be_bytes());
        match transport.append(to.clone(), record(b"credit", &value)) {
            Ok(pending) => taken.push(pending),
            Err(Full(back)) => break (number, back),
        }
        assert!(taken.len() < 2000, "the credit is bounded");
    };
    let (number, back) = given_back;
    assert_eq!(
        (back.key.as_ref(), &back.value[..4], back.value.len()),
        (&b"credit"[..], &number.to_be_bytes()[..], 500_000)
    );
    for (expected, pending) in taken.into_iter().enumerate() {
        let ack = tokio::time::timeout(PATIENCE, pending).await.expect("an answer").expect("an acknowledgement");
        assert_eq!(ack.offset, expected as Offset);
    }
    assert_eq!(append(transport, &to, back).await, Offset::from(number));
}

async fn concurrent_appenders(transport: &AnyTransport) {
    let topic = topic(transport, "crowd").await;
    let to = partition(&topic, 0);
    let appenders: Vec<_> = (0..8u8)
        .map(|appender| {
            let (transport, to) = (transport.clone(), to.clone());
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                for number in 0..25u8 {
                    offsets.push(append(&transport, &to, record(b"", &[appender, number])).await);
                }
                offsets
            })
        })
        .collect();
    let mut acknowledged = BTreeSet::new();
    for appender in appenders {
        let offsets = appender.await.expect("an appender");
        assert!(offsets.is_sorted(), "one's own records stay in order");
        acknowledged.extend(offsets);
    }
    assert_eq!(acknowledged, (0..200).collect());
    let found = collect(transport, &to, 0, 200).await;
    let distinct: BTreeSet<_> = values(&found).into_iter().collect();
    assert_eq!(distinct.len(), 200);
}

async fn unknown_topic(transport: &AnyTransport) {
    let nowhere = plan("nowhere");
    let id = partition(&nowhere.topic, 0);
    assert!(transport.partitions(&nowhere.topic).is_empty());
    let trying = async {
        // A transport that asks brokers learns only after a while that there is no such topic.
        loop {
            match submit(transport, &id, record(b"", b"x")).await.await {
                Err(AppendError::Refused { cause, .. }) => return cause,
                Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(50)).await,
                other => panic!("{other:?}"),
            }
        }
    };
    let cause = tokio::time::timeout(PATIENCE, trying).await.expect("an answer");
    assert!(cause.contains("topic init"), "the mend is in the text: {cause}");
    let reading = async {
        loop {
            match transport.read(id.clone(), 0).await {
                Err(ReadError::Refused { cause, .. }) => return cause,
                Err(error) if error.retryable() => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let cause = tokio::time::timeout(PATIENCE, reading).await.expect("an answer");
    assert!(cause.contains("topic init"), "the mend is in the text: {cause}");
    let state = admin::check(transport, &nowhere).await.expect("a check");
    assert_eq!(state.mismatches.iter().map(|wrong| wrong.what.as_str()).collect::<Vec<_>>(), ["topic"]);
}

async fn making_twice(transport: &AnyTransport) {
    let plan = plan("twice");
    assert_eq!(admin::init(transport, &plan).await, Ok(Made::Created));
    assert_eq!(admin::init(transport, &plan).await, Ok(Made::Exists));
    transport.known(&plan.topic, PATIENCE, &Seams::real()).await;
    let state = admin::check(transport, &plan).await.expect("a check");
    assert_eq!(state.mismatches, []);
    assert_eq!(state.partitions.len(), transport.partitions(&plan.topic).len());
}

/// A record's time is the appending broker's, between its append and its acknowledgement.
async fn times(transport: &AnyTransport) {
    let topic = topic(transport, "times").await;
    let to = partition(&topic, 0);
    let clock = Seams::real().clock;
    let before = clock.now();
    append(transport, &to, record(b"", b"x")).await;
    let after = clock.now();
    let Time(found) = collect(transport, &to, 0, 1).await[0].time;
    assert!((before.0..=after.0).contains(&found), "{found} in {before:?}..={after:?}");
}

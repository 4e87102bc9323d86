//! Publishing follows the brokers: what is silent, away or throttled delays nobody else (R14, R15).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::id::{ParcelId, Time};
use sealcast::seams::SystemClock;
use sealcast::telemetry::Meter;
use sealcast::transport::publisher::{Layout, Publisher, PublisherEvent, StripeId, StripeRecords};
use sealcast::transport::{
    Ack, AppendError, Batch, Domain, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};

/// How a broker behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broker {
    Well,
    /// Known to be away.
    Away,
    /// Up, but every record fails.
    Failing,
    /// Up, but never answers.
    Silent,
    /// Takes nothing.
    Throttled,
}

#[derive(Debug, Default)]
struct State {
    brokers: Vec<Option<Broker>>,
    taken: BTreeMap<i32, Vec<Bytes>>,
    silent: Vec<tokio::sync::oneshot::Sender<Result<Ack, AppendError>>>,
}

/// Brokers that do as they are told.
#[derive(Debug, Clone)]
struct Brokers(Arc<Mutex<State>>, Topic);

impl Brokers {
    fn new(brokers: &[Broker]) -> Self {
        let topic = Topic::segments(&"test".parse().unwrap(), &"orders".parse().unwrap());
        let state = State { brokers: brokers.iter().copied().map(Some).collect(), ..State::default() };
        Self(Arc::new(Mutex::new(state)), topic)
    }

    fn set(&self, number: usize, broker: Broker) {
        self.0.lock().unwrap().brokers[number] = Some(broker);
    }

    fn taken(&self, number: i32) -> Vec<Bytes> {
        self.0.lock().unwrap().taken.get(&number).cloned().unwrap_or_default()
    }

    fn start(&self) -> (Publisher, tokio::sync::mpsc::UnboundedReceiver<PublisherEvent>) {
        let clock = Arc::new(SystemClock::new());
        Publisher::start(Arc::new(self.clone()), self.1.clone(), clock, &Meter::default(), 1 << 20)
    }
}

impl Transport for Brokers {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        let state = self.0.lock().unwrap();
        (0..)
            .zip(&state.brokers)
            .map(|(number, broker)| Partition {
                id: PartitionId { topic: topic.clone(), number },
                domain: Domain(format!("broker-{number}").into()),
                up: *broker != Some(Broker::Away),
                copies: 1,
            })
            .collect()
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        let mut state = self.0.lock().unwrap();
        let (fulfil, pending) = Pending::new();
        match state.brokers[to.number as usize].unwrap() {
            Broker::Well => {
                let log = state.taken.entry(to.number).or_default();
                log.push(record.key);
                let offset = log.len() as Offset;
                fulfil.send(Ok(Ack { offset, took: Duration::ZERO })).unwrap();
            }
            Broker::Away | Broker::Failing => {
                fulfil.send(Err(AppendError::Absent { partition: to, cause: "away".to_owned() })).unwrap();
            }
            Broker::Silent => state.silent.push(fulfil),
            Broker::Throttled => return Err(Full(record)),
        }
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, _at: Offset) -> Result<Batch, ReadError> {
        Err(ReadError::Absent { partition: from, cause: "not in this test".to_owned() })
    }
}

fn stripe(index: u32) -> StripeRecords {
    let parcel = ParcelId::from_parts(Time(1_700_000_000_000), [1; 10]);
    let record =
        |shard: u8| Record { key: Bytes::from(vec![index as u8, shard]), value: Bytes::from(vec![shard; 1000]) };
    StripeRecords { id: StripeId { parcel, index }, k: 8, records: (0..12).map(record).collect() }
}

async fn until_accepted(events: &mut tokio::sync::mpsc::UnboundedReceiver<PublisherEvent>, index: u32) {
    let wait = async {
        loop {
            if events.recv().await == Some(PublisherEvent::Accepted(stripe(index).id)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("accepted");
}

#[tokio::test]
async fn all_well_every_shard_goes_out_once() {
    let brokers = Brokers::new(&[Broker::Well; 3]);
    let (publisher, mut events) = brokers.start();
    publisher.publish(stripe(0), false).await.unwrap();
    until_accepted(&mut events, 0).await;
    assert_eq!((0..3).map(|number| brokers.taken(number).len()).collect::<Vec<_>>(), [4, 4, 4]);
    assert!(brokers.taken(1).is_sorted(), "data shards before parity");
    assert_eq!(Layout::of(&brokers.partitions(&brokers.1)), Some(Layout { domains: 3, replicated: false }));
}

#[tokio::test]
async fn r14_one_bad_broker_of_three_never_prevents_acceptance() {
    for bad in [Broker::Away, Broker::Failing, Broker::Silent, Broker::Throttled] {
        let brokers = Brokers::new(&[Broker::Well, bad, Broker::Well]);
        let (publisher, mut events) = brokers.start();
        for index in 0..20 {
            publisher.publish(stripe(index), false).await.unwrap();
            if bad != Broker::Throttled {
                until_accepted(&mut events, index).await;
            }
        }
        if bad == Broker::Throttled {
            // Backpressure is no absence: the others have all of theirs meanwhile, and what is queued goes out when there
            // is credit again.
            let others = async {
                while brokers.taken(0).len() < 80 || brokers.taken(2).len() < 80 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), others).await.expect("nobody waits for the throttled one");
            brokers.set(1, Broker::Well);
            until_accepted(&mut events, 19).await;
            assert!(!brokers.taken(1).is_empty());
        } else {
            assert!(brokers.taken(0).len() >= 160 && brokers.taken(2).len() >= 160, "{bad:?}");
        }
    }
}

#[tokio::test]
async fn r14_with_one_broker_left_it_is_withheld_by_name_and_topped_up_when_another_returns() {
    let brokers = Brokers::new(&[Broker::Away, Broker::Well, Broker::Away]);
    let (publisher, mut events) = brokers.start();
    publisher.publish(stripe(0), false).await.unwrap();
    let wait = async {
        let mut withheld = Vec::new();
        loop {
            match events.recv().await.unwrap() {
                PublisherEvent::Withheld { domains, .. } => withheld = domains,
                PublisherEvent::Settled(_) => return withheld,
                other => panic!("{other:?}"),
            }
        }
    };
    let withheld = tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    assert_eq!(withheld, ["broker-0".into(), "broker-2".into()]);
    assert_eq!(brokers.taken(1).len(), 12, "committed stays possible");
    brokers.set(2, Broker::Well);
    let wait = async {
        loop {
            match events.recv().await.unwrap() {
                PublisherEvent::Wanted(id) => {
                    assert_eq!(id, stripe(0).id);
                    publisher.publish(stripe(0), false).await.unwrap();
                }
                PublisherEvent::Accepted(_) => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    assert_eq!(brokers.taken(1).len(), 12, "nothing twice where it already is");
    assert_eq!(brokers.taken(2).len(), 8);
}

#[tokio::test]
async fn what_is_asked_for_again_is_sent_whole() {
    let brokers = Brokers::new(&[Broker::Well; 3]);
    let (publisher, mut events) = brokers.start();
    publisher.publish(stripe(0), false).await.unwrap();
    until_accepted(&mut events, 0).await;
    publisher.publish(stripe(0), true).await.unwrap();
    publisher.publish(stripe(1), false).await.unwrap();
    until_accepted(&mut events, 1).await;
    let all: usize = (0..3).map(|number| brokers.taken(number).len()).sum();
    assert_eq!(all, 36);
    publisher.forget(stripe(0).id.parcel);
}

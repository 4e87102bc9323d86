//! One broker's producer, with its own credit (R15): what piles up for one broker never delays another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig};
use tokio::sync::oneshot;

use super::KafkaError;
use super::access::{On, Operation};
use super::board::{Board, BrokerId};
use super::refresh::Watch;
use crate::seams::Clock;
use crate::transport::contract::{Ack, AppendError, Full, PartitionId, Pending, Record};

/// A record that was not acknowledged this long after its leader went absent is given up, to go elsewhere: with the time
/// between two looks, within the 250 ms of R15.
pub(super) const GIVE_UP: Duration = Duration::from_millis(200);

/// How long the thread that hears acknowledgements goes on before it looks whether it is still needed. rdkafka waits in whole
/// milliseconds and spins for what is left: its own thread, which looks ten times a second, costs each producer a hundredth of a
/// core though nothing happens.
const HEAR: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<Ack, AppendError>>;

/// A record on its way. Its bytes count until librdkafka lets go of them; its answer may be given before.
struct Flight {
    answer: Option<Answer>,
    partition: PartitionId,
    size: usize,
    began: Duration,
}

#[derive(Default)]
struct Flights {
    next: usize,
    under_way: BTreeMap<usize, Flight>,
    bytes: usize,
}

struct Reports {
    flights: Arc<Mutex<Flights>>,
    watch: Watch,
    broker: BrokerId,
    clock: Arc<dyn Clock>,
}

/// The producer of one broker.
pub(super) struct Lane {
    broker: BrokerId,
    producer: Arc<BaseProducer<Reports>>,
    ended: Arc<AtomicBool>,
    flights: Arc<Mutex<Flights>>,
    clock: Arc<dyn Clock>,
    credit: usize,
}

fn lock(flights: &Mutex<Flights>) -> MutexGuard<'_, Flights> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do about a record that was refused, if trying again does not mend it.
fn refusal(board: &Board, code: RDKafkaErrorCode, partition: &PartitionId) -> Option<String> {
    board.access().mend(code, Operation::Write, On::Topic(partition.topic.as_str()))
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watch.log(level, facility, line);
    }

    fn error(&self, error: NativeError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let flight = {
            let mut flights = lock(&self.flights);
            let flight = flights.under_way.remove(&number);
            flights.bytes -= flight.as_ref().map_or(0, |flight| flight.size);
            flight
        };
        let Some(Flight { answer, partition, began, .. }) = flight else { return };
        let took = self.clock.monotonic().saturating_sub(began);
        let board = self.watch.0.upgrade();
        let told = match result {
            Ok(message) => {
                if let Some(board) = board {
                    board.up(self.broker);
                }
                Ok(Ack { offset: message.offset(), took })
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code();
                let lost = [RDKafkaErrorCode::BrokerTransportFailure, RDKafkaErrorCode::MessageTimedOut];
                if let Some(board) = &board
                    && code.is_some_and(|code| lost.contains(&code))
                {
                    board.down(self.broker, "no acknowledgement in time");
                }
                Err(match board.and_then(|board| refusal(&board, code?, &partition)) {
                    Some(cause) => AppendError::Refused { partition, cause },
                    None => AppendError::Absent { partition, cause: error.to_string() },
                })
            }
        };
        if let Some(answer) = answer {
            // Whoever appended may have stopped waiting.
            let _ = answer.send(told);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Who waits learns it now and not when the thread has ended.
        lock(&self.flights).under_way.values_mut().for_each(|flight| drop(flight.answer.take()));
    }
}

impl Lane {
    pub(super) fn new(
        broker: BrokerId,
        config: &ClientConfig,
        board: &Arc<Board>,
        clock: &Arc<dyn Clock>,
        credit: usize,
    ) -> Result<Self, KafkaError> {
        let flights: Arc<Mutex<Flights>> = Arc::default();
        let watch = Watch(Arc::downgrade(board));
        let reports = Reports { flights: flights.clone(), watch, broker, clock: clock.clone() };
        let producer = BaseProducer::from_config_and_context(config, reports)
            .map_err(|error| KafkaError::Client { cause: error.to_string() })?;
        let (producer, ended) = (Arc::new(producer), Arc::<AtomicBool>::default());
        let (heard, over) = (producer.clone(), ended.clone());
        // It outlives the lane by up to so long; by then nobody waits for an answer.
        let hear = move || {
            while !over.load(Ordering::Relaxed) {
                heard.poll(HEAR);
            }
        };
        thread::Builder::new()
            .name("kafka-acks".to_owned())
            .spawn(hear)
            .map_err(|error| KafkaError::Client { cause: format!("cannot start a thread: {error}") })?;
        Ok(Self { broker, producer, ended, flights, clock: clock.clone(), credit })
    }

    /// Hands a record to librdkafka, or gives it back when the broker's credit is used up. One record always fits.
    pub(super) fn append(&self, to: PartitionId, record: Record, board: &Board) -> Result<Pending<Ack>, Full<Record>> {
        let size = record.key.len() + record.value.len();
        let (answer, pending) = Pending::new();
        let number = {
            let mut flights = lock(&self.flights);
            if flights.bytes > 0 && flights.bytes + size > self.credit {
                return Err(Full(record));
            }
            let number = flights.next;
            flights.next += 1;
            flights.bytes += size;
            let (partition, began) = (to.clone(), self.clock.monotonic());
            flights.under_way.insert(number, Flight { answer: Some(answer), partition, size, began });
            number
        };
        let mut message =
            BaseRecord::with_opaque_to(to.topic.as_str(), number).partition(to.number).payload(&record.value[..]);
        if !record.key.is_empty() {
            message = message.key(&record.key[..]);
        }
        let Err((error, _)) = self.producer.send(message) else { return Ok(pending) };
        let flight = {
            let mut flights = lock(&self.flights);
            flights.bytes -= size;
            flights.under_way.remove(&number)
        };
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::QueueFull) {
            return Err(Full(record));
        }
        if let Some(answer) = flight.and_then(|flight| flight.answer) {
            let told = match code.and_then(|code| refusal(board, code, &to)) {
                Some(cause) => AppendError::Refused { partition: to, cause },
                None => AppendError::Absent { partition: to, cause: error.to_string() },
            };
            // The receiver is in `pending`.
            let _ = answer.send(Err(told));
        }
        Ok(pending)
    }

    /// Gives up what waits for a leader that is absent for too long. When the broker is down, librdkafka lets go of it too,
    /// so that a broker that returns is not met by what went elsewhere long ago.
    pub(super) fn give_up(&self, board: &Board) {
        let now = self.clock.monotonic();
        let mut given_up = Vec::new();
        for flight in lock(&self.flights).under_way.values_mut() {
            let absent = board.absent_since(&flight.partition, self.broker);
            if absent.is_some_and(|since| now.saturating_sub(since.max(flight.began)) >= GIVE_UP)
                && let Some(answer) = flight.answer.take()
            {
                given_up.push((answer, flight.partition.clone()));
            }
        }
        let purge = !given_up.is_empty() && board.down_since(self.broker).is_some();
        for (answer, partition) in given_up {
            let cause = "no acknowledgement since its leader cannot be reached".to_owned();
            // Whoever appended may have stopped waiting.
            let _ = answer.send(Err(AppendError::Absent { partition, cause }));
        }
        if purge {
            self.producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

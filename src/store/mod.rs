//! Durable data of nodes and senders: the only place that knows redb. Must not know openraft, Kafka or gRPC.

pub mod database;
pub mod outbox;
pub mod records;

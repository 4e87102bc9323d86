//! Durable data of nodes and senders: the only place that knows redb. Must not know openraft, Kafka or gRPC.

pub mod bodies;
pub mod database;
mod error;
pub mod group;
pub mod outbox;
pub mod records;

pub use error::StoreError;

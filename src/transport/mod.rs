//! Getting records to and from partitions. Policy (which shard goes where, what counts as accepted) lives in
//! `core::place`; here is the contract, who fulfils it, and how topics are made and checked.
//!
//! Owns topics, partitions, records and offsets. Must not look inside a record.

pub mod admin;
pub mod adversary;
mod any;
mod contract;
pub mod embedded;
pub mod kafka;
mod layout;
pub mod publisher;

pub use any::{AnyTransport, TransportError, TransportOptions};
pub use contract::{
    Ack, AppendError, Batch, Domain, Fetched, Full, Offset, Partition, PartitionId, Pending, READ_BYTES, READ_WAIT,
    ReadError, Record, Topic, Transport, Trouble,
};

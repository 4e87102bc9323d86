//! Getting records to and from partitions. Policy (which shard goes where, what counts as accepted) lives in
//! `core::place`; here is only the contract and who fulfils it.
//!
//! Owns topics, partitions, records and offsets. Must not look inside a record.

mod contract;
pub mod publisher;

pub use contract::{
    Ack, AppendError, Batch, Domain, Fetched, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic,
    Transport,
};

//! The parts that do input and output, each through its public interface in this process: stores, transports, consensus, RPC,
//! the client, the node, and what a service writes against the SDK.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod brokers;
mod changing;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod consuming;
mod deciding;
mod destinations;
mod directories;
#[path = "../common/disk.rs"]
mod disk;
mod gaps;
#[path = "../common/ledger.rs"]
mod ledger;
mod liars;
mod monitoring;
mod node;
mod outbox;
mod publisher;
mod quorum;
mod raft;
mod raft_crashes;
mod reading;
mod replaying;
mod rpc;
#[path = "../common/segments.rs"]
mod segments;
#[path = "../common/shop.rs"]
mod shop;
mod store;
mod store_crashes;
mod strangers;
mod submitting;
mod telling;
mod testing;
mod transport;
#[path = "../common/trio.rs"]
mod trio;

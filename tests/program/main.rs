//! The program `sealcast` as its users meet it: real processes, a real cluster, the documents typed as they stand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bench;
mod brokers;
mod cli_keys;
#[path = "../common/mod.rs"]
mod common;
mod demo;
mod dev;
mod examples;
mod gaps;
mod help;
mod inspect;
mod operations;
mod processes;
mod readme;
mod secured;
#[path = "../common/segments.rs"]
mod segments;
mod send;
mod spans;
mod storm;
mod strangers;

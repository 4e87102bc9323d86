//! The reassembler against a driver that does what a node does (log, notes, cursors, blocking work) and a model that knows
//! what must come out. Numbers in names are those of the list of inputs that must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod chain;
#[path = "../common/gathering.rs"]
mod gathering;
mod memory;
mod model;
mod refusal;
#[path = "../common/segments.rs"]
mod segments;
mod waiting;

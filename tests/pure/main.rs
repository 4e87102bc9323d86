//! The pure cores: bytes and times in, bytes and actions out. No disk, no socket, no clock, no process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod compare;
mod decide;
#[path = "../common/deciding.rs"]
mod deciding;
mod gather;
#[path = "../common/gathering.rs"]
mod gathering;
mod group_time;
mod negative;
mod place;
mod propose;
mod published_vectors;
mod receipt;
mod retrying;
mod seal;
#[path = "../common/segments.rs"]
mod segments;
mod split;
mod waiting;
mod way;

//! Golden files: from fixed keys and fixed randomness, the bytes that docs/wire-format.md describes. A missing or different
//! file fails the test; `SEALCAST_UPDATE_GOLDEN=1 cargo test --test golden` writes them anew, for a change of the format that
//! is meant. Files of parcels also open from their own text alone, as a program in another language would open them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/deciding.rs"]
mod deciding;
mod entries;
mod file;
mod log;

mod parcels;
mod sealing;
#[path = "../common/segments.rs"]
mod segments;
mod statements;
mod world;

//! Sealing and opening whole parcels: what goes in comes out, and nothing else ever does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod opening;
mod parcels;
mod refusing;

//! gRPC over real TLS on loopback: who is let in, as whom, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod calls;
mod impostors;
mod world;

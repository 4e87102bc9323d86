//! Cutting sealed bytes into stripes, shards and segments, and proving that they belong together (design, section 4).
//! Must not know what the bytes mean.

pub mod code;
pub mod header;
pub mod merkle;
pub mod segment;
pub mod stripe;

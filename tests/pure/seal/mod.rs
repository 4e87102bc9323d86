//! Sealing and opening whole parcels: what goes in comes out, and nothing else ever does.

mod opening;
pub mod parcels;
mod refusing;

//! Sealing and opening whole parcels: what goes in comes out, and nothing else ever does.

mod opening;
mod parcels;
mod refusing;

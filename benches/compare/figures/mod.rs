//! What is computed from measurements, and how it is shown. Pure: no clock, no broker, no file. Tested in tests/pure/compare.rs.
//!
//! Must not measure.

pub mod chart;
pub mod growth;
pub mod order;
pub mod page;
pub mod plots;
pub mod results;
pub mod rows;
pub mod stats;
pub mod steady;
pub mod table;
pub mod words;

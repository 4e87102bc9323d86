//! Logs, metrics and health pages. Must not see secrets or payloads.
//!
//! - [`logs`] sets up what is written to stderr, and makes the spans that follow one parcel or transaction.
//! - [`labels`] has the values of labels that have no list elsewhere.
//! - [`names`] lists every metric; [`Meter`] writes them with the labels of who measures; [`recorder`] keeps them.
//! - [`alarms`] lists every alarm.
//! - [`health`] serves `/metrics`, `/livez` and `/readyz`.

pub mod alarms;
pub mod health;
pub mod labels;
pub mod logs;
mod meter;
pub mod names;
pub mod recorder;

pub use meter::Meter;

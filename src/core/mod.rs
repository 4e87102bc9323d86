//! The pure heart: no async, no I/O, no clock and no randomness of its own. Bytes and time come in, actions go out.
//!
//! Inside, arrows run one way: `decide` may use `seal`; `gather` and `place` may use `split`; everything may use
//! `directory` and `sign`, which may use `wire`, which may use `limits` and `id`.

pub mod decide;
pub mod directory;
pub mod gather;
pub mod id;
pub mod limits;
pub mod place;
pub mod receipt;
pub mod seal;
pub mod sign;
pub mod split;
pub mod wire;

//! What several test programs share.
#![allow(dead_code)] // no test program uses all of it

pub mod folders;
pub mod kafka;
pub mod ports;
pub mod proxy;
pub mod secured;
pub mod troubled;
pub mod world;

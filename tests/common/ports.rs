//! Ports of this machine for what tests start. They lie below the range from which the system takes the local ports of
//! connections: otherwise one that is free now, or of a server that is being started again, is taken by a connection of
//! another test meanwhile.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Linux takes local ports from 32768 on, others from 49152 on.
const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

/// Ports that are free now. No two calls of one process give the same, and another process begins elsewhere.
pub fn free(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(2_654_435_761) >> 8;
    let candidates = std::iter::repeat_with(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(next < COUNT, "no port from {FIRST} on is free");
        u16::try_from(FIRST + (begin % COUNT + next) % COUNT).expect("a port")
    });
    candidates.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).take(count).collect()
}

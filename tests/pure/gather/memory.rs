//! What is held half-gathered stays within the caps, and what the caps put off comes out later.

use std::time::Duration;

use sealcast::core::gather::{Caps, DeferReason, STALLED_AFTER};

use crate::gathering::*;
use crate::segments::*;

#[test]
fn r16_a_parcel_far_larger_than_the_caps_passes() {
    let caps = Caps { sender_bytes: 24_000, total_bytes: 24_000, deferred: 100 };
    let mut node = Node::new(caps);
    let (core, sealed, stripes) = parcel(1, 48 * 1000);
    for stripe in &stripes {
        node.send_stripe(stripe);
        assert!(node.reassembler.held_bytes() <= caps.total_bytes);
    }
    assert_eq!(node.staged[&key_of(&core)], (stripes.last().unwrap().digest, sealed));
    assert_eq!(node.rereads, 0, "in order, nothing needs to be deferred");
    node.assert_clean();
}

#[test]
fn r16_what_is_over_the_caps_is_deferred_and_finished_later() {
    let caps = Caps { sender_bytes: 18_000, total_bytes: 150_000, deferred: 100_000 };
    let mut node = Node::new(caps);
    let (core, sealed, stripes) = parcel(1, 48 * 60);
    // The last stripes come first: they cannot all wait in memory.
    for stripe in stripes.iter().skip(1).rev() {
        node.send_stripe(stripe);
    }
    assert!(node.reassembler.deferred_by_reason().contains_key(&DeferReason::SenderMemory));
    assert!(node.most_held <= caps.sender_bytes);
    node.send_stripe(&stripes[0]);
    for _ in 0..100 {
        node.wait(Duration::from_secs(1));
    }
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.wait(Duration::from_secs(61));
    node.assert_clean();
}

#[test]
fn r16_a_sender_that_fills_the_memory_does_not_keep_others_out() {
    let caps = Caps { sender_bytes: 90_000, total_bytes: 45_000, deferred: 10_000 };
    let mut node = Node::new(caps);
    // Many parcels of which k - 1 shards come, until there is no room for more.
    for number in 10..80 {
        let (_, _, stripes) = parcel(number, 48);
        stripes[0].segments.iter().take(2).for_each(|segment| {
            node.send(&segment.record);
        });
    }
    assert!(node.reassembler.held_bytes() > caps.total_bytes / 10 * 9, "{}", node.reassembler.held_bytes());
    for number in 0..20 {
        let core = core(&shop(), number, tiny());
        let stripes = split(core.clone(), &shop(), &sealed(90, number));
        stripes.iter().for_each(|stripe| node.send_stripe(stripe));
        assert!(node.staged.contains_key(&key_of(&core)), "{number}");
    }
}

#[test]
fn r16_deferred_addresses_are_bounded_and_the_newest_go() {
    let caps = Caps { sender_bytes: 4_500, total_bytes: 4_500, deferred: 5 };
    let mut node = Node::new(caps);
    for number in 10..40 {
        let (_, _, stripes) = parcel(number, 48);
        node.send(&stripes[0].segments[0].record);
    }
    assert_eq!(node.reassembler.deferred_of(&bytes_of(&web())), 5);
    assert!(node.reassembler.overflowed() > 0);
    assert_eq!(node.reassembler.overflowed() as usize, node.passed.len());
    assert_eq!(node.notes.len(), 5);
}

#[test]
fn r16_all_who_are_not_known_share_one_bound_whatever_names_they_claim() {
    let mut node = Node::new(Caps { deferred: 5, ..Caps::default() });
    for number in 100..130 {
        let stranger = secret(number);
        let stripes = split(core(&stranger, number, tiny()), &stranger, &sealed(48, number));
        node.send(&stripes[0].segments[0].record);
    }
    assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::UnknownSender, 5)].into());
    // Who is known keeps a bound of its own beside them.
    let (_, _, stripes) = parcel(1, 48);
    node.send(&stripes[0].segments[0].record);
    node.wait(STALLED_AFTER);
    assert_eq!(node.reassembler.deferred_of(&bytes_of(&web())), 1);
    assert_eq!(node.reassembler.deferred(), 6);
}

#[test]
fn r16_parcels_that_are_opened_in_part_are_counted_and_bounded() {
    let caps = Caps { sender_bytes: 640_000, total_bytes: 1_280_000, deferred: 10_000 };
    let mut node = Node::new(caps);
    // First stripes only: each of them keeps something open outside the reassembler.
    for number in 0..200 {
        let (_, _, stripes) = parcel(number, 48 * 2);
        node.send_stripe(&stripes[0]);
        assert!(node.reassembler.held_bytes() <= caps.sender_bytes + caps.sender_bytes / 64);
    }
    assert!(node.assembling.len() <= 64, "{} half-opened", node.assembling.len());
    // They come out all the same.
    for number in 0..200 {
        let (_, _, stripes) = parcel(number, 48 * 2);
        node.send_stripe(&stripes[1]);
    }
    for _ in 0..1000 {
        node.wait(Duration::from_secs(1));
    }
    assert_eq!(node.staged.len(), 200);
    node.assert_clean();
}

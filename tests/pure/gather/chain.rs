//! Stripes are joined along the chain of their headers, and never across senders, cores or branches.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::gather::{Action, Caps, DeferReason, Missing, STALLED_AFTER};
use sealcast::core::limits;
use sealcast::core::split::header::StripeHeader;
use sealcast::core::split::stripe::Stripe;

use crate::gathering::*;
use crate::segments::*;

#[test]
fn r01_n21_one_parcel_id_from_two_senders_is_two_parcels() {
    let mut node = Node::new(Caps::default());
    let (one, other) = (core(&web(), 1, tiny()), core(&shop(), 1, tiny()));
    let (ones, others) = (split(one.clone(), &web(), &sealed(60, 1)), split(other.clone(), &shop(), &sealed(70, 2)));
    for (a, b) in ones.iter().zip(&others) {
        node.send_stripe(a);
        node.send_stripe(b);
    }
    assert_eq!(node.staged[&key_of(&one)].1, sealed(60, 1));
    assert_eq!(node.staged[&key_of(&other)].1, sealed(70, 2));
    assert!(node.equivocations.is_empty());
}

#[test]
fn r01_n22_two_headers_for_one_stripe_are_kept_apart_and_reported() {
    let core = core(&web(), 1, tiny());
    let (ours, theirs) = (split(core.clone(), &web(), &sealed(100, 1)), split(core.clone(), &web(), &sealed(100, 2)));
    // Interleaved: no shard of one ever helps the other.
    let mut node = Node::new(Caps::default());
    for index in 0..5 {
        node.send(&ours[0].segments[index].record);
        node.send(&theirs[0].segments[index].record);
    }
    assert_eq!(node.equivocations[0].first, ours[0].digest);
    assert_eq!(node.equivocations[0].second, theirs[0].digest);
    ours[1..].iter().chain(&theirs[1..]).for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.staged[&key_of(&core)], (ours.last().unwrap().digest, sealed(100, 1)), "one chain, one D");
    node.wait(Duration::from_secs(61));
    node.assert_clean();
    // The other branch alone is as good.
    let mut node = Node::new(Caps::default());
    theirs.iter().for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.staged[&key_of(&core)].0, theirs.last().unwrap().digest);
}

#[test]
fn r01_headers_of_one_stripe_are_bounded() {
    let mut node = Node::new(Caps::default());
    for seed in 0..20 {
        let stripes = split(core(&web(), 1, tiny()), &web(), &sealed(100, seed));
        node.send(&stripes[1].segments[0].record);
    }
    assert_eq!(node.reassembler.deferred(), 20 - limits::HEADERS_PER_STRIPE);
}

#[test]
fn r01_a_later_stripe_of_another_branch_gives_way_to_that_of_the_chain() {
    let core = core(&web(), 1, tiny());
    let (ours, theirs) = (split(core.clone(), &web(), &sealed(100, 1)), split(core.clone(), &web(), &sealed(100, 2)));
    let mut node = Node::new(Caps::default());
    node.send_stripe(&theirs[2]);
    node.send_stripe(&theirs[1]);
    ours.iter().for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.staged[&key_of(&core)].1, sealed(100, 1));
    node.wait(Duration::from_secs(61));
    node.assert_clean();
}

/// The stripe with its header changed, its segments signed again.
pub fn resigned(stripe: &Stripe, change: impl Fn(&mut StripeHeader)) -> Vec<Bytes> {
    let mut header = stripe.header.clone();
    change(&mut header);
    let shards: Vec<Vec<u8>> = stripe
        .segments
        .iter()
        .map(|segment| segment.record[segment.record.len() - stripe.header.shard_bytes()..].to_vec())
        .collect();
    forge(header, &web(), &shards)
}

/// A stripe 1 that does not belong behind stripe 0, before it and behind it.
fn not_joined(stripes: &[Stripe], wrong: &[Bytes]) {
    let core = &stripes[0].header.core;
    for before in [false, true] {
        let mut node = Node::new(Caps::default());
        if before {
            wrong.iter().for_each(|record| {
                node.send(record);
            });
            node.send_stripe(&stripes[0]);
        } else {
            node.send_stripe(&stripes[0]);
            wrong.iter().for_each(|record| {
                node.send(record);
            });
        }
        // Shards beyond k, of a stripe that was still possible, wait for the parcel's end.
        let deferred = if before { 3 } else { 5 };
        assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::Equivocation, deferred)].into());
        assert_eq!(node.assembling[&key_of(core)].len(), 48, "only stripe 0 was handed out");
        // The true stripes still finish it.
        node.send_stripe(&stripes[1]);
        node.send_stripe(&stripes[2]);
        assert_eq!(node.staged[&key_of(core)].0, stripes[2].digest);
        node.assert_clean();
    }
}

#[test]
fn r01_n23_a_stripe_of_another_core_is_not_joined() {
    let (_, _, stripes) = parcel(1, 100);
    not_joined(&stripes, &resigned(&stripes[1], |header| header.core.destinations[0].sequence = 99));
}

#[test]
fn r01_n24_a_stripe_of_another_chain_or_in_anothers_place_is_not_joined() {
    let (_, _, stripes) = parcel(1, 100);
    not_joined(&stripes, &resigned(&stripes[1], |header| header.previous.0[0] ^= 1));
    let reordered = resigned(&stripes[2], |header| {
        header.stripe = 1;
        header.last = true;
    });
    not_joined(&stripes, &reordered);
}

#[test]
fn n25_with_a_middle_stripe_missing_nothing_behind_it_is_handed_out_and_the_sender_is_asked() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 4);
    node.send_stripe(&stripes[0]);
    node.send(&stripes[1].segments[4].record);
    node.send_stripe(&stripes[2]);
    node.send_stripe(&stripes[3]);
    assert_eq!(node.assembling[&key_of(&core)].len(), 48);
    assert_ne!(node.cursors[0].mark().offset, node.log[0].len() as i64);
    node.wait(STALLED_AFTER);
    assert_eq!(node.missing, [Missing { parcel: key_of(&core), stripe: 1, held: vec![4] }]);
    // It left memory, and no cursor waits for it.
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64);
    assert_eq!(node.notes.len(), 16);
    assert!(node.reassembler.held_bytes() < 2000 + 256 * 1024, "no more than what is opened of it");
    // The sender sends what is missing: together with what was deferred it is enough.
    node.send(&stripes[1].segments[0].record);
    node.send(&stripes[1].segments[2].record);
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
}

#[test]
fn n26_nothing_is_joined_behind_the_last_stripe() {
    let (_, _, stripes) = parcel(1, 48 * 2);
    let behind = |stripe| {
        resigned(&stripes[0], |header| {
            (header.stripe, header.last, header.previous) = (stripe, true, stripes[1].digest);
        })
    };
    let all = stripes.iter().flat_map(|stripe| &stripe.segments).map(|segment| segment.record.clone());
    let whole: Vec<Bytes> = all.collect();
    // Before the last one and after it; the stage has not answered yet.
    for records in [[behind(2), whole.clone()].concat(), [whole, behind(2), behind(7)].concat()] {
        let mut node = Node::new(Caps::default());
        let (mut handed_out, mut told) = (Vec::new(), 0);
        for record in &records {
            let at = node.append(0, record);
            let mut actions = VecDeque::from(node.reassembler.take(node.gate.check(record, NOW), at, node.now));
            while let Some(action) = actions.pop_front() {
                match action {
                    Action::Recover(job) => actions.extend(node.reassembler.recovered(job.run(), node.now)),
                    Action::Deliver(delivery) => handed_out.push(delivery.header.stripe),
                    Action::Equivocation(_) => told += 1,
                    _ => {}
                }
            }
        }
        assert_eq!(handed_out, [0, 1]);
        assert_eq!(told > 0, records.len() > 15, "what comes behind it contradicts it");
        if records.len() > 15 {
            assert_eq!(told, 10, "each of them, however far behind");
        }
    }
}

#[test]
fn n26_of_two_last_stripes_the_chain_has_one() {
    let (core, _, stripes) = parcel(1, 100);
    // Stripe 1 as the last one, with stripe 2 still following it.
    let early = resigned(&stripes[1], |header| header.last = true);
    let mut node = Node::new(Caps::default());
    node.send_stripe(&stripes[2]);
    node.send_stripe(&stripes[0]);
    early.iter().for_each(|record| {
        node.send(record);
    });
    let (_, staged) = &node.staged[&key_of(&core)];
    assert_eq!(staged.len(), 96, "its own D, its own bytes");
    node.wait(Duration::from_secs(61));
    node.assert_clean();
}

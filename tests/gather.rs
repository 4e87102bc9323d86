//! The reassembler against a driver that does what a node does (log, notes, cursors, blocking work) and a model that knows
//! what must come out. Numbers in names are those of the list of inputs that must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/gathering.rs"]
mod gathering;
#[path = "common/segments.rs"]
mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gathering::*;
use proptest::prelude::*;
use sealcast::core::directory::KeyState;
use sealcast::core::gather::{Caps, Cursor, DeferReason, Missing, Refused, STALLED_AFTER};
use sealcast::core::id::{RefusalReason, Suite, Time};
use sealcast::core::limits;
use sealcast::core::split::header::Core;
use sealcast::core::split::stripe::Stripe;
use segments::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Parcels of two senders, segments lost up to m of each stripe, doubled, in any order over three partitions that are
    /// read at any pace, under caps that force deferrals: everything comes out once, in order, and every offset passes.
    #[test]
    fn whatever_the_order_everything_comes_out_once(
        lengths in prop::collection::vec(1usize..400, 1..8),
        losses in prop::collection::vec(0u8..32, 1..40),
        keys in prop::collection::vec((any::<u32>(), 0usize..3, 0u8..10), 1..40),
        paces in prop::collection::vec(0usize..3, 1..40),
        caps in (6_000usize..40_000, 8_000usize..60_000),
    ) {
        let caps = Caps { sender_bytes: caps.0, total_bytes: caps.1, deferred: 10_000 };
        let mut node = Node::new(caps);
        let mut records = Vec::new();
        let mut expected = BTreeMap::new();
        for (number, &length) in (0u8..).zip(&lengths) {
            let sender = if number & 1 == 0 { web() } else { shop() };
            let core = core(&sender, number, tiny());
            let sealed = sealed(length, number);
            let stripes = split(core.clone(), &sender, &sealed);
            expected.insert(key_of(&core), (stripes.last().unwrap().digest, sealed));
            for stripe in &stripes {
                let lost = losses[(stripe.header.stripe as usize + usize::from(number)) % losses.len()];
                let mut left = 2;
                for segment in &stripe.segments {
                    if left > 0 && lost >> segment.index & 1 == 1 {
                        left -= 1;
                    } else {
                        records.push(segment.record.clone());
                    }
                }
            }
        }
        let mut placed: Vec<_> = records
            .iter()
            .enumerate()
            .flat_map(|(at, record)| {
                let (order, partition, copies) = keys[at % keys.len()];
                let order = order.wrapping_mul(at as u32 + 1);
                let copies = if copies == 0 { 2 } else { 1 };
                (0..copies).map(move |copy: u32| (order.rotate_left(copy * 7), partition, record))
            })
            .collect();
        placed.sort_by_key(|(order, partition, _)| (*order, *partition));
        for (_, partition, record) in placed {
            node.append(partition, record);
        }
        let all = 3 * node.log.iter().map(Vec::len).max().unwrap();
        for step in 0..2 * all {
            node.collect(if step < all { paces[step % paces.len()] } else { step % 3 });
            prop_assert!(node.reassembler.held_bytes() <= caps.total_bytes);
            prop_assert!(node.reassembler.held_bytes_of(&bytes_of(&web())) <= caps.sender_bytes);
        }
        for _ in 0..200 {
            if node.staged.len() == expected.len() && node.reassembler.deferred() == 0 {
                break;
            }
            node.wait(Duration::from_secs(5));
            prop_assert!(node.reassembler.held_bytes() <= caps.total_bytes);
        }
        prop_assert_eq!(&node.staged, &expected);
        prop_assert!(node.equivocations.is_empty() && node.refused.is_empty() && node.assembling.is_empty());
        node.assert_clean();
    }
}

#[test]
fn a_parcel_far_larger_than_the_caps_passes() {
    let caps = Caps { sender_bytes: 16_000, total_bytes: 16_000, deferred: 100 };
    let mut node = Node::new(caps);
    let (core, sealed, stripes) = parcel(1, 48 * 2000);
    for stripe in &stripes {
        node.send_stripe(stripe);
        assert!(node.reassembler.held_bytes() <= caps.total_bytes);
    }
    assert_eq!(node.staged[&key_of(&core)], (stripes.last().unwrap().digest, sealed));
    assert_eq!(node.rereads, 0, "in order, nothing needs to be deferred");
    node.assert_clean();
}

#[test]
fn what_is_over_the_caps_is_deferred_and_finished_later() {
    let caps = Caps { sender_bytes: 12_000, total_bytes: 100_000, deferred: 100_000 };
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
fn a_sender_that_fills_the_memory_does_not_keep_others_out() {
    let caps = Caps { sender_bytes: 60_000, total_bytes: 30_000, deferred: 10_000 };
    let mut node = Node::new(caps);
    // Many parcels of which k - 1 shards come.
    for number in 10..60 {
        let (_, _, stripes) = parcel(number, 48);
        stripes[0].segments.iter().take(2).for_each(|segment| {
            node.send(&segment.record);
        });
    }
    assert!(node.reassembler.held_bytes() > 25_000);
    for number in 0..20 {
        let core = core(&shop(), number, tiny());
        let stripes = split(core.clone(), &shop(), &sealed(90, number));
        stripes.iter().for_each(|stripe| node.send_stripe(stripe));
        assert!(node.staged.contains_key(&key_of(&core)), "{number}");
    }
}

#[test]
fn deferred_addresses_are_bounded_and_the_newest_go() {
    let caps = Caps { sender_bytes: 3_000, total_bytes: 3_000, deferred: 5 };
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
fn late_segments_of_an_ended_parcel_pass_at_once() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 48);
    for segment in &stripes[0].segments[..3] {
        node.send(&segment.record);
    }
    assert!(node.reassembler.has_ended(&key_of(&core)));
    let late = node.send(&stripes[0].segments[4].record);
    assert!(node.passed.contains(&late));
    node.assert_clean();
    // Known from the store, before any segment came.
    let (core, _, stripes) = parcel(2, 48);
    let actions = node.reassembler.end(&key_of(&core), core.expiry, node.now);
    node.act(actions);
    node.send_stripe(&stripes[0]);
    assert!(!node.staged.contains_key(&key_of(&core)));
    node.assert_clean();
}

#[test]
fn n21_one_parcel_id_from_two_senders_is_two_parcels() {
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
fn n22_two_headers_for_one_stripe_are_kept_apart_and_reported() {
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
fn headers_of_one_stripe_are_bounded() {
    let mut node = Node::new(Caps::default());
    for seed in 0..20 {
        let stripes = split(core(&web(), 1, tiny()), &web(), &sealed(100, seed));
        node.send(&stripes[1].segments[0].record);
    }
    assert_eq!(node.reassembler.deferred(), 20 - limits::HEADERS_PER_STRIPE);
}

#[test]
fn a_later_stripe_of_another_branch_gives_way_to_that_of_the_chain() {
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
fn resigned(stripe: &Stripe, change: impl Fn(&mut sealcast::core::split::header::StripeHeader)) -> Vec<Bytes> {
    let mut header = stripe.header.clone();
    change(&mut header);
    let shards: Vec<Vec<u8>> = stripe
        .segments
        .iter()
        .map(|segment| segment.record[segment.record.len() - stripe.header.shard_bytes()..].to_vec())
        .collect();
    forge(header, &web(), &shards)
}

#[test]
fn n23_n24_a_stripe_of_another_core_or_chain_is_not_joined() {
    let (core, _, stripes) = parcel(1, 100);
    let other_core = resigned(&stripes[1], |header| header.core.destinations[0].sequence = 99);
    let other_previous = resigned(&stripes[1], |header| header.previous.0[0] ^= 1);
    let swapped = resigned(&stripes[2], |header| {
        header.stripe = 1;
        header.last = true;
    });
    for wrong in [other_core, other_previous, swapped] {
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
            assert_eq!(node.assembling[&key_of(&core)].len(), 48, "only stripe 0 was handed out");
            // The true stripes still finish it.
            node.send_stripe(&stripes[1]);
            node.send_stripe(&stripes[2]);
            assert_eq!(node.staged[&key_of(&core)].0, stripes[2].digest);
            node.assert_clean();
        }
    }
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
    assert!(node.reassembler.held_bytes() < 2000);
    // The sender sends what is missing: together with what was deferred it is enough.
    node.send(&stripes[1].segments[0].record);
    node.send(&stripes[1].segments[2].record);
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
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

#[test]
fn n35_a_miscoded_stripe_refuses_the_parcel_under_its_d() {
    let (core, _, stripes) = parcel(1, 48 * 4);
    let mut shards: Vec<Vec<u8>> = (0..5).map(|seed| sealed(16, seed)).collect();
    shards[4].fill(0);
    let miscoded = forge(stripes[1].header.clone(), &web(), &shards);
    let digest = sealcast::core::split::segment::Segment::parse(&miscoded[0])
        .unwrap()
        .verify(&Default::default(), &web().public())
        .unwrap()
        .digest();
    // The rest of the chain, over the miscoded stripe.
    let third = resigned(&stripes[2], |header| header.previous = digest);
    let parse = |record: &Bytes| {
        let segment = sealcast::core::split::segment::Segment::parse(record).unwrap();
        segment.verify(&Default::default(), &web().public()).unwrap()
    };
    let third_digest = parse(&third[0]).digest();
    let fourth = resigned(&stripes[3], |header| header.previous = third_digest);
    let expected = Refused {
        parcel: key_of(&core),
        digest: parse(&fourth[0]).digest(),
        reason: RefusalReason::Miscoded,
        expiry: EXPIRY,
    };
    let first: Vec<Bytes> = stripes[0].segments.iter().map(|segment| segment.record.clone()).collect();
    // One header of each later stripe is enough to learn D, before or after.
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut node = Node::new(Caps::default());
        for stripe in order {
            [&first, &miscoded, &third, &fourth][stripe].iter().for_each(|record| {
                node.send(record);
            });
        }
        assert_eq!(node.refused.as_slice(), std::slice::from_ref(&expected));
        assert!(node.staged.is_empty());
        node.assert_clean();
    }
    let mut node = Node::new(Caps::default());
    first.iter().chain(&miscoded).for_each(|record| {
        node.send(record);
    });
    node.send(&third[3]);
    assert!(node.refused.is_empty(), "D is not known yet");
    node.send(&fourth[1]);
    assert_eq!(node.refused, [expected]);
    node.assert_clean();
}

#[test]
fn a_refusal_by_whoever_opens_waits_for_d_too() {
    let (core, _, stripes) = parcel(1, 48 * 3);
    let mut node = Node::new(Caps::default());
    node.refuse_first = Some(RefusalReason::Unopenable);
    stripes.iter().for_each(|stripe| node.send_stripe(stripe));
    let digest = stripes[2].digest;
    let reason = RefusalReason::Unopenable;
    assert_eq!(node.refused, [Refused { parcel: key_of(&core), digest, reason, expiry: EXPIRY }]);
    node.assert_clean();
}

/// What a sender does to its core.
type Change<'a> = &'a dyn Fn(&mut Core);

#[test]
fn n14_n15_n16_n39_what_the_directory_rules_out_is_refused() {
    let mut draft = draft();
    let retired = {
        let entry = draft.destinations.get_mut(&"orders".parse().unwrap()).unwrap();
        entry.minimum_suite = Suite::XWing;
        let mut retired = key();
        retired.public = vec![3; 1216].into();
        retired.id = sealcast::core::directory::key_id(Suite::XWing, &retired.public);
        retired.state = KeyState::Retired;
        entry.keys.push(retired.clone());
        retired
    };
    let directory = Arc::new(sign(&draft));
    let cases: [(Change, RefusalReason); 5] = [
        (&|core| core.destinations[0].key = retired.id, RefusalReason::RetiredKey),
        (&|core| core.suite = Suite::X25519, RefusalReason::Suite),
        (&|core| (core.suite, core.destinations[0].key) = (Suite::X25519, key_suite_1().id), RefusalReason::Suite),
        (&|core| core.destinations[0].key = key_suite_1().id, RefusalReason::Suite),
        (&|core| core.expiry = NOW.after(Duration::from_secs(7 * 86400 + 3601)), RefusalReason::ExpiryTooFar),
    ];
    for (change, reason) in cases {
        let mut node = Node::new(Caps::default());
        let actions = node.reassembler.set_directory(directory.clone(), node.now);
        node.act(actions);
        let mut core = core(&web(), 1, tiny());
        change(&mut core);
        let stripes = split(core.clone(), &web(), &sealed(100, 1));
        stripes.iter().rev().for_each(|stripe| node.send_stripe(stripe));
        let digest = stripes[2].digest;
        assert_eq!(node.refused, [Refused { parcel: key_of(&core), digest, reason, expiry: core.expiry }]);
        node.assert_clean();
    }
}

#[test]
fn unknown_senders_and_keys_are_deferred_until_a_directory_lists_them() {
    let stranger = secret(77);
    let new_key = sealcast::core::directory::key_id(Suite::XWing, &[8; 1216]);
    let (mut first, mut second) = (core(&stranger, 1, tiny()), core(&web(), 2, tiny()));
    (first.suite, first.destinations[0].key) = (Suite::X25519, key_suite_1().id);
    second.destinations[0].key = new_key;
    let mut node = Node::new(Caps::default());
    for (core, key) in [(&first, &stranger), (&second, &web())] {
        split(core.clone(), key, &sealed(40, 1)).iter().for_each(|stripe| node.send_stripe(stripe));
    }
    let reasons = [(DeferReason::UnknownSender, 5), (DeferReason::KeyMissing, 5)].into();
    assert_eq!(node.reassembler.deferred_by_reason(), reasons);
    assert_eq!(node.cursors[0].mark().offset, 10);
    let mut draft = draft();
    let mut entry = draft.senders.values().next().unwrap().clone();
    (entry.name, entry.signing) = ("stranger".parse().unwrap(), stranger.public());
    draft.add_sender(entry);
    let orders = draft.destinations.get_mut(&"orders".parse().unwrap()).unwrap();
    let current = sealcast::core::directory::DestinationKey::current(Suite::XWing, vec![8; 1216].into()).unwrap();
    orders.keys.iter_mut().filter(|key| key.suite == Suite::XWing).for_each(|key| key.state = KeyState::Retired);
    orders.keys.push(current);
    let directory = Arc::new(sign(&draft));
    node.gate.set_directory(directory.clone());
    let actions = node.reassembler.set_directory(directory, node.now);
    node.act(actions);
    assert_eq!(node.staged.len(), 2);
    node.assert_clean();
}

#[test]
fn expired_parcels_are_abandoned_and_their_offsets_pass() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 48 * 3);
    node.send_stripe(&stripes[0]);
    node.send(&stripes[1].segments[0].record);
    node.set_group_time(EXPIRY);
    assert!(node.abandoned.is_empty(), "not past it yet");
    node.set_group_time(Time(EXPIRY.0 + 1));
    assert_eq!(node.abandoned, [key_of(&core)]);
    node.send_stripe(&stripes[2]);
    node.assert_clean();
}

#[test]
fn a_local_fault_defers_the_whole_parcel_and_it_is_gathered_again() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 3);
    node.send_stripe(&stripes[0]);
    node.send_stripe(&stripes[1]);
    node.assembling.clear();
    let actions = node.reassembler.defer_parcel(&key_of(&core), DeferReason::Local, node.now);
    node.act(actions);
    assert_eq!((node.notes.len(), node.reassembler.held_bytes()), (10, 0));
    let actions = node.reassembler.lifted(DeferReason::Local, node.now);
    node.act(actions);
    node.send_stripe(&stripes[2]);
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
}

#[test]
fn notes_of_the_store_are_read_again_after_a_start() {
    let mut before = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 2);
    before.send_stripe(&stripes[0]);
    before.wait(STALLED_AFTER);
    assert_eq!(before.notes.len(), 5);
    // A new process: cursors and notes come from the store, everything else is new.
    let mut node = Node::new(Caps::default());
    node.log = before.log.clone();
    node.cursors = before.cursors.iter().map(|cursor| Cursor::new(cursor.mark())).collect();
    node.notes = before.notes.clone();
    node.reassembler.restore(node.notes.clone());
    node.send_stripe(&stripes[1]);
    assert!(node.staged.is_empty());
    node.wait(Duration::from_secs(1));
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
}

#[test]
fn records_that_are_no_segments_pass() {
    let mut node = Node::new(Caps::default());
    for record in [&b"SCQY\x01query"[..], b"", b"SCSG\x01", b"SCSG\x02later"] {
        node.send(&Bytes::from_static(record));
    }
    assert_eq!(node.passed.len(), 3);
    assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::UnknownVersion, 1)].into());
    assert_eq!(node.cursors[0].mark().offset, 4);
}

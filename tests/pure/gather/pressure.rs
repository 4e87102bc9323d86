//! R16 under pressure: a sender that floods a node with half parcels, strangers, replays. Others proceed, memory stays within
//! its caps, no offset waits for ever, and what was put off is finished once it can be.

use std::time::Duration;

use bytes::Bytes;
use sealcast::core::gather::{Address, Caps, DeferReason, Gate, Reassembler, STALLED_AFTER};
use sealcast::core::id::{ParcelId, Time};
use sealcast::core::split::header::Core;

use crate::gathering::*;
use crate::segments::*;

/// A parcel of the honest sender goes through at once.
fn honest(node: &mut Node, number: u8) {
    let core = core(&shop(), number, tiny());
    let bytes = sealed(90, number);
    for stripe in &split(core.clone(), &shop(), &bytes) {
        node.send_stripe(stripe);
    }
    assert!(node.staged.get(&key_of(&core)).is_some_and(|(_, staged)| *staged == bytes), "{number} waits for others");
}

/// The record of one shard of a one-stripe parcel of which no more comes; one for each number.
fn half(number: u32) -> Bytes {
    let mut random = [0; 10];
    random[..4].copy_from_slice(&number.to_be_bytes());
    let core = Core { parcel: ParcelId::from_parts(NOW, random), ..core(&web(), 0, tiny()) };
    split(core, &web(), &sealed(40, 1))[0].segments[0].record.clone()
}

#[test]
fn r16_sixty_four_parcels_of_sixty_four_half_stripes_delay_nobody_and_are_finished_later() {
    let caps = Caps { sender_bytes: 2_000_000, total_bytes: 2_500_000, deferred: 100_000 };
    let mut node = Node::new(caps);
    let parcels: Vec<_> = (0..64).map(|number| parcel(number, 48 * 64)).collect();
    for round in 0..64 {
        for (_, _, stripes) in &parcels {
            for segment in &stripes[round].segments[..2] {
                node.send(&segment.record);
                assert!(node.reassembler.held_bytes() <= caps.total_bytes);
            }
        }
        honest(&mut node, round as u8);
    }
    assert!(node.reassembler.deferred_by_reason().contains_key(&DeferReason::SenderMemory));
    assert_eq!(node.cursors[0].next(), node.log[0].len() as i64, "nobody's records wait to be read");
    node.wait(STALLED_AFTER);
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64, "and no offset waits for what does not come");
    // The other halves.
    for (_, _, stripes) in &parcels {
        for stripe in stripes {
            node.send(&stripe.segments[4].record);
        }
    }
    for _ in 0..300 {
        node.wait(Duration::from_secs(1));
        assert!(node.reassembler.held_bytes() <= caps.total_bytes);
    }
    for (core, sealed, _) in &parcels {
        assert!(node.staged.get(&key_of(core)).is_some_and(|(_, staged)| staged == sealed));
    }
    node.wait(Duration::from_secs(61));
    node.assert_clean();
}

/// So many half parcels under caps; every so often an honest one.
fn many_half_parcels(count: u32, caps: Caps) {
    let mut node = Node::new(caps);
    for number in 0..count {
        node.send(&half(number));
        assert!(node.reassembler.held_bytes() <= caps.sender_bytes);
        assert!(node.reassembler.deferred() <= caps.deferred);
        if number % (count / 64) == 0 {
            honest(&mut node, (number / (count / 64)) as u8);
        }
    }
    assert_eq!(node.reassembler.deferred_of(&bytes_of(&web())), caps.deferred, "the bound is what it is for");
    assert!(node.reassembler.overflowed() > 0);
    let waiting = node.cursors[0].open();
    assert!(waiting <= 2 * node.reassembler.open_parcels() + 1, "{waiting} entries of one partition are remembered");
    node.wait(STALLED_AFTER);
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64);
    honest(&mut node, 255);
}

#[test]
fn r16_ten_thousand_half_parcels_stay_within_the_caps() {
    many_half_parcels(10_000, Caps { sender_bytes: 3_200_000, total_bytes: 6_400_000, deferred: 6_553 });
}

#[test]
#[ignore = "the same at its real size: half a minute"]
fn r16_a_hundred_and_fifty_thousand_half_parcels_stay_within_the_caps_of_a_node() {
    many_half_parcels(150_000, Caps::default());
}

#[test]
fn r16_the_newest_addresses_go_first_and_the_oldest_are_kept() {
    let caps = Caps { sender_bytes: 3_000, total_bytes: 3_000, deferred: 5 };
    let mut node = Node::new(caps);
    // One is in memory; of the others the oldest are noted.
    for number in 10..40 {
        node.send(&half(number));
    }
    let noted = |node: &Node| node.notes.keys().map(|at| at.offset).collect::<Vec<_>>();
    assert_eq!((noted(&node), node.passed.len()), (vec![1, 2, 3, 4, 5], 24));
    // An earlier parcel takes its place in memory: its address is older than all that are noted.
    node.send(&half(9));
    assert_eq!(noted(&node), [0, 1, 2, 3, 4]);
    assert!(node.passed.contains(&Address { partition: 0, offset: 5 }));
}

#[test]
fn r16_all_senders_together_are_bounded_and_the_largest_yields() {
    let caps = Caps { sender_bytes: 2_000, total_bytes: 2_000, deferred: 8 };
    let mut node = Node::new(caps);
    for number in 0..8 {
        node.send(&half(number));
    }
    for number in 0..7 {
        let stripes = split(core(&shop(), number, tiny()), &shop(), &sealed(40, number));
        node.send(&stripes[0].segments[0].record);
    }
    for number in 0..12 {
        let stripes = split(core(&secret(77), number, tiny()), &secret(77), &sealed(40, number));
        node.send(&stripes[0].segments[0].record);
        assert!(node.reassembler.deferred() <= 16);
    }
    let unknown = node.reassembler.deferred_by_reason()[&DeferReason::UnknownSender];
    let (web, shop) =
        (node.reassembler.deferred_of(&bytes_of(&web())), node.reassembler.deferred_of(&bytes_of(&shop())));
    assert!(unknown >= 5 && web >= 5 && shop >= 5, "{unknown}, {web} and {shop}: each has about a third");
}

#[test]
fn r16_a_segment_replayed_for_ever_holds_no_offset_up_and_costs_nothing() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 2);
    node.send_stripe(&stripes[0]);
    let first = node.send(&stripes[1].segments[0].record);
    let held = node.reassembler.held_bytes();
    for round in 0..3000 {
        // Of a stripe that was handed out, of one that is gathered; and others' records between them.
        node.send(&stripes[0].segments[(round % 5) as usize].record);
        node.send(&stripes[1].segments[0].record);
        if round % 100 == 0 {
            honest(&mut node, (round / 100) as u8);
        }
    }
    // Of the six shards that came, twelve copies wait at most: where the first of a stripe that was handed out lay is not
    // known any more.
    assert!(node.reassembler.held_bytes() <= held + 12 * 32, "{} of {held}", node.reassembler.held_bytes());
    assert!(node.cursors[0].open() <= 32, "{} entries", node.cursors[0].open());
    // The first copy of each still waits: after a crash they are read again.
    assert_eq!(node.cursors[0].mark().offset, 0);
    assert!((0..=first.offset).all(|offset| !node.passed.contains(&Address { partition: 0, offset })));
    node.send(&stripes[1].segments[1].record);
    node.send(&stripes[1].segments[2].record);
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
}

#[test]
fn r16_a_copy_in_another_partition_waits_like_the_first() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 40);
    let segments = &stripes[0].segments;
    let put = |node: &mut Node, partition: usize, index: usize| {
        let at = node.append(partition, &segments[index].record);
        node.collect(partition);
        at
    };
    put(&mut node, 0, 0);
    // Its broker was late when it was sent: the others have copies, in case it is lost, and the sender with it.
    let copies = [put(&mut node, 1, 0), put(&mut node, 2, 0)];
    assert!(copies.iter().all(|at| !node.passed.contains(at)));
    assert_eq!(
        [1, 2].map(|partition| node.cursors[partition].mark().offset),
        [0, 0],
        "they are read again after a crash"
    );
    // Put off, they are noted like the first.
    node.wait(STALLED_AFTER);
    assert_eq!(node.notes.len(), 3);
    for at in copies {
        assert!(node.notes.contains_key(&at), "{at:?}");
    }
    // Replayed for ever, only a few wait.
    for _ in 0..1000 {
        put(&mut node, 1, 0);
    }
    node.wait(STALLED_AFTER);
    assert!(node.notes.len() <= 6, "{} wait", node.notes.len());
    for index in 1..3 {
        put(&mut node, 0, index);
    }
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    node.assert_clean();
}

#[test]
fn r16_what_is_due_is_read_again_bit_by_bit_and_never_twice_at_once() {
    let mut reassembler = Reassembler::new(std::sync::Arc::new(directory()), orders(), Caps::default());
    let addresses = (0..10_000).map(|offset| Address { partition: 0, offset });
    reassembler.restore(addresses.map(|at| (at, DeferReason::UnknownSender)));
    let reread = |reassembler: &mut Reassembler, now| {
        let actions = reassembler.due(Time(now));
        let of = |action| match action {
            sealcast::core::gather::Action::Reread(addresses) => addresses,
            other => panic!("{other:?}"),
        };
        actions.into_iter().flat_map(of).collect::<Vec<Address>>()
    };
    let first = reread(&mut reassembler, 1000);
    assert!((1..5000).contains(&first.len()), "{} at once", first.len());
    // A slow disk or broker: however long it takes, nothing is asked for twice.
    for second in 2..200 {
        assert_eq!(reread(&mut reassembler, second * 1000), []);
    }
    // Two came, two could not be reached: as many others may be read now.
    let unknown = Gate::new(std::sync::Arc::new(directory()), orders()).check(&half_of_stranger(), NOW);
    for at in &first[..2] {
        drop(reassembler.take(unknown.clone(), *at, Time(200_000)));
    }
    reassembler.not_read(&first[2..4], None);
    let second = reread(&mut reassembler, 200_000);
    assert_eq!(second.len(), 4);
    assert!(second[2..].iter().all(|at| !first.contains(at)), "those that waited longest first: {second:?}");
    assert_eq!(reassembler.deferred(), 10_000, "none is forgotten");
}

fn half_of_stranger() -> Bytes {
    split(core(&secret(77), 1, tiny()), &secret(77), &sealed(40, 1))[0].segments[0].record.clone()
}

//! R16 under pressure: a sender that floods a node with half parcels, strangers, replays. Others proceed, memory stays within
//! its caps, no offset waits for ever, and what was put off is finished once it can be.

use std::time::Duration;

use bytes::Bytes;
use sealcast::core::gather::deferred::READ_AGAIN_AT_MOST;
use sealcast::core::gather::{Address, Caps, DeferReason, Gate, Identity, LET_GO_AFTER, Reassembler, STALLED_AFTER};
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
    let caps = Caps { sender_bytes: 3_000_000, total_bytes: 3_750_000, deferred: 100_000 };
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
    many_half_parcels(10_000, Caps { sender_bytes: 4_800_000, total_bytes: 9_600_000, deferred: 6_553 });
}

#[test]
fn r16_a_hundred_thousand_half_parcels_stay_within_the_caps_of_a_node() {
    const MANY: u32 = 100_000;
    let (caps, mut node) = (Caps::default(), Node::new(Caps::default()));
    // They are made and verified side by side: that is what takes its time.
    let gate = Gate::new(std::sync::Arc::new(directory()), orders());
    let verified = |from: u32| {
        let numbers = (from..MANY).step_by(2);
        numbers.map(|number| gate.check(&half(number), NOW).unwrap()).collect::<Vec<_>>()
    };
    let (even, odd) = std::thread::scope(|scope| {
        let odd = scope.spawn(|| verified(1));
        (verified(0), odd.join().unwrap())
    });
    let (mut most_held, mut most_deferred) = (0, 0);
    for (number, segment) in (0..).zip(even.into_iter().zip(odd).flat_map(|(even, odd)| [even, odd])) {
        // The record itself is of no use to anybody after this.
        let at = node.append(0, &Bytes::new());
        node.cursors[0].see(at.offset, Identity::of(b"", &at.offset.to_be_bytes()));
        let actions = node.reassembler.receive(segment, at, node.now);
        node.act(actions);
        (most_held, most_deferred) =
            (most_held.max(node.reassembler.held_bytes()), most_deferred.max(node.reassembler.deferred()));
        if number % 10_000 == 0 {
            honest(&mut node, (number / 10_000) as u8);
        }
    }
    assert!(
        most_held <= caps.sender_bytes && most_deferred <= caps.deferred,
        "{most_held} bytes, {most_deferred} noted"
    );
    assert_eq!(node.reassembler.deferred_of(&bytes_of(&web())), caps.deferred, "the bound is what it is for");
    assert!(node.reassembler.overflowed() > 0);
    node.wait(STALLED_AFTER);
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64, "no offset waits for what does not come");
    assert!(node.notes.len() <= caps.deferred, "{} notes", node.notes.len());
    honest(&mut node, 255);
}

/// A parcel of this sender, that would take so many stripes and of which only these come.
fn begun(number: u8, stripes: std::ops::Range<usize>) -> Vec<sealcast::core::split::stripe::Stripe> {
    let (_, _, all) = parcel(number, 48 * 200);
    all[stripes].to_vec()
}

#[test]
fn r16_notes_of_parcels_that_stand_still_are_bounded_whatever_was_opened_of_them() {
    let caps = Caps { sender_bytes: 4_000_000, total_bytes: 4_000_000, deferred: 1_200 };
    let mut node = Node::new(caps);
    // Of each, 100 stripes of five shards are opened, and nothing more comes: 500 addresses wait for each parcel's end.
    for number in 0..8 {
        begun(number, 0..100).iter().for_each(|stripe| node.send_stripe(stripe));
        node.wait(STALLED_AFTER);
        assert!(node.notes.len() <= caps.deferred, "{} notes", node.notes.len());
    }
    assert_eq!(node.assembling.len(), 8, "they stay open");
    // The others' addresses hold up the offset until they are let go of; the newest of them then go.
    for _ in 0..LET_GO_AFTER.as_secs() {
        node.wait(Duration::from_secs(1));
        assert!(node.notes.len() <= caps.deferred, "{} notes", node.notes.len());
    }
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64);
    assert!(node.reassembler.overflowed() > 0);
    // Sent again whole, as the outbox does, they come out.
    for number in 0..8 {
        begun(number, 0..200).iter().for_each(|stripe| node.send_stripe(stripe));
    }
    for _ in 0..400 {
        node.wait(Duration::from_secs(1));
    }
    assert_eq!(node.staged.len(), 8);
    node.wait(READ_AGAIN_AT_MOST);
    node.wait(STALLED_AFTER);
    node.assert_clean();
}

#[test]
fn r16_what_opening_holds_counts_against_its_sender_and_its_latest_parcels_wait() {
    let caps = Caps { sender_bytes: 4 << 20, total_bytes: 8 << 20, deferred: 10_000 };
    let mut node = Node::new(caps);
    for number in 0..20 {
        begun(number, 0..1).iter().for_each(|stripe| node.send_stripe(stripe));
        // Each says that it may hold a mebibyte until more of it comes: a wide window of a decompression.
        let key = key_of(&parcel(number, 48).0);
        let actions = node.reassembler.opened(&key, 1 << 20, node.now);
        node.act(actions);
        assert!(node.reassembler.held_bytes() <= caps.sender_bytes, "{}", node.reassembler.held_bytes());
    }
    let open: Vec<_> = node.assembling.keys().copied().collect();
    assert!((1..=4).contains(&open.len()), "{open:?}");
    assert_eq!(open[0], key_of(&parcel(0, 48).0), "the earliest goes on");
    assert!(node.reassembler.deferred_by_reason().contains_key(&DeferReason::SenderMemory));
    honest(&mut node, 1);
    // When less is held, or they end, the others come in.
    for number in 0..20 {
        begun(number, 1..200).iter().for_each(|stripe| node.send_stripe(stripe));
    }
    for _ in 0..1000 {
        node.wait(Duration::from_secs(1));
    }
    assert_eq!(node.staged.len(), 21);
    node.assert_clean();
}

#[test]
fn r16_a_stream_without_end_costs_next_to_nothing_for_each_of_its_records() {
    let mut node = Node::new(Caps::default());
    let before = {
        begun(1, 0..1).iter().for_each(|stripe| node.send_stripe(stripe));
        node.reassembler.held_bytes()
    };
    let (_, _, stripes) = parcel(1, 48 * 20_000);
    for stripe in &stripes[1..19_999] {
        node.send_stripe(stripe);
    }
    let records = node.log[0].len();
    assert!(node.reassembler.held_bytes() - before >= records, "they count, {records} records");
    assert!(node.reassembler.held_bytes() - before <= 4 * records, "{} bytes", node.reassembler.held_bytes() - before);
    assert!(node.cursors[0].open() <= 3 * 4096, "{} entries for {records} records", node.cursors[0].open());
    assert_eq!(node.cursors[0].mark().offset, 0, "all of it is read again after a crash");
    node.send_stripe(&stripes[19_999]);
    assert_eq!(node.staged.len(), 1);
    node.assert_clean();
}

#[test]
fn r07_a_parcel_whose_id_is_far_ahead_of_group_time_waits_until_that_comes_nearer() {
    let mut node = Node::new(Caps::default());
    node.set_group_time(NOW);
    let day = Duration::from_secs(24 * 3600);
    let ahead = |days: u32| Core {
        parcel: ParcelId::from_parts(NOW.after(day * days), [days as u8; 10]),
        expiry: NOW.after(day * (days + 1)),
        ..core(&web(), 0, tiny())
    };
    for days in [1, 6, 8, 3650] {
        split(ahead(days), &web(), &sealed(40, 1)).iter().for_each(|stripe| node.send_stripe(stripe));
    }
    let staged = |node: &Node| node.staged.keys().map(|key| key.parcel.time()).collect::<Vec<_>>();
    assert_eq!(staged(&node), [NOW.after(day), NOW.after(day * 6)]);
    assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::FarAhead, 10)].into());
    assert!(node.refused.is_empty(), "no verdict: it may be group time that stands");
    assert_eq!(node.cursors[0].mark().offset, node.log[0].len() as i64);
    // Group time comes nearer; or only the clock does, while group time lags behind after an outage.
    let mut late = Node::new(Caps::default());
    late.set_group_time(NOW);
    late.reassembler.set_wall(NOW.after(day * 2));
    split(ahead(8), &web(), &sealed(40, 1)).iter().for_each(|stripe| late.send_stripe(stripe));
    assert_eq!(staged(&late), [NOW.after(day * 8)]);
    node.set_group_time(NOW.after(day * 2));
    for _ in 0..3 {
        node.wait(READ_AGAIN_AT_MOST);
    }
    assert_eq!(staged(&node), [1, 6, 8].map(|days| NOW.after(day * days)));
    let rereads = node.rereads;
    for _ in 0..48 {
        node.wait(READ_AGAIN_AT_MOST / 2);
    }
    assert!(node.rereads - rereads <= 5 * 26, "{}: more and more rarely", node.rereads - rereads);
}

#[test]
fn r16_the_newest_addresses_go_first_and_the_oldest_are_kept() {
    let caps = Caps { sender_bytes: 4_500, total_bytes: 4_500, deferred: 5 };
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
    let caps = Caps { sender_bytes: 3_000, total_bytes: 3_000, deferred: 8 };
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

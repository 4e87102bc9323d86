//! What ends, expires or is put off for a local reason: its addresses pass, or are noted and read again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::directory::KeyState;
use sealcast::core::gather::{Address, Caps, Cursor, DeferReason, LET_GO_AFTER, Mark, REPEATED_AFTER, STALLED_AFTER};
use sealcast::core::id::{Suite, Time};

use crate::gathering::*;
use crate::segments::*;

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
    let actions = node.reassembler.end(&key_of(&core), stripes[0].digest, core.expiry, node.now);
    node.act(actions);
    node.send_stripe(&stripes[0]);
    assert!(!node.staged.contains_key(&key_of(&core)));
    node.assert_clean();
}

#[test]
fn r21_unknown_senders_and_keys_are_deferred_until_a_directory_lists_them() {
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
fn r21_a_local_fault_defers_the_whole_parcel_and_it_is_gathered_again() {
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
fn r16_notes_of_the_store_are_read_again_after_a_start() {
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

#[test]
fn what_is_sent_again_long_after_its_end_is_told_once_in_a_while() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 48);
    let key = key_of(&core);
    let first = node.now;
    node.send(&stripes[0].segments[0].record);
    node.wait(Duration::from_secs(1));
    node.send_stripe(&stripes[0]);
    assert_eq!(node.since[&key], Some(first), "the time of the first segment, not of the last");
    node.wait(REPEATED_AFTER - Duration::from_millis(1));
    node.send_stripe(&stripes[0]);
    assert!(node.repeated.is_empty(), "what is merely late is no repetition");
    node.wait(Duration::from_millis(1));
    node.send_stripe(&stripes[0]);
    node.send_stripe(&stripes[0]);
    assert_eq!(node.repeated, [key], "once, however many segments come");
    node.wait(REPEATED_AFTER);
    node.send_stripe(&stripes[0]);
    assert_eq!(node.repeated, [key, key]);
    node.assert_clean();
}

#[test]
fn the_first_segments_time_of_a_parcel_that_was_put_off_is_not_known() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 48);
    node.send(&stripes[0].segments[0].record);
    // It stalls, and leaves memory.
    node.wait(STALLED_AFTER);
    assert_eq!(node.reassembler.open_parcels(), 0);
    node.send_stripe(&stripes[0]);
    assert_eq!(node.since[&key_of(&core)], None);
    node.assert_clean();
}

#[test]
fn r21_after_the_directorys_grace_nothing_new_is_admitted_until_another_is_in_force() {
    let mut ending = draft();
    ending.valid_until = Time(NOW.0 + 1000);
    ending.grace = Duration::from_millis(500);
    let ending = Arc::new(sign(&ending));
    let mut node = Node::new(Caps::default());
    node.gate.set_directory(ending.clone());
    let actions = node.reassembler.set_directory(ending, node.now);
    node.act(actions);
    let (begun, _, begun_stripes) = parcel(1, 48 * 2);
    node.send_stripe(&begun_stripes[0]);
    node.set_group_time(Time(NOW.0 + 1500));
    let (last, _, stripes) = parcel(2, 48);
    node.send_stripe(&stripes[0]);
    assert!(node.staged.contains_key(&key_of(&last)), "the grace runs");
    node.set_group_time(Time(NOW.0 + 1501));
    let (new, _, stripes) = parcel(3, 48);
    node.send_stripe(&stripes[0]);
    assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::DirectoryEnded, 5)].into());
    node.send_stripe(&begun_stripes[1]);
    assert!(node.staged.contains_key(&key_of(&begun)), "what was begun is finished");
    let directory = Arc::new(directory());
    node.gate.set_directory(directory.clone());
    let actions = node.reassembler.set_directory(directory, node.now);
    node.act(actions);
    assert!(node.staged.contains_key(&key_of(&new)));
    node.assert_clean();
}

#[test]
fn r17_old_addresses_of_a_partition_made_anew_pass_nothing_that_lies_there_now() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 3);
    node.send_stripe(&stripes[0]);
    node.send(&stripes[2].segments[0].record);
    // Another one is noted, in the same partition.
    let (other, _, other_stripes) = parcel(2, 48);
    node.send(&other_stripes[0].segments[0].record);
    node.wait(STALLED_AFTER);
    assert_eq!(node.notes.len(), 7);
    node.send(&stripes[2].segments[1].record);
    // The topic is made anew: other records have the old offsets.
    node.log[0].clear();
    node.cursors[0].restart(0);
    let actions = node.reassembler.partition_restarted(0, node.now);
    node.act(actions);
    assert!(node.notes.is_empty(), "{:?}", node.notes);
    let (third, third_sealed, third_stripes) = parcel(3, 48 * 2);
    node.send_stripe(&third_stripes[0]);
    node.passed.clear();
    for stripe in &stripes[1..] {
        for segment in &stripe.segments {
            node.append(1, &segment.record);
            node.collect(1);
        }
    }
    assert_eq!(node.staged[&key_of(&core)].1, sealed, "what was handed out stays so");
    assert!(node.passed.iter().all(|at| at.partition == 1), "{:?}", node.passed);
    assert_eq!(node.cursors[0].mark(), Mark::default());
    // A crash now loses nothing of the third; and it goes on.
    node.send_stripe(&third_stripes[1]);
    assert_eq!(node.staged[&key_of(&third)].1, third_sealed);
    node.send_stripe(&other_stripes[0]);
    assert!(node.staged.contains_key(&key_of(&other)));
    node.assert_clean();
}

#[test]
fn r17_a_stripe_that_is_half_there_when_its_partition_is_made_anew_is_gathered_from_what_is_read_then() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48);
    node.send(&stripes[0].segments[0].record);
    node.send(&stripes[0].segments[1].record);
    node.log[0].clear();
    node.cursors[0].restart(0);
    let actions = node.reassembler.partition_restarted(0, node.now);
    node.act(actions);
    assert_eq!((node.reassembler.held_bytes(), node.reassembler.open_parcels()), (0, 0));
    node.send_stripe(&stripes[0]);
    assert_eq!(node.staged[&key_of(&core)].1, sealed);
    assert!(node.passed.contains(&Address { partition: 0, offset: 4 }));
    node.assert_clean();
}

#[test]
fn r16_a_parcel_that_is_opened_in_part_and_stands_still_is_let_go_of_and_gathered_again() {
    let mut node = Node::new(Caps::default());
    let (core, sealed, stripes) = parcel(1, 48 * 3);
    let key = key_of(&core);
    node.send_stripe(&stripes[0]);
    node.send(&stripes[1].segments[0].record);
    node.wait(STALLED_AFTER);
    assert!(node.assembling.contains_key(&key), "a short pause costs nothing");
    // Its own records, read again, do not count as moving on.
    node.wait(LET_GO_AFTER - STALLED_AFTER);
    assert!(!node.assembling.contains_key(&key), "what was opened of it is dropped");
    assert_eq!((node.reassembler.open_parcels(), node.reassembler.held_bytes()), (0, 0));
    assert_eq!((node.notes.len(), node.reassembler.deferred()), (6, 6));
    // By and by it is read again, more and more rarely: it cannot keep a node reading.
    let (mut now, mut rereads) = (0, node.rereads);
    for _ in 0..4000 {
        node.wait(Duration::from_secs(1));
        now += 1;
    }
    rereads = node.rereads - rereads;
    assert!((6..=120).contains(&rereads), "{rereads} in {now} s");
    // What is new of it brings all of it back at once.
    node.send_stripe(&stripes[2]);
    node.send_stripe(&stripes[1]);
    assert_eq!(node.staged[&key].1, sealed);
    node.assert_clean();
}

#[test]
fn r16_records_that_nobody_could_verify_are_read_again_more_and_more_rarely_and_at_once_when_the_reason_ends() {
    let stranger = secret(77);
    let core = core(&stranger, 1, tiny());
    let stripe = split(core.clone(), &stranger, &sealed(40, 1)).remove(0);
    let mut node = Node::new(Caps::default());
    node.send_stripe(&stripe);
    let mut later = stripe.segments[0].record.to_vec();
    later[4] = 2;
    node.send(&later.into());
    let (mut seconds, mut reread) = (0u32, Vec::new());
    while seconds < 6 * 3600 {
        let before = node.rereads;
        node.wait(Duration::from_secs(1));
        seconds += 1;
        if node.rereads > before {
            assert_eq!(node.rereads - before, 6);
            reread.push(seconds);
        }
    }
    let pauses: Vec<u32> = std::iter::once(reread[0]).chain(reread.windows(2).map(|two| two[1] - two[0])).collect();
    assert_eq!(&pauses[..7], [60, 120, 240, 480, 960, 1920, 3600], "a stranger keeps no node reading");
    assert!(pauses[7..].iter().all(|pause| *pause == 3600), "{pauses:?}");
    let mut draft = draft();
    let mut entry = draft.senders.values().next().unwrap().clone();
    (entry.name, entry.signing) = ("stranger".parse().unwrap(), stranger.public());
    draft.add_sender(entry);
    node.set_directory(Arc::new(sign(&draft)));
    assert!(node.staged.contains_key(&key_of(&core)));
}

#[test]
fn r21_what_is_of_a_later_version_is_put_aside_and_read_again() {
    let (_, _, stripes) = parcel(1, 48);
    // The versions of segment and core, the suite, the signature's algorithm, the codec.
    for byte in [4, 9, 10, 11, 12] {
        let mut node = Node::new(Caps::default());
        let mut later = stripes[0].segments[0].record.to_vec();
        later[byte] = 99;
        let at = node.send(&later.into());
        assert_eq!(node.notes, [(at, DeferReason::UnknownVersion)].into(), "byte {byte}");
        assert!(node.passed.is_empty());
        node.wait(Duration::from_secs(61));
        assert_eq!((node.rereads, node.notes.len()), (1, 1), "it may be known by then, and is not");
    }
}

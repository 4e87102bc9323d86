//! What is refused by its own bytes or by the directory in force, and under which D.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::directory::{Directory, KeyState};
use sealcast::core::gather::{Caps, Refused};
use sealcast::core::id::{KeyId, RefusalReason, Suite, Time};
use sealcast::core::split::header::Core;

use crate::gather::chain::resigned;
use crate::gathering::*;
use crate::segments::*;

#[test]
fn r02_n35_a_miscoded_stripe_refuses_the_parcel_under_its_d() {
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
fn r22_a_refusal_by_whoever_opens_waits_for_d_too() {
    let (core, _, stripes) = parcel(1, 48 * 3);
    let mut node = Node::new(Caps::default());
    node.refuse_first = Some(RefusalReason::Unopenable);
    stripes.iter().for_each(|stripe| node.send_stripe(stripe));
    let digest = stripes[2].digest;
    let reason = RefusalReason::Unopenable;
    assert_eq!(node.refused, [Refused { parcel: key_of(&core), digest, reason, expiry: EXPIRY }]);
    node.assert_clean();
}

/// "orders" takes suite 2 alone, and has a retired key of it; gives its id.
fn strict() -> (Arc<Directory>, KeyId) {
    let mut draft = draft();
    let entry = draft.destinations.get_mut(&"orders".parse().unwrap()).unwrap();
    entry.minimum_suite = Suite::XWing;
    let mut retired = key();
    retired.public = vec![3; 1216].into();
    retired.id = sealcast::core::directory::key_id(Suite::XWing, &retired.public);
    retired.state = KeyState::Retired;
    let id = retired.id;
    entry.keys.push(retired);
    (Arc::new(sign(&draft)), id)
}

/// A parcel whose core was changed like this is refused under its D, for this reason, and nothing of it is recovered.
fn refused_for(change: impl Fn(&mut Core), reason: RefusalReason) {
    let mut node = Node::new(Caps::default());
    node.set_directory(strict().0);
    let mut core = core(&web(), 1, tiny());
    change(&mut core);
    let stripes = split(core.clone(), &web(), &sealed(100, 1));
    stripes.iter().rev().for_each(|stripe| node.send_stripe(stripe));
    let digest = stripes[2].digest;
    assert_eq!(node.refused, [Refused { parcel: key_of(&core), digest, reason, expiry: core.expiry }]);
    assert!(node.staged.is_empty() && node.assembling.is_empty());
    node.assert_clean();
}

#[test]
fn r22_n14_a_retired_epoch_is_refused() {
    let (_, retired) = strict();
    refused_for(|core| core.destinations[0].key = retired, RefusalReason::RetiredKey);
}

#[test]
fn r22_n15_a_suite_below_the_minimum_is_refused() {
    let change = |core: &mut Core| (core.suite, core.destinations[0].key) = (Suite::X25519, key_suite_1().id);
    refused_for(change, RefusalReason::Suite);
}

#[test]
fn r22_n16_mixed_suites_are_refused() {
    refused_for(|core| core.suite = Suite::X25519, RefusalReason::Suite);
    refused_for(|core| core.destinations[0].key = key_suite_1().id, RefusalReason::Suite);
    // Of two reasons all nodes name the same.
    let (_, retired) = strict();
    let both = |core: &mut Core| (core.suite, core.destinations[0].key) = (Suite::X25519, retired);
    refused_for(both, RefusalReason::Suite);
}

#[test]
fn r22_n39_an_expiry_beyond_the_bound_is_refused() {
    let longest = Duration::from_secs(7 * 86400 + 3600);
    refused_for(|core| core.expiry = NOW.after(longest + Duration::from_millis(1)), RefusalReason::ExpiryTooFar);
    refused_for(|core| core.expiry = Time(u64::MAX), RefusalReason::ExpiryTooFar);
    let mut node = Node::new(Caps::default());
    let mut core = core(&web(), 1, tiny());
    core.expiry = NOW.after(longest);
    split(core.clone(), &web(), &sealed(100, 1)).iter().for_each(|stripe| node.send_stripe(stripe));
    assert!(node.staged.contains_key(&key_of(&core)));
}

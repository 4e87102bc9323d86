//! What one sender signed under one parcel id in two ways (R1): each D is judged for itself, whichever came first, and what
//! came second is told of, also after the end.

use std::time::Duration;

use sealcast::core::directory::{KeyState, key_id};
use sealcast::core::gather::{Caps, Equivocation, Refused};
use sealcast::core::id::{RefusalReason, Suite, Time};
use sealcast::core::limits;
use sealcast::core::split::header::Core;
use sealcast::core::split::stripe::Stripe;

use crate::gathering::*;
use crate::segments::*;

/// A node whose directory lists a retired key beside the current one, and a core of the parcel under each.
fn two_cores() -> (Node, Core, Core) {
    let mut draft = draft();
    let mut retired = key();
    retired.public = vec![3; 1216].into();
    retired.id = key_id(Suite::XWing, &retired.public);
    retired.state = KeyState::Retired;
    let good = core(&web(), 1, tiny());
    let mut bad = good.clone();
    bad.destinations[0].key = retired.id;
    draft.destinations.get_mut(&"orders".parse().unwrap()).unwrap().keys.push(retired);
    let mut node = Node::new(Caps::default());
    node.set_directory(std::sync::Arc::new(sign(&draft)));
    (node, good, bad)
}

fn refused(node: &Node, stripe: &Stripe) -> bool {
    let Core { expiry, .. } = stripe.header.core;
    let parcel = key_of(&stripe.header.core);
    node.refused.contains(&Refused { parcel, digest: stripe.digest, reason: RefusalReason::RetiredKey, expiry })
}

#[test]
fn r01_r22_a_core_is_judged_for_itself_and_not_as_another_of_its_parcel() {
    let length = 48 * 2;
    // One segment under the good core, then all of what is sealed to the retired key: that is not staged.
    let (mut node, good, bad) = two_cores();
    let (goods, bads) = (split(good.clone(), &web(), &sealed(length, 1)), split(bad, &web(), &sealed(length, 2)));
    node.send(&goods[0].segments[0].record);
    bads.iter().for_each(|stripe| node.send_stripe(stripe));
    assert!(node.staged.is_empty(), "the directory rules it out");
    assert_eq!(node.equivocations.len(), 1);
    goods.iter().for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.staged[&key_of(&good)].0, goods[1].digest);
    assert!(!refused(&node, &goods[1]), "what is good is not refused");
    node.wait(Duration::from_secs(61));
    node.assert_clean();
    // The other way about: what is ruled out comes first. Each is what it is.
    let (mut node, good, _) = two_cores();
    node.send(&bads[0].segments[0].record);
    goods.iter().for_each(|stripe| node.send_stripe(stripe));
    node.send(&bads[1].segments[0].record);
    assert!(node.refused.iter().all(|refused| refused.digest != goods[1].digest), "{:?}", node.refused);
    goods.iter().for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.staged[&key_of(&good)].1, sealed(length, 1));
    node.wait(Duration::from_secs(61));
    node.assert_clean();
}

#[test]
fn r01_a_refusal_of_one_d_keeps_no_other_away() {
    for stripes in [1, 3] {
        let (mut node, good, bad) = two_cores();
        let (goods, bads) =
            (split(good.clone(), &web(), &sealed(48 * stripes, 1)), split(bad, &web(), &sealed(48 * stripes, 2)));
        bads.iter().for_each(|stripe| node.send_stripe(stripe));
        assert!(refused(&node, bads.last().unwrap()));
        node.assert_clean();
        // The sender sends again what it really has, as long as it has no fate.
        for _ in 0..2 {
            goods.iter().for_each(|stripe| node.send_stripe(stripe));
        }
        assert_eq!(node.staged[&key_of(&good)].0, goods.last().unwrap().digest);
        let (first, second) = (bads.last().unwrap().digest, goods.last().unwrap().digest);
        let alarm = Equivocation { parcel: key_of(&good), stripe: stripes as u32 - 1, first, second };
        assert!(node.equivocations.contains(&alarm), "{:?}", node.equivocations);
        node.assert_clean();
    }
}

#[test]
fn r01_another_d_after_the_end_is_told_of_once() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 100);
    stripes.iter().for_each(|stripe| node.send_stripe(stripe));
    stripes.iter().for_each(|stripe| node.send_stripe(stripe));
    assert!(node.equivocations.is_empty(), "its own segments, sent again, contradict nothing");
    let others = split(core.clone(), &web(), &sealed(150, 2));
    others.iter().for_each(|stripe| node.send_stripe(stripe));
    others.iter().for_each(|stripe| node.send_stripe(stripe));
    let (first, second) = (stripes[2].digest, others.last().unwrap().digest);
    let last = others.last().unwrap().header.stripe;
    assert_eq!(node.equivocations, [Equivocation { parcel: key_of(&core), stripe: last, first, second }]);
    assert_eq!(node.staged[&key_of(&core)].0, first, "what is staged stays so");
    node.assert_clean();
}

#[test]
fn r01_what_is_not_gathered_for_contradicting_others_is_told_of_all_the_same() {
    // Another header of a stripe that was handed out; and a third one beside the two that are gathered.
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 100);
    let others = [2, 3].map(|seed| split(core.clone(), &web(), &sealed(100, seed)));
    node.send_stripe(&stripes[0]);
    node.send(&others[0][0].segments[0].record);
    let told = |stripe, first, second| Equivocation { parcel: key_of(&core), stripe, first, second };
    assert_eq!(node.equivocations, [told(0, stripes[0].digest, others[0][0].digest)]);
    let mut node = Node::new(Caps::default());
    for stripes in [&stripes, &others[0], &others[1]] {
        node.send(&stripes[1].segments[0].record);
    }
    let third = others[1][1].digest;
    assert!(node.equivocations.iter().any(|told| told.second == third), "{:?}", node.equivocations);
}

#[test]
fn a_contradicting_expiry_ends_nothing_and_leaves_nothing_behind() {
    let mut node = Node::new(Caps::default());
    let (core, _, stripes) = parcel(1, 48 * 2);
    node.send_stripe(&stripes[0]);
    // The same sender signs another stripe 1 that expires sooner: group time passes that.
    let mut sooner = core.clone();
    sooner.expiry = Time(NOW.0 + 1000);
    let others = split(sooner, &web(), &sealed(48 * 2, 1));
    node.send(&others[0].segments[0].record);
    node.send(&others[1].segments[0].record);
    node.set_group_time(Time(NOW.0 + 2000));
    assert!(node.abandoned.is_empty());
    node.send_stripe(&stripes[1]);
    assert_eq!(node.staged[&key_of(&core)].0, stripes[1].digest);
}

#[test]
fn r16_long_deadlines_of_one_sender_do_not_crowd_out_the_ends_of_others() {
    let mut node = Node::new(Caps::default());
    // More parcels than are remembered, all of which expire long after everybody else's.
    let ended = u64::try_from(limits::ENDED_PARCELS).unwrap() + 10;
    for number in 0..ended {
        let mut core = core(&web(), 1, tiny());
        core.epoch.0 = number.to_be_bytes();
        core.expiry = Time(EXPIRY.0 + 6 * 86_400_000);
        let actions = node.reassembler.end(&key_of(&core), ZEROS, core.expiry, node.now);
        node.act(actions);
    }
    let core = core(&shop(), 1, tiny());
    let stripe = split(core.clone(), &shop(), &sealed(40, 1)).remove(0);
    node.send_stripe(&stripe);
    // k of them ended it; what came late begins nothing anew.
    assert!(node.reassembler.has_ended(&key_of(&core)));
    node.assert_clean();
}

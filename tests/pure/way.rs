//! The core's whole way, from payloads to payloads: sealed, split, some segments lost and the rest in any order, verified,
//! gathered, recovered, opened.

use crate::gathering::*;
use crate::segments::*;
use proptest::prelude::*;
use sealcast::core::directory::DestinationKey;
use sealcast::core::gather::Caps;
use sealcast::core::id::{Suite, TransactionId};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::stream::CHUNK_BYTES;
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::seal::transaction::{Payload, PrivateHeader};
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, ParcelSealer, WrapTarget};
use sealcast::core::split::header::Profile;
use zeroize::Zeroizing;

/// The destination's secret in this suite; its public half is in no directory of the tests, and need not be.
fn secret_of(suite: Suite) -> HpkeSecret {
    HpkeSecret::generate(suite, &[7; 32]).unwrap()
}

fn targets(suite: Suite) -> Vec<WrapTarget> {
    vec![WrapTarget { tag: orders(), public: secret_of(suite).public().clone() }]
}

fn seal(suite: Suite, ctx: &[u8; 32], payloads: &[Vec<u8>]) -> Vec<u8> {
    let targets = targets(suite);
    let mut out = Vec::new();
    let k = Zeroizing::new([9; 32]);
    let mut sealer = ParcelSealer::new(ctx, &targets, payloads.len() as u32, &k, &[[3; 64]], &mut out).unwrap();
    for (number, payload) in (0u8..).zip(payloads) {
        let told = Payload::plain(payload.len() as u64, PayloadTagger::whole(&web(), payload));
        let id = TransactionId::from_parts(NOW, [number; 10]);
        sealer.seal(PrivateHeader::new(id, EXPIRY, Some(told), [orders()]), payload, &mut out).unwrap();
    }
    sealer.finish().unwrap();
    out
}

fn open(suite: Suite, ctx: [u8; 32], sealed: &[u8]) -> Vec<Vec<u8>> {
    let secret = secret_of(suite);
    let context = ParcelContext { ctx, suite, destinations: vec![(orders(), secret.public().id())] };
    let mut opener = ParcelOpener::new(context, orders(), secret);
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    let mut sink = |event: Event<'_>| match event {
        Event::Begin { .. } => payloads.push(Vec::new()),
        Event::Payload { index, bytes } => payloads[index as usize].extend_from_slice(bytes),
        _ => (),
    };
    opener.push(sealed, &mut sink).unwrap();
    opener.finish(&mut sink).unwrap();
    payloads
}

/// Sends the payloads as one parcel. Of each stripe k segments arrive, which ones and in which order `keys` says; gives what
/// came out, and how many stripes there were.
fn travel(suite: Suite, profile: Profile, payloads: &[Vec<u8>], keys: &[u32]) -> (Vec<Vec<u8>>, usize) {
    let mut draft = draft();
    let public = secret_of(suite).public().bytes().to_vec();
    let entry = draft.destinations.get_mut(&"orders".parse().unwrap()).unwrap();
    entry.keys = vec![DestinationKey::current(suite, public.into()).unwrap()];
    entry.minimum_suite = suite;
    let directory = std::sync::Arc::new(sign(&draft));
    let mut node = Node::new(Caps::default());
    node.gate.set_directory(directory.clone());
    let actions = node.reassembler.set_directory(directory, node.now);
    node.act(actions);

    let mut core = core(&web(), 1, profile);
    (core.suite, core.destinations[0].key) = (suite, secret_of(suite).public().id());
    let ctx = core.context();
    let stripes = split(core.clone(), &web(), &seal(suite, &ctx, payloads));
    let mut keys = keys.iter().cycle();
    let mut sent = Vec::new();
    for stripe in &stripes {
        let mut segments: Vec<_> = stripe.segments.iter().map(|segment| (*keys.next().unwrap(), segment)).collect();
        segments.sort_by_key(|(key, segment)| (key.wrapping_mul(2_654_435_761), segment.index));
        sent.extend(segments.into_iter().take(profile.k()));
    }
    sent.sort_by_key(|(key, segment)| (*key, segment.index));
    for (_, segment) in sent {
        node.send(&segment.record);
    }
    node.assert_clean();
    let (digest, sealed) = &node.staged[&key_of(&core)];
    assert_eq!(*digest, stripes.last().unwrap().digest);
    (open(suite, ctx, sealed), stripes.len())
}

#[test]
fn sizes_around_every_boundary_in_both_suites() {
    let keys: Vec<u32> = (0..97u32).map(|number| number.wrapping_mul(0x9e37_79b9)).collect();
    let profile = Profile::new(4, 2, 2048).unwrap();
    for suite in [Suite::X25519, Suite::XWing] {
        let empty = seal(suite, &[0; 32], &[Vec::new()]).len();
        let mut sizes = vec![0, 1];
        for edge in [2048, 4 * 2048, 2 * 4 * 2048] {
            sizes.extend([edge - empty - 1, edge - empty, edge - empty + 1]);
        }
        for edge in [CHUNK_BYTES, 2 * CHUNK_BYTES] {
            // The private header takes the beginning of the first chunk.
            sizes.extend((edge - 200..=edge - 100).step_by(20));
            sizes.extend([edge - 1, edge, edge + 1]);
        }
        for size in sizes {
            let payloads = [sealed(size, 1)];
            let sealed = seal(suite, &[0; 32], &payloads).len();
            let (opened, stripes) = travel(suite, profile, &payloads, &keys);
            assert!(opened == payloads, "{suite}, {size} bytes");
            assert_eq!(stripes, sealed.div_ceil(4 * 2048), "{suite}, {size} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn any_k_of_n_segments_in_any_order_bring_every_payload(
        post_quantum: bool,
        (k, m, shard) in (1u8..=6, 0u8..=4, 200u32..3000),
        sizes in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 0usize..5000, 60_000usize..70_000], 1..5),
        keys in prop::collection::vec(any::<u32>(), 1..60),
    ) {
        let suite = if post_quantum { Suite::XWing } else { Suite::X25519 };
        let payloads: Vec<_> = (0u8..).zip(&sizes).map(|(number, &size)| sealed(size, number)).collect();
        let (opened, _) = travel(suite, Profile::new(k, m, shard).unwrap(), &payloads, &keys);
        prop_assert!(opened == payloads);
    }
}

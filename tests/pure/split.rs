//! Splitting and recovering through the public interfaces: what goes in comes out of any k shards, and what was changed or
//! made against the rules is refused. Numbers in names are those of the list of inputs that must be refused.

use std::sync::Arc;

use crate::segments::*;
use bytes::Bytes;
use proptest::prelude::*;
use sealcast::core::gather::{Gate, Skip};
use sealcast::core::id::{DestinationTag, Digest, RefusalReason, Time};
use sealcast::core::limits;
use sealcast::core::sign::{SecretKey, SignError};
use sealcast::core::split::code::CodeError;
use sealcast::core::split::header::{self, CoreDestination, Profile, StripeHeader};
use sealcast::core::split::merkle;
use sealcast::core::split::segment::{Segment, SegmentError, SignatureCache, VerifiedSegment, encode, segment_id};
use sealcast::core::split::stripe::{RecoverError, SplitError, Splitter, Stripe, recover};
use sealcast::core::wire::{WireError, label};

fn verified(record: &Bytes) -> VerifiedSegment {
    verified_of(&web(), record)
}

fn verified_of(sender: &SecretKey, record: &Bytes) -> VerifiedSegment {
    Segment::parse(record).unwrap().verify(&SignatureCache::default(), &sender.public()).unwrap()
}

fn records(stripe: &Stripe) -> Vec<Bytes> {
    stripe.segments.iter().map(|segment| segment.record.clone()).collect()
}

fn gate() -> Gate {
    Gate::new(Arc::new(directory()), orders())
}

/// Every way to choose `k` of `items`.
fn subsets<T: Clone>(items: &[T], k: usize) -> Vec<Vec<T>> {
    (0u32..1 << items.len())
        .filter(|mask| mask.count_ones() as usize == k)
        .map(|mask| {
            items.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).map(|(_, item)| item.clone()).collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_k_of_n_segments_in_any_order_give_the_same_bytes(
        (k, m, shard) in (1u8..=6, 0u8..=5, 1u32..=48),
        length in 1usize..1200,
        cuts in prop::collection::vec(0usize..1200, 0..6),
        seed: u8,
        order in any::<prop::sample::Index>(),
    ) {
        let profile = Profile::new(k, m, shard).unwrap();
        let sealed = sealed(length, seed);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(length)).chain([0, length]).collect();
        cuts.sort_unstable();
        let mut splitter = Splitter::new(core(&web(), seed, profile), web()).unwrap();
        let mut stripes = Vec::new();
        for pair in cuts.windows(2) {
            stripes.extend(splitter.push(&sealed[pair[0]..pair[1]]).unwrap());
        }
        stripes.push(splitter.finish().unwrap());
        prop_assert_eq!(&stripes, &split(core(&web(), seed, profile), &web(), &sealed));

        let mut out = Vec::new();
        let mut previous = ZEROS;
        for (number, stripe) in stripes.iter().enumerate() {
            prop_assert_eq!(stripe.header.stripe as usize, number);
            prop_assert_eq!(stripe.header.previous, previous);
            prop_assert_eq!(stripe.header.last, number + 1 == stripes.len());
            prop_assert_eq!(stripe.segments.len(), profile.n());
            previous = stripe.digest;
            let mut chosen: Vec<_> = stripe.segments.iter().map(|segment| verified(&segment.record)).collect();
            for (segment, sent) in chosen.iter().zip(&stripe.segments) {
                prop_assert_eq!(segment.id(), sent.id);
                prop_assert_eq!(segment.digest(), stripe.digest);
            }
            // A rotation and a reversal reach every subset of neighbours and some others; the exhaustive test is below.
            chosen.rotate_left(order.index(profile.n()));
            if seed & 1 == 1 {
                chosen.reverse();
            }
            chosen.truncate(profile.k());
            let recovered = recover(&chosen).unwrap();
            prop_assert_eq!(&recovered, &stripe.sealed);
            out.extend_from_slice(&recovered);
            let again = Stripe::again(stripe.header_bytes.clone(), stripe.signature, stripe.sealed.clone()).unwrap();
            prop_assert_eq!(&again, stripe);
        }
        prop_assert_eq!(out, sealed);
    }
}

#[test]
fn every_subset_of_k_recovers() {
    let stripes = split(core(&web(), 1, Profile::new(4, 3, 5).unwrap()), &web(), &sealed(33, 1));
    for stripe in &stripes {
        let all: Vec<_> = stripe.segments.iter().map(|segment| verified(&segment.record)).collect();
        for chosen in subsets(&all, 4) {
            assert_eq!(recover(&chosen).unwrap(), stripe.sealed);
        }
        assert_eq!(recover(&all).unwrap(), stripe.sealed);
        assert_eq!(recover(&all[..3]), Err(RecoverError::TooFew { needed: 4, given: 3 }));
        let one = vec![all[0].clone(); 4];
        assert_eq!(
            recover(&one),
            Err(RecoverError::TooFew { needed: 4, given: 1 }),
            "one shard four times is one shard"
        );
    }
    let mut mixed: Vec<_> = stripes[0].segments[..3].iter().map(|s| verified(&s.record)).collect();
    mixed.push(verified(&stripes[1].segments[3].record));
    assert_eq!(recover(&mixed), Err(RecoverError::TooFew { needed: 4, given: 3 }), "shards of two stripes do not mix");
}

#[test]
fn sizes_around_every_boundary() {
    let (k, m, shard) = (8, 4, 64);
    let full = usize::from(k) * 64;
    let mut sizes: Vec<usize> = [1, 2, 7, 8, 9].into();
    for edge in [64, full - 64, full, 2 * full, 5 * full] {
        sizes.extend([edge - 1, edge, edge + 1]);
    }
    for size in sizes {
        let sealed = sealed(size, 3);
        let stripes = split(core(&web(), 1, Profile::new(k, m, shard).unwrap()), &web(), &sealed);
        assert_eq!(stripes.len(), size.div_ceil(full), "{size}");
        let last = stripes.last().unwrap();
        assert_eq!(last.header.shard_bytes(), (size - full * (stripes.len() - 1)).div_ceil(8), "{size}");
        let out: Vec<u8> = stripes
            .iter()
            .flat_map(|stripe| {
                let parity_first: Vec<_> = records(stripe).iter().rev().take(8).map(verified).collect();
                recover(&parity_first).unwrap()
            })
            .collect();
        assert_eq!(out, sealed, "{size}");
    }
}

#[test]
fn a_parcel_without_bytes_is_none_and_the_key_must_be_the_senders() {
    let profile = Profile::small();
    assert_eq!(Splitter::new(core(&web(), 1, profile), web()).unwrap().finish().unwrap_err(), SplitError::Empty);
    assert_eq!(Splitter::new(core(&web(), 1, profile), shop()).unwrap_err(), SplitError::Key);
    let mut twice = core(&web(), 1, profile);
    twice.destinations.push(twice.destinations[0]);
    assert!(matches!(Splitter::new(twice, web()).unwrap_err(), SplitError::Core(_)));
}

#[test]
fn a_profile_that_fits_a_known_length_loses_any_one_domain_at_no_more_cost() {
    let lengths =
        [1, 65_537, 68_000, 98_304, 131_072, 262_144, 300_000, 600_000, 1 << 20, (1 << 20) + 3_000, 3 << 20, 64 << 20];
    for (domains, length) in (1..=12).flat_map(|domains| lengths.map(|length| (domains, length))) {
        let (profile, coded) = (Profile::fitting(domains, length), Profile::coded(domains));
        let (of, stripe) = (format!("{length} bytes over {domains}: {profile:?}"), profile.stripe_bytes() as u64);
        if domains > 1 {
            assert!(profile.n().div_ceil(domains) <= profile.m(), "{of}");
        }
        assert!(profile.n() * coded.k() <= coded.n() * profile.k(), "{of}");
        assert!(profile.shard_bytes() <= limits::SHARD_BYTES, "{of}");
        assert!(stripe <= Profile::FITTING_STRIPE_BYTES.into(), "{of}");
        let (stripes, last) = (length.div_ceil(stripe), length - (length - 1) / stripe * stripe);
        assert!(stripes == 1 || last > stripe / 2, "{of}");
        assert!(stripes <= length.div_ceil(coded.stripe_bytes() as u64), "{of}");
    }
    let shape = |length| {
        let profile = Profile::fitting(3, length);
        (profile.k(), profile.m(), length.div_ceil(profile.stripe_bytes() as u64))
    };
    assert_eq!(
        [68_000, 262_144, (1 << 20) + 3_000, 16 << 20].map(shape),
        [(2, 1, 1), (2, 1, 1), (4, 2, 1), (4, 2, 13)]
    );
}

#[test]
fn the_named_profiles_work_at_their_full_sizes() {
    for (profile, length) in
        [(Profile::coded(3), 600_000), (Profile::small(), 65_536), (Profile::replicated(), 1_300_000)]
    {
        let stripes = split(core(&web(), 1, profile), &web(), &sealed(length, 9));
        for stripe in &stripes {
            assert!(stripe.segments.iter().all(|segment| segment.record.len() <= limits::SEGMENT_BYTES));
            let last_k: Vec<_> = records(stripe).iter().rev().take(profile.k()).map(verified).collect();
            assert_eq!(recover(&last_k).unwrap(), stripe.sealed);
        }
    }
    let small = &split(core(&web(), 1, Profile::small()), &web(), b"abc")[0];
    let shards: Vec<_> = records(small).iter().map(|record| verified(record).shard().clone()).collect();
    assert_eq!(shards, ["abc", "abc", "abc"]);
}

#[test]
fn the_longest_header_and_shard_fit_a_record() {
    let mut core = core(&web(), 1, Profile::new(32, 32, limits::SHARD_BYTES as u32).unwrap());
    core.destinations = (0..limits::DESTINATIONS as u8)
        .map(|number| CoreDestination { tag: DestinationTag([number; 16]), key: key().id, sequence: 0 })
        .collect();
    let header = StripeHeader {
        core,
        stripe: 0,
        last: true,
        length: 32 * limits::SHARD_BYTES as u32,
        previous: ZEROS,
        root: ZEROS,
    };
    let bytes = header.encode();
    assert_eq!(bytes.len(), header::HEADER_BYTES);
    let record = encode(&bytes, &[0; 64], 0, &[ZEROS; limits::PROOF_HASHES], &vec![0; limits::SHARD_BYTES]);
    assert!(record.len() <= limits::SEGMENT_BYTES);
    assert!(Segment::parse(&record.into()).is_ok());
}

/// Whether a change of this bit is refused by the gate, and without the checks of the directory, too. The decoder takes
/// nothing but what came through one of them.
fn refused(gate: &Gate, record: &[u8], at: usize, bit: usize) -> bool {
    let mut changed = record.to_vec();
    changed[at] ^= 1 << bit;
    let changed = Bytes::from(changed);
    let verify = |segment: Segment| segment.verify(&SignatureCache::default(), &web().public());
    gate.check(&changed, NOW).is_err() && !Segment::parse(&changed).is_ok_and(|segment| verify(segment).is_ok())
}

#[test]
fn every_single_bit_change_in_any_byte_of_any_segment_is_refused_before_the_decoder() {
    let gate = gate();
    for (k, m, shard, length) in [(2, 1, 8, 21), (1, 2, 5, 5), (1, 0, 7, 3), (3, 2, 4, 12)] {
        let stripes = split(core(&web(), 1, Profile::new(k, m, shard).unwrap()), &web(), &sealed(length, 1));
        for record in stripes.iter().flat_map(records) {
            assert!(gate.check(&record, NOW).is_ok());
            for at in 0..record.len() {
                for bit in 0..8 {
                    assert!(refused(&gate, &record, at, bit), "{k} + {m}: byte {at}, bit {bit}");
                }
            }
            for length in 0..record.len() {
                assert!(gate.check(&record.slice(..length), NOW).is_err(), "{k} + {m}: cut to {length}");
            }
            let longer = Bytes::from([&record[..], &[0]].concat());
            assert!(matches!(gate.check(&longer, NOW), Err(Skip::Malformed(_))));
        }
    }
}

/// Shards of 64 KiB, a data and a parity one: every bit before the shard, and one in every 61st byte of it.
#[test]
fn every_bit_counts_in_segments_of_full_size() {
    let gate = gate();
    let stripe = &split(core(&web(), 1, Profile::coded(3)), &web(), &sealed(524_288, 1))[0];
    for index in [0, 11] {
        let record = records(stripe).remove(index);
        let shard = record.len() - 65_536;
        let head = (0..shard).flat_map(|at| (0..8).map(move |bit| (at, bit)));
        for (at, bit) in head.chain((shard..record.len()).step_by(61).map(|at| (at, at % 8))) {
            assert!(refused(&gate, &record, at, bit), "shard {index}: byte {at}, bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_at_all_are_taken_apart_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..600), magic: bool) {
        if magic && bytes.len() > 10 {
            bytes[..5].copy_from_slice(b"SCSG\x01");
            bytes[5..10].copy_from_slice(b"SCCO\x01");
        }
        prop_assert!(gate().check(&bytes.into(), NOW).is_err());
    }
}

fn header(profile: Profile, length: u32) -> StripeHeader {
    StripeHeader { core: core(&web(), 1, profile), stripe: 0, last: true, length, previous: ZEROS, root: ZEROS }
}

#[test]
fn r02_n35_a_codeword_that_is_none_is_refused_from_every_subset() {
    for (k, m) in [(3, 2), (1, 2), (5, 1), (8, 4)] {
        let profile = Profile::new(k, m, 4).unwrap();
        let length = 4 * u32::from(k);
        let good = &split(core(&web(), 1, profile), &web(), &sealed(length as usize, 1))[0];
        let good: Vec<Vec<u8>> = records(good).iter().map(|record| verified(record).shard().to_vec()).collect();
        // A bit of one shard, each in turn; all parity junk; everything junk.
        let mut cases = vec![good.clone(); good.len() + 2];
        (0..good.len()).for_each(|at| cases[at][at][at % 4] ^= 1 << (at % 8));
        cases[good.len()][usize::from(k)..].iter_mut().for_each(|shard| shard.fill(7));
        cases[good.len() + 1].iter_mut().enumerate().for_each(|(at, shard)| *shard = sealed(4, at as u8));
        for shards in cases {
            let all: Vec<_> = forge(header(profile, length), &web(), &shards).iter().map(verified).collect();
            for chosen in (profile.k()..=profile.n()).flat_map(|count| subsets(&all, count)) {
                let error = recover(&chosen).unwrap_err();
                assert_eq!((&error, error.refusal()), (&RecoverError::Miscoded, Some(RefusalReason::Miscoded)));
            }
        }
        let all: Vec<_> = forge(header(profile, length), &web(), &good).iter().map(verified).collect();
        assert!(subsets(&all, profile.k()).iter().all(|chosen| recover(chosen).is_ok()));
    }
}

#[test]
fn r08_the_gate_lets_in_who_is_listed_and_may_not_send_here() {
    let mut narrower = draft();
    narrower.senders.get_mut(&"web".parse().unwrap()).unwrap().destinations.clear();
    let gate = Gate::new(Arc::new(sign(&narrower)), orders());
    let stripes = split(core(&web(), 1, Profile::new(3, 2, 16).unwrap()), &web(), &sealed(48, 1));
    assert!(gate.check(&stripes[0].segments[0].record, NOW).is_ok(), "the log says who may, at its place in it");
}

#[test]
fn r21_too_few_shards_and_a_codec_that_fails_are_no_verdict() {
    let few = RecoverError::TooFew { needed: 4, given: 3 };
    let failed = RecoverError::Code(CodeError::Shards { cause: "no memory".to_owned() });
    for error in [few, failed] {
        assert!(error.refusal().is_none() && error.retryable(), "{error}");
    }
}

#[test]
fn r02_n36_padding_that_is_not_zeros_is_refused_from_every_subset() {
    let profile = Profile::new(3, 2, 4).unwrap();
    // A codeword over 12 bytes, announced as 10: the last two are padding.
    let honest = &split(core(&web(), 1, profile), &web(), &sealed(12, 1))[0];
    let shards: Vec<Vec<u8>> = records(honest).iter().map(|record| verified(record).shard().to_vec()).collect();
    let all: Vec<_> = forge(header(profile, 10), &web(), &shards).iter().map(verified).collect();
    for chosen in subsets(&all, 3) {
        let error = recover(&chosen).unwrap_err();
        assert_eq!(error.refusal(), Some(RefusalReason::Padding));
    }
}

fn first_stripe() -> Stripe {
    split(core(&web(), 1, Profile::new(3, 2, 8).unwrap()), &web(), &sealed(20, 1)).remove(0)
}

fn parts(stripe: &Stripe) -> (Vec<Vec<u8>>, Vec<Vec<Digest>>) {
    parts_of(&web(), stripe)
}

fn parts_of(sender: &SecretKey, stripe: &Stripe) -> (Vec<Vec<u8>>, Vec<Vec<Digest>>) {
    let shard = |record| verified_of(sender, record).shard().to_vec();
    let shards: Vec<_> = records(stripe).iter().map(shard).collect();
    let leaves: Vec<_> = (0..).zip(&shards).map(|(index, shard)| merkle::leaf(index, shard)).collect();
    (shards, merkle::proofs(&leaves).unwrap().1)
}

/// What parsing makes of the first shard with this index and proof.
fn first_shard(stripe: &Stripe, index: u16, proof: &[Digest]) -> Result<Segment, SegmentError> {
    let (shards, _) = parts(stripe);
    Segment::parse(&encode(&stripe.header_bytes, &stripe.signature, index, proof, &shards[0]).into())
}

#[test]
fn n32_a_proof_too_long_or_short_is_refused() {
    let stripe = first_stripe();
    let (_, proofs) = parts(&stripe);
    let length = |result: Result<Segment, SegmentError>| {
        matches!(result, Err(SegmentError::Wire(WireError::Range { field: "segment: proof length", .. })))
    };
    assert!(first_shard(&stripe, 0, &proofs[0]).is_ok());
    assert!(length(first_shard(&stripe, 0, &proofs[0][..2])));
    assert!(length(first_shard(&stripe, 0, &[&proofs[0][..], &[ZEROS]].concat())));
    assert!(length(first_shard(&stripe, 4, &proofs[0])), "leaf 4 of 5 has a shorter proof");
}

#[test]
fn n33_an_index_outside_or_not_that_of_the_proof_is_refused() {
    let stripe = first_stripe();
    let (_, proofs) = parts(&stripe);
    for outside in [5, 255, u16::MAX] {
        assert!(matches!(
            first_shard(&stripe, outside, &proofs[0]),
            Err(SegmentError::Wire(WireError::Range { field: "segment: shard index", .. }))
        ));
    }
    let verify = |segment: Segment| segment.verify(&SignatureCache::default(), &web().public());
    assert_eq!(verify(first_shard(&stripe, 1, &proofs[0]).unwrap()), Err(SegmentError::Proof));
    assert_eq!(verify(first_shard(&stripe, 0, &proofs[1]).unwrap()), Err(SegmentError::Proof));
}

#[test]
fn n34_an_inner_node_is_no_leaf() {
    let stripe = first_stripe();
    let (shards, proofs) = parts(&stripe);
    let leaf = |index: u16| merkle::leaf(index, &shards[usize::from(index)]);
    // The shard that would hash like the node over leaves 0 and 1, if leaves and nodes were hashed alike.
    let inner = [leaf(0).0, leaf(1).0].concat();
    let mut header = stripe.header.clone();
    header.core.profile = Profile::new(3, 2, 64).unwrap();
    header.length = 3 * 64;
    let bytes = header.encode();
    let signature = header::sign(&bytes, &web());
    let shorter = &proofs[0][1..];
    let record = encode(&bytes, &signature, 0, shorter, &inner);
    assert!(matches!(Segment::parse(&record.into()), Err(SegmentError::Wire(WireError::Range { .. }))));
    let padded = encode(&bytes, &signature, 0, &[&[ZEROS], shorter].concat(), &inner);
    let segment = Segment::parse(&padded.into()).unwrap();
    assert_eq!(segment.verify(&SignatureCache::default(), &web().public()), Err(SegmentError::Proof));
}

#[test]
fn n37_a_cached_signature_does_not_excuse_a_proof() {
    let stripe = first_stripe();
    let (shards, mut proofs) = parts(&stripe);
    let cache = SignatureCache::default();
    let verify = |proof: &[Digest]| {
        let record = encode(&stripe.header_bytes, &stripe.signature, 0, proof, &shards[0]);
        Segment::parse(&record.into()).unwrap().verify(&cache, &web().public())
    };
    assert!(verify(&proofs[0]).is_ok());
    assert_eq!(cache.len(), 1);
    proofs[0][1].0[0] ^= 1;
    assert_eq!(verify(&proofs[0]), Err(SegmentError::Proof));
}

#[test]
fn a_cached_signature_serves_only_its_key_input_and_bytes() {
    let stripe = first_stripe();
    let cache = SignatureCache::default();
    let segment = Segment::parse(&stripe.segments[0].record).unwrap();
    assert!(segment.clone().verify(&cache, &web().public()).is_ok());
    assert_eq!(segment.verify(&cache, &shop().public()), Err(SegmentError::Signature));
    let (shards, proofs) = parts(&stripe);
    let mut signature = stripe.signature;
    signature[40] ^= 1;
    let record = encode(&stripe.header_bytes, &signature, 0, &proofs[0], &shards[0]);
    let segment = Segment::parse(&record.into()).unwrap();
    assert_eq!(segment.verify(&cache, &web().public()), Err(SegmentError::Signature));
}

#[test]
fn r01_n20_a_body_that_another_sender_signs_is_another_parcel_with_another_context() {
    let stripe = first_stripe();
    let (shards, proofs) = parts(&stripe);
    // Signed by "shop" though the header names "web".
    let signature = header::sign(&stripe.header_bytes, &shop());
    let record = encode(&stripe.header_bytes, &signature, 0, &proofs[0], &shards[0]);
    assert_eq!(gate().check(&record.into(), NOW), Err(Skip::Signature));
    // Named honestly, what the keys are bound to changes: the copied envelope does not open.
    let mut copied = stripe.header.clone();
    copied.core.sender = bytes_of(&shop());
    assert_ne!(copied.core.context(), stripe.header.core.context());
}

#[test]
fn n27_a_signature_made_for_another_purpose_is_refused() {
    let stripe = first_stripe();
    let (shards, proofs) = parts(&stripe);
    for purpose in label::ALL.iter().filter(|purpose| **purpose != label::STRIPE) {
        let signature = web().sign(purpose, &stripe.header_bytes);
        let record = encode(&stripe.header_bytes, &signature, 0, &proofs[0], &shards[0]);
        assert_eq!(gate().check(&record.into(), NOW), Err(Skip::Signature));
    }
}

#[test]
fn n28_a_signature_with_the_group_order_added_is_refused() {
    let stripe = first_stripe();
    // L, little-endian.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut signature = stripe.signature;
    let mut carry = 0u16;
    for (byte, add) in signature[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert_eq!(header::verify(&stripe.header_bytes, &signature, &web().public()), Err(SignError::Signature));
}

#[test]
fn n39_what_belongs_elsewhere_does_not_come_through_the_gate() {
    let gate = gate();
    let record = |change: &dyn Fn(&mut sealcast::core::split::header::Core)| {
        let mut core = core(&web(), 1, Profile::small());
        change(&mut core);
        records(&split(core, &web(), b"sealed")[0]).remove(0)
    };
    assert!(gate.check(&record(&|_| ()), NOW).is_ok());
    let other_environment = record(&|core| core.environment.0[0] ^= 1);
    assert_eq!(gate.check(&other_environment, NOW), Err(Skip::OtherEnvironment));
    let other_destination = record(&|core| core.destinations[0].tag.0[0] ^= 1);
    assert_eq!(gate.check(&other_destination, NOW), Err(Skip::OtherDestination));
    assert_eq!(gate.check(&record(&|_| ()), Time(EXPIRY.0 + 1)), Err(Skip::Expired));
    assert!(gate.check(&record(&|_| ()), EXPIRY).is_ok(), "group time has not passed it yet");
    let stranger = records(&split(core(&secret(99), 1, Profile::small()), &secret(99), b"sealed")[0]).remove(0);
    assert_eq!(gate.check(&stranger, NOW), Err(Skip::UnknownSender(bytes_of(&secret(99)))));
    assert_eq!(gate.check(&Bytes::from_static(b"SCQY\x01..."), NOW), Err(Skip::NotSegment));
    let mut later = record(&|_| ()).to_vec();
    later[4] = 2;
    let skip = gate.check(&later.into(), NOW).unwrap_err();
    assert!(skip.retryable() && skip.word() == "unknown-version");
}

#[test]
fn r21_of_several_faults_the_gate_names_the_first_in_the_order_of_checks() {
    let gate = gate();
    let (late, stranger) = (Time(EXPIRY.0 + 1), secret(99));
    let check = |sender: &SecretKey, faults: &[usize], at: Time| {
        let mut core = core(sender, 1, Profile::small());
        if faults.contains(&0) {
            core.environment.0[0] ^= 1;
        }
        if faults.contains(&1) {
            core.destinations[0].tag.0[0] ^= 1;
        }
        let stripe = &split(core, sender, b"sealed")[0];
        let (shards, mut proofs) = parts_of(sender, stripe);
        let mut signature = stripe.signature;
        if faults.contains(&2) {
            signature[40] ^= 1;
        }
        if faults.contains(&3) {
            proofs[0][0].0[0] ^= 1;
        }
        gate.check(&encode(&stripe.header_bytes, &signature, 0, &proofs[0], &shards[0]).into(), at).unwrap_err()
    };
    // What is not for this destination is nobody's to judge; who is not known yet may be known when he is read again, and only
    // then his expiry counts; the signature is what costs.
    assert_eq!(check(&stranger, &[0, 1, 2, 3], late), Skip::OtherEnvironment);
    assert_eq!(check(&stranger, &[1, 2, 3], late), Skip::OtherDestination);
    assert_eq!(check(&web(), &[1, 2, 3], late), Skip::OtherDestination);
    assert_eq!(check(&stranger, &[2, 3], late), Skip::UnknownSender(bytes_of(&stranger)));
    assert_eq!(check(&web(), &[2, 3], late), Skip::Expired);
    assert_eq!(check(&web(), &[2, 3], NOW), Skip::Signature);
    assert_eq!(check(&web(), &[3], NOW), Skip::Proof);
}

#[test]
fn r03_a_damaged_outbox_is_noticed() {
    let stripe = first_stripe();
    let mut sealed = stripe.sealed.to_vec();
    sealed[3] ^= 1;
    let again = |sealed: Vec<u8>| Stripe::again(stripe.header_bytes.clone(), stripe.signature, sealed.into());
    assert_eq!(again(sealed), Err(SplitError::Damaged));
    assert_eq!(again(stripe.sealed[1..].to_vec()), Err(SplitError::Damaged));
}

#[test]
fn r01_segment_ids_follow_from_header_and_index() {
    let (one, other) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(segment_id(&one, 3), segment_id(&one, 3));
    assert_ne!(segment_id(&one, 3), segment_id(&one, 4));
    assert_ne!(segment_id(&one, 3), segment_id(&other, 3));
    assert_eq!(segment_id(&one, 3).uuid().get_version_num(), 8);
}

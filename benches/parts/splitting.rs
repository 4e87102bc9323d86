//! Splitting's parts: headers, the Merkle tree, the erasure code, whole stripes, and the way back to a parcel's sealed bytes.

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use bytes::Bytes;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use sealcast::core::gather::{Action, Address, Caps, Gate, Reassembler};
use sealcast::core::id::Digest;
use sealcast::core::split::code::Code;
use sealcast::core::split::header::{self, Profile};
use sealcast::core::split::merkle;
use sealcast::core::split::segment::{Segment, SignatureCache, VerifiedSegment};
use sealcast::core::split::stripe::{Splitter, Stripe, recover};
use sealcast::core::wire::label;

use crate::measure::{Arm, Part, Unit, size};
use crate::sealing::memcpy;
use crate::segments::{NOW, core, directory, orders, sealed as some_bytes, split, web};

/// What (k, m) are over two, three and five domains, and for a parcel that fits one shard.
const SHAPES: [(u8, u8); 4] = [(8, 8), (8, 4), (8, 2), (1, 2)];

/// The profile that a client takes for so many sealed bytes over three domains: what fits a shard is copied, not coded. A
/// parcel of a payload of 64 KiB is a little longer than a shard.
pub fn profile(sealed: usize) -> Profile {
    let small = Profile::small();
    if sealed <= small.shard_bytes() { small } else { Profile::coded(3) }
}

pub fn parts() -> Vec<Part> {
    let mut parts = vec![
        Part::new("header-sign", "Ed25519", 0, Unit::Micros, header_sign),
        Part::new("header-verify", "Ed25519", 0, Unit::Micros, header_verify),
    ];
    for shard in [8 << 10, 64 << 10] {
        let payload = 12 * shard;
        parts.push(Part::new("merkle-build", "12 shards", payload, Unit::Megabytes, move || merkle_build(shard)));
        parts.push(Part::new("merkle-check", "one of 12", shard, Unit::Megabytes, move || merkle_check(shard)));
    }
    for (k, m) in SHAPES {
        for shard in [1 << 10, 8 << 10, 64 << 10] {
            let (data, condition) = (usize::from(k) * shard, format!("({k},{m}) x {}", size(shard)));
            parts.push(Part::new("erasure-encode", &*condition, data, Unit::Megabytes, move || encode(k, m, shard)));
            let condition = format!("{condition}, {} lost", k.min(m));
            parts.push(Part::new("erasure-rebuild", condition, data, Unit::Megabytes, move || rebuild(k, m, shard)));
        }
    }
    for payload in [1 << 10, (64 << 10) + 512, 1 << 20] {
        let profile = profile(payload);
        let condition = format!("({},{})", profile.k(), profile.m());
        parts.push(Part::new("split", &*condition, payload, Unit::Megabytes, move || split_parcel(payload)));
        parts.push(Part::new("verify", &*condition, payload, Unit::Megabytes, move || verify(payload)));
        parts.push(Part::new("reassemble", &*condition, payload, Unit::Megabytes, move || reassemble(payload, 0)));
        if profile.k() > 1 {
            let lost = format!("{condition}, 4 data lost");
            parts.push(Part::new("reassemble", lost, payload, Unit::Megabytes, move || reassemble(payload, 4)));
            parts.push(Part::new("recover", &*condition, payload, Unit::Megabytes, move || recovering(payload, 0)));
            let lost = format!("{condition}, 4 data lost");
            parts.push(Part::new("recover", lost, payload, Unit::Megabytes, move || recovering(payload, 4)));
        }
    }
    parts
}

fn some_header() -> Vec<u8> {
    split(core(&web(), 1, Profile::coded(3)), &web(), &some_bytes(100_000, 1))[0].header_bytes.to_vec()
}

/// What is signed: the label, then the header.
fn signed_input() -> Vec<u8> {
    [label::STRIPE, &some_header()].concat()
}

fn header_sign() -> Vec<Arm> {
    let (bytes, key) = (some_header(), web());
    let own = Arm::fast("sealcast", move || header::sign(&bytes, &key));
    let (input, pair) = (signed_input(), Ed25519KeyPair::from_seed_unchecked(&web().seed()[..]).unwrap());
    vec![own, Arm::fast("aws-lc-rs Ed25519", move || pair.sign(&input))]
}

fn header_verify() -> Vec<Arm> {
    let (bytes, key) = (some_header(), web());
    let (signature, public) = (header::sign(&bytes, &key), key.public());
    let own = Arm::fast("sealcast", move || header::verify(&bytes, &signature, &public).unwrap());
    let (input, pair) = (signed_input(), Ed25519KeyPair::from_seed_unchecked(&web().seed()[..]).unwrap());
    let public = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref().to_vec());
    vec![own, Arm::fast("aws-lc-rs Ed25519", move || public.verify(&input, &signature).unwrap())]
}

fn shards(count: usize, length: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| some_bytes(length, number as u8)).collect()
}

fn blake3_of(bytes: usize) -> Arm {
    let bytes = some_bytes(bytes, 1);
    Arm::fast("BLAKE3 once", move || blake3::hash(&bytes))
}

fn leaves(shards: &[Vec<u8>]) -> Vec<Digest> {
    (0..).zip(shards).map(|(index, shard)| merkle::leaf(index, shard)).collect()
}

fn merkle_build(shard: usize) -> Vec<Arm> {
    let shards = shards(12, shard);
    let bytes = 12 * shards[0].len();
    vec![Arm::fast("sealcast", move || merkle::proofs(&leaves(&shards)).unwrap()), blake3_of(bytes), memcpy(bytes)]
}

fn merkle_check(shard: usize) -> Vec<Arm> {
    let shards = shards(12, shard);
    let (root, proofs) = merkle::proofs(&leaves(&shards)).unwrap();
    let own = Arm::fast("sealcast", move || {
        assert_eq!(merkle::climb(merkle::leaf(5, &shards[5]), 5, 12, &proofs[5]), Some(root));
    });
    vec![own, blake3_of(shard), memcpy(shard)]
}

/// The fastest erasure codec that is kept up: Leopard's FFT over GF(2^16), so another code with other bytes.
const OTHER_CODEC: &str = "reed-solomon-simd";

fn encode(k: u8, m: u8, shard: usize) -> Vec<Arm> {
    let (k, m) = (usize::from(k), usize::from(m));
    let (code, data, mut parity) = (Code::new(k, m).unwrap(), shards(k, shard), vec![vec![0; shard]; m]);
    let own = Arm::fast("sealcast", move || {
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(&data, &mut parity).unwrap();
    });
    let (mut encoder, data) = (ReedSolomonEncoder::new(k, m, shard).unwrap(), shards(k, shard));
    let baseline = Arm::fast(OTHER_CODEC, move || {
        data.iter().for_each(|shard| encoder.add_original_shard(shard).unwrap());
        std::hint::black_box(encoder.encode().unwrap().recovery_iter().map(|shard| shard[0]).fold(0, u8::wrapping_add))
    });
    vec![own, baseline]
}

/// As many data shards are lost as there can be.
fn rebuild(k: u8, m: u8, shard: usize) -> Vec<Arm> {
    let (k, m) = (usize::from(k), usize::from(m));
    let lost = k.min(m);
    let (code, data) = (Code::new(k, m).unwrap(), shards(k, shard));
    let mut all = data.clone();
    all.resize(k + m, vec![0; shard]);
    {
        let (data, parity) = all.split_at_mut(k);
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        code.encode(&data, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
    }
    let own = Arm::fast("sealcast", move || {
        let shards = all.iter_mut().enumerate();
        // Exactly k are taken: the data that is there, then parity.
        let mut shards: Vec<(&mut [u8], bool)> =
            shards.map(|(index, shard)| (shard.as_mut_slice(), (lost..k + lost).contains(&index))).collect();
        code.rebuild(&mut shards).unwrap();
    });
    let mut encoder = ReedSolomonEncoder::new(k, m, shard).unwrap();
    data.iter().for_each(|shard| encoder.add_original_shard(shard).unwrap());
    let recovery: Vec<Vec<u8>> = encoder.encode().unwrap().recovery_iter().map(<[u8]>::to_vec).collect();
    let mut decoder = ReedSolomonDecoder::new(k, m, shard).unwrap();
    let baseline = Arm::fast(OTHER_CODEC, move || {
        for (index, shard) in data.iter().enumerate().skip(lost) {
            decoder.add_original_shard(index, shard).unwrap();
        }
        for (index, shard) in recovery.iter().enumerate().take(lost) {
            decoder.add_recovery_shard(index, shard).unwrap();
        }
        let decoded = decoder.decode().unwrap();
        assert_eq!(decoded.restored_original(0).unwrap()[0], data[0][0]);
    });
    vec![own, baseline]
}

fn split_parcel(sealed: usize) -> Vec<Arm> {
    let (core, key, bytes) = (core(&web(), 1, profile(sealed)), web(), some_bytes(sealed, 1));
    let prepare = move || Splitter::new(core.clone(), key.clone()).unwrap();
    let run = move |mut splitter: Splitter| {
        let mut stripes = splitter.push(&bytes).unwrap();
        stripes.push(splitter.finish().unwrap());
        stripes
    };
    vec![Arm::each("sealcast", prepare, run), memcpy(sealed)]
}

fn stripes(sealed: usize) -> Vec<Stripe> {
    split(core(&web(), 1, profile(sealed)), &web(), &some_bytes(sealed, 1))
}

/// The records that come of each stripe: k, the last of the data shards lost and parity in their place.
fn records(stripes: &[Stripe], lost: usize) -> Vec<Bytes> {
    let of = |stripe: &Stripe| {
        let k = stripe.header.core.profile.k();
        let all: Vec<Bytes> = stripe.segments.iter().map(|segment| segment.record.clone()).collect();
        [&all[..k - lost], &all[k..k + lost]].concat()
    };
    stripes.iter().flat_map(of).collect()
}

fn verify(sealed: usize) -> Vec<Arm> {
    let (records, key) = (records(&stripes(sealed), 0), web().public());
    let verify_all = move |cache: SignatureCache| {
        let one = |record: &Bytes| Segment::parse(record).unwrap().verify(&cache, &key).unwrap();
        records.iter().map(one).collect::<Vec<_>>()
    };
    vec![Arm::each("sealcast", SignatureCache::default, verify_all), blake3_of(sealed)]
}

/// Each stripe's verified segments, k of them.
pub fn verified(stripes: &[Stripe], lost: usize) -> Vec<Vec<VerifiedSegment>> {
    let (cache, key) = (SignatureCache::default(), web().public());
    let one = |record: Bytes| Segment::parse(&record).unwrap().verify(&cache, &key).unwrap();
    stripes.iter().map(|stripe| records(std::slice::from_ref(stripe), lost).into_iter().map(one).collect()).collect()
}

fn recovering(sealed: usize, lost: usize) -> Vec<Arm> {
    let stripes = verified(&stripes(sealed), lost);
    let own = Arm::fast("sealcast", move || {
        let recovered: Vec<Bytes> = stripes.iter().map(|segments| recover(segments).unwrap()).collect();
        recovered
    });
    vec![own, memcpy(sealed)]
}

/// From records to a parcel's sealed bytes: all that a node does before it opens.
fn reassemble(sealed: usize, lost: usize) -> Vec<Arm> {
    let (records, directory) = (records(&stripes(sealed), lost), Arc::new(directory()));
    let prepare = move || {
        let reassembler = Reassembler::new(directory.clone(), orders(), Caps::default());
        (Gate::new(directory.clone(), orders()), reassembler)
    };
    let run = move |(gate, mut reassembler): (Gate, Reassembler)| {
        let mut bytes = 0;
        for (offset, record) in (0..).zip(&records) {
            let checked = gate.check(record, NOW);
            let mut actions = reassembler.take(checked, Address { partition: 0, offset }, NOW);
            while let Some(action) = actions.pop() {
                match action {
                    Action::Recover(job) => actions.extend(reassembler.recovered(job.run(), NOW)),
                    Action::Deliver(delivery) => bytes += delivery.sealed.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(bytes, sealed);
        reassembler
    };
    vec![Arm::each("sealcast", prepare, run), memcpy(sealed)]
}

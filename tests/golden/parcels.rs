//! Parcels from transactions to records, and back from the file alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sealcast::core::directory::Directory;
use sealcast::core::gather::Gate;
use sealcast::core::id::{Epoch, ParcelId, Suite};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::{HpkePublic, HpkeSecret};
use sealcast::core::seal::transaction::{ExpectedVersion, Payload, Predecessor, PrivateHeader};
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, ParcelSealer, WrapTarget};
use sealcast::core::split::header::{Core, CoreDestination, Profile, digest};
use sealcast::core::split::segment::VerifiedSegment;
use sealcast::core::split::stripe::{Splitter, Stripe, recover};
use sealcast::seams::{Randomness, SeededRandomness};
use zeroize::Zeroizing;

use crate::file::Golden;
use crate::world::*;

struct Case {
    name: &'static str,
    /// Of the fixed randomness.
    seed: u64,
    about: &'static str,
    suite: Suite,
    profile: Profile,
    destinations: &'static [&'static str],
    payloads: Vec<Vec<u8>>,
    /// The length is told in the trailer.
    open_ended: bool,
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// Seals and splits the case as a sender does; draws in the order of the format: parcel id, K, encapsulations.
fn make(case: &Case, golden: &mut Golden) -> Vec<Stripe> {
    let randomness: Arc<dyn Randomness> = Arc::new(SeededRandomness::new(case.seed));
    let parcel = ParcelId::from_parts(NOW, randomness.array().unwrap());
    let k = Zeroizing::new(randomness.array::<32>().unwrap());
    let mut targets: Vec<WrapTarget> = case
        .destinations
        .iter()
        .map(|name| {
            let public = secret(name, case.suite).public().bytes().to_vec();
            WrapTarget { tag: tag(name), public: HpkePublic::from_bytes(case.suite, &public).unwrap() }
        })
        .collect();
    targets.sort_by_key(|target| target.tag);
    let encapsulations: Vec<_> = targets.iter().map(|_| randomness.array().unwrap()).collect();
    let core = Core {
        suite: case.suite,
        profile: case.profile,
        environment: ENVIRONMENT,
        sender: sender().public().bytes(),
        epoch: Epoch([0xee; 8]),
        parcel,
        expiry: DEADLINE,
        destinations: (7..)
            .zip(&targets)
            .map(|(sequence, target)| CoreDestination { tag: target.tag, key: target.public.id(), sequence })
            .collect(),
    };
    golden.put("core", core.encode());
    golden.put("ctx", core.context());
    golden.put("k", *k);

    let mut sealed = Vec::new();
    let count = case.payloads.len() as u32;
    let mut sealer = ParcelSealer::new(&core.context(), &targets, count, &k, &encapsulations, &mut sealed).unwrap();
    golden.put("envelope", &sealed);
    for (number, payload) in case.payloads.iter().enumerate() {
        let told = Payload::plain(payload.len() as u64, PayloadTagger::whole(&sender(), payload));
        let tags = targets.iter().map(|target| target.tag);
        let in_header = (!case.open_ended).then_some(told);
        let mut header = PrivateHeader::new(transaction_id(number), DEADLINE, in_header, tags);
        if number > 0 {
            header.ordering_key = Some(b"customer-42".to_vec());
            header.idempotency_key = Some(format!("request-{number}").into_bytes());
            header.content_type = Some("text/plain".to_owned());
            header.headers = vec![("source".to_owned(), b"golden".to_vec())];
            for order in header.destinations.values_mut() {
                order.predecessor = Some(Predecessor { transaction: transaction_id(number - 1), deadline: DEADLINE });
                order.expected_version = ExpectedVersion::Absent;
            }
        }
        golden.put(&format!("transaction {number} private header"), header.encode().unwrap());
        golden.put_long(&format!("transaction {number} payload"), payload);
        sealer.begin(header, &mut sealed).unwrap();
        sealer.push(payload, &mut sealed).unwrap();
        let done = sealer.end(case.open_ended.then_some(told), &mut sealed).unwrap();
        golden.put(&format!("transaction {number} key"), done.key.bytes());
        golden.put(&format!("transaction {number} tx_commit"), done.tx_commit);
        golden.put(&format!("transaction {number} ciphertext digest"), done.ciphertext_digest.0);
    }
    sealer.finish().unwrap();
    golden.put_long("sealed parcel", &sealed);

    let mut splitter = Splitter::new(core, sender()).unwrap();
    let mut stripes = splitter.push(&sealed).unwrap();
    stripes.push(splitter.finish().unwrap());
    stripes
}

/// Opens the parcel from the file's records for this destination, with the secret that the file names.
fn open(values: &BTreeMap<String, Vec<u8>>, directory: &Arc<Directory>, destination: &str) -> Vec<Vec<u8>> {
    let gate = Gate::new(directory.clone(), tag(destination));
    let mut shards: BTreeMap<u32, Vec<VerifiedSegment>> = BTreeMap::new();
    for (name, bytes) in values.iter().filter(|(name, _)| name.ends_with(" record")) {
        let segment = gate.check(&Bytes::from(bytes.clone()), NOW).unwrap();
        assert_eq!(values[&name.replace(" record", " key")], segment.id().to_bytes());
        shards.entry(segment.header().stripe).or_default().push(segment);
    }
    let core = shards[&0][0].header().core.clone();
    let context = ParcelContext {
        ctx: core.context(),
        suite: core.suite,
        destinations: core.destinations.iter().map(|one| (one.tag, one.key)).collect(),
    };
    let secret = HpkeSecret::from_bytes(core.suite, &values[&format!("destination {destination} secret key")]).unwrap();
    let mut opener = ParcelOpener::new(context, tag(destination), secret);
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    let mut sink = |event: Event<'_>| match event {
        Event::Begin { .. } => payloads.push(Vec::new()),
        Event::Payload { index, bytes } => payloads[index as usize].extend_from_slice(bytes),
        _ => (),
    };
    for (stripe, mut segments) in shards {
        let k = segments[0].header().core.profile.k();
        assert_eq!(values[&format!("stripe {stripe} header")], *segments[0].header_bytes());
        // Parity as far as there is any.
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.index()));
        segments.truncate(k);
        opener.push(&recover(&segments).unwrap(), &mut sink).unwrap();
    }
    assert_eq!(opener.finish(&mut sink).unwrap() as usize, payloads.len());
    payloads
}

fn check(case: &Case) -> BTreeMap<String, Vec<u8>> {
    let mut golden = Golden::new(case.about);
    golden.put("sender seed", *sender().seed());
    golden.put("sender public key", sender().public().bytes().0);
    for name in case.destinations {
        golden.put(&format!("destination {name} tag"), tag(name).0);
        golden.put(&format!("destination {name} secret key"), **secret(name, case.suite).bytes());
        golden.put(&format!("destination {name} key id"), secret(name, case.suite).public().id().0);
    }
    let stripes = make(case, &mut golden);
    for stripe in &stripes {
        let number = stripe.header.stripe;
        golden.put(&format!("stripe {number} header"), &stripe.header_bytes);
        golden.put(&format!("stripe {number} header digest"), stripe.digest.0);
        for segment in &stripe.segments {
            golden.put(&format!("stripe {number} shard {} key", segment.index), segment.id.to_bytes());
            golden.put(&format!("stripe {number} shard {} record", segment.index), &segment.record);
        }
    }
    let last = stripes.last().unwrap();
    assert_eq!(digest(&last.header_bytes), last.digest);
    golden.put("D", last.digest.0);
    let values = golden.settle(case.name);
    let directory = Arc::new(Directory::verify(&directory(), &operator().public(), 0).unwrap());
    for destination in case.destinations {
        assert_eq!(open(&values, &directory, destination), case.payloads, "{}", case.name);
    }
    values
}

fn small() -> Profile {
    Profile::small()
}

#[test]
fn a_small_parcel_in_suite_1() {
    check(&Case {
        name: "small-suite-1",
        seed: 1,
        about: "One transaction of 13 bytes to one destination, suite 1, profile small (k = 1, m = 2).",
        suite: Suite::X25519,
        profile: small(),
        destinations: &["orders"],
        payloads: vec![b"Hello, world!".to_vec()],
        open_ended: false,
    });
}

#[test]
fn a_small_parcel_in_suite_2() {
    check(&Case {
        name: "small-suite-2",
        seed: 2,
        about: "One transaction without payload to one destination, suite 2, profile small (k = 1, m = 2).",
        suite: Suite::XWing,
        profile: small(),
        destinations: &["orders"],
        payloads: vec![Vec::new()],
        open_ended: false,
    });
}

#[test]
fn a_full_chunk_and_several_transactions_in_one_parcel() {
    check(&Case {
        name: "transactions",
        seed: 4,
        about: "Three transactions (300, 0 and 1 bytes) in one parcel, suite 2: the later ones name the one before.",
        suite: Suite::XWing,
        profile: Profile::new(2, 1, 2048).unwrap(),
        destinations: &["orders"],
        payloads: vec![payload(300), Vec::new(), vec![0xff]],
        open_ended: false,
    });
}

#[test]
fn two_destinations_in_each_suite() {
    for (name, suite) in [("two-destinations-suite-1", Suite::X25519), ("two-destinations-suite-2", Suite::XWing)] {
        check(&Case {
            name,
            seed: 10 + u64::from(suite.number()),
            about: "One transaction of 40 bytes to two destinations; each opens it with its own key. No parity.",
            suite,
            profile: Profile::replicated(),
            destinations: &["orders", "audit"],
            payloads: vec![payload(40)],
            open_ended: false,
        });
    }
}

#[test]
fn a_transaction_of_unknown_length() {
    check(&Case {
        name: "unknown-length",
        seed: 5,
        about: "One transaction of 70,000 bytes (two chunks) whose length was not known when it began, suite 1. No parity.",
        suite: Suite::X25519,
        profile: Profile::new(2, 0, 32_768).unwrap(),
        destinations: &["orders"],
        payloads: vec![payload(70_000)],
        open_ended: true,
    });
}

/// Takes a file apart by the offsets and formulas of docs/wire-format.md alone, without the library's reader.
#[test]
fn several_stripes_with_a_short_last_one_at_the_offsets_of_the_page() {
    let case = Case {
        name: "stripes",
        seed: 3,
        about: "One transaction of 1,000 bytes, suite 1, k = 4, m = 3, shards of 96 bytes: the last stripe is short.",
        suite: Suite::X25519,
        profile: Profile::new(4, 3, 96).unwrap(),
        destinations: &["orders"],
        payloads: vec![payload(1000)],
        open_ended: false,
    };
    let values = check(&case);
    let blake3 = |parts: &[&[u8]]| *blake3::hash(&parts.concat()).as_bytes();
    let key = ed25519_dalek::VerifyingKey::from_bytes(values["sender public key"][..].try_into().unwrap()).unwrap();
    let (mut sealed, mut previous, mut number) = (Vec::new(), [0; 32], 0u32);
    loop {
        let record = |shard: usize| &values[&format!("stripe {number} shard {shard} record")][..];
        let first = record(0);
        assert_eq!(&first[..5], b"SCSG\x01");
        let h = 168 + 40 * usize::from(first[5 + 94]);
        let header = &first[5..5 + h];
        assert_eq!((&header[..4], header[8], header[9]), (&b"SCCO"[..], 4, 3));
        let stripe = &header[h - 73..];
        assert_eq!(stripe[..4], number.to_be_bytes());
        assert_eq!(stripe[9..41], previous);
        let length = u32::from_be_bytes(stripe[5..9].try_into().unwrap()) as usize;
        let s = length.div_ceil(4);
        let signature = first[5 + h..69 + h].try_into().unwrap();
        let signed = [b"sealcast/v1 stripe\0", header].concat();
        key.verify_strict(&signed, &ed25519_dalek::Signature::from_bytes(signature)).unwrap();
        previous = blake3(&[b"sealcast/v1 header\0", header]);
        let mut padded = Vec::new();
        let mut leaves = Vec::new();
        for index in 0..7u16 {
            let record = record(index.into());
            assert_eq!(record[69 + h..71 + h], index.to_be_bytes());
            // Seven leaves: the last stands alone on its level.
            let p = if index == 6 { 2 } else { 3 };
            assert_eq!(usize::from(record[71 + h]), p);
            let shard = &record[72 + h + 32 * p..];
            assert_eq!(shard.len(), s);
            leaves.push(blake3(&[b"sealcast/v1 leaf\0", &index.to_be_bytes(), shard]));
            if index < 4 {
                padded.extend_from_slice(shard);
            }
            let mut uuid: [u8; 16] =
                blake3(&[b"sealcast/v1 segment\0", &previous, &index.to_be_bytes()])[..16].try_into().unwrap();
            uuid[6] = uuid[6] & 0x0f | 0x80;
            uuid[8] = uuid[8] & 0x3f | 0x80;
            assert_eq!(values[&format!("stripe {number} shard {index} key")], uuid);
        }
        let node = |left: [u8; 32], right: [u8; 32]| blake3(&[b"sealcast/v1 node\0", &left, &right]);
        let left = node(node(leaves[0], leaves[1]), node(leaves[2], leaves[3]));
        assert_eq!(stripe[41..73], node(left, node(node(leaves[4], leaves[5]), leaves[6])));
        sealed.extend_from_slice(&padded[..length]);
        assert!(padded[length..].iter().all(|&byte| byte == 0));
        if stripe[4] == 1 {
            break;
        }
        number += 1;
    }
    assert_eq!(sealed, values["sealed parcel"]);
    assert_eq!(previous, values["D"][..]);
}

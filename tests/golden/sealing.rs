//! The sealing of parcels alone: envelope and transactions for a given ctx.

use std::collections::BTreeMap;

use sealcast::core::id::{DestinationTag, OnPredecessor, Position, Release, Suite, Time, TransactionId};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::seal::transaction::{
    Compression, ExpectedVersion, Order, Padding, Payload, Predecessor, PrivateHeader,
};
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, ParcelSealer, SealedTransaction, WrapTarget};
use sealcast::core::sign::SecretKey;
use zeroize::Zeroizing;

use crate::file::Golden;

const CTX: [u8; 32] = [0xc7; 32];
const K: [u8; 32] = [0x4b; 32];

fn id(number: u8) -> TransactionId {
    TransactionId::from_parts(Time(1_700_000_000_000 + u64::from(number)), [number; 10])
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn told(payload: &[u8]) -> Payload {
    Payload::plain(payload.len() as u64, PayloadTagger::whole(&SecretKey::from_seed(&[0x5e; 32]), payload))
}

fn header(number: u8, payload: Option<Payload>, targets: &[WrapTarget]) -> PrivateHeader {
    let deadline = Time(1_700_000_600_000);
    PrivateHeader::new(id(number), deadline, payload, targets.iter().map(|target| target.tag))
}

/// A header with every optional field.
fn full_header(number: u8, payload: Payload, targets: &[WrapTarget]) -> PrivateHeader {
    let mut header = header(number, Some(payload), targets);
    header.padding = Padding::Padme;
    header.ordering_key = Some(b"customer-42".to_vec());
    header.idempotency_key = Some(b"invoice-7".to_vec());
    header.content_type = Some("application/json".to_owned());
    header.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    header.headers = vec![("region".to_owned(), b"eu".to_vec()), ("empty".to_owned(), Vec::new())];
    let order = Order {
        predecessor: Some(Predecessor { transaction: id(number - 1), deadline: Time(1_700_000_500_000) }),
        on_predecessor: OnPredecessor::GoOn,
        release: Release::Complete,
        expected_version: ExpectedVersion::At(Position { index: 17, number: 3 }),
    };
    header.destinations.insert(targets[0].tag, order);
    header
}

struct Sealed {
    secrets: Vec<(DestinationTag, HpkeSecret)>,
    targets: Vec<WrapTarget>,
    draws: Vec<[u8; 64]>,
    parcel: Vec<u8>,
    transactions: Vec<(SealedTransaction, Vec<u8>)>,
}

fn seal(
    suite: Suite,
    numbers: &[u8],
    count: u32,
    seal: impl Fn(&mut ParcelSealer, &[WrapTarget], &mut Vec<u8>) -> Vec<(SealedTransaction, Vec<u8>)>,
) -> Sealed {
    let secret = |&number: &u8| (DestinationTag([number; 16]), HpkeSecret::generate(suite, &[number; 32]).unwrap());
    let secrets: Vec<_> = numbers.iter().map(secret).collect();
    let target =
        |(tag, secret): &(DestinationTag, HpkeSecret)| WrapTarget { tag: *tag, public: secret.public().clone() };
    let targets: Vec<_> = secrets.iter().map(target).collect();
    let draws: Vec<[u8; 64]> = numbers.iter().map(|&number| std::array::from_fn(|at| number ^ at as u8)).collect();
    let mut parcel = Vec::new();
    let mut sealer = ParcelSealer::new(&CTX, &targets, count, &Zeroizing::new(K), &draws, &mut parcel).unwrap();
    let transactions = seal(&mut sealer, &targets, &mut parcel);
    sealer.finish().unwrap();
    Sealed { secrets, targets, draws, parcel, transactions }
}

impl Sealed {
    fn golden(&self, about: &str) -> Golden {
        let mut golden = Golden::new(about);
        golden.put("suite", [self.targets[0].public.suite().number()]);
        golden.put("ctx", CTX);
        golden.put("K", K);
        for (number, ((tag, secret), draw)) in self.secrets.iter().zip(&self.draws).enumerate() {
            golden.put(&format!("destination {number} tag"), tag.0);
            golden.put(&format!("destination {number} secret key"), secret.bytes().as_slice());
            golden.put(&format!("destination {number} key id"), secret.public().id().0);
            golden.put(&format!("destination {number} encapsulation randomness"), draw);
        }
        for (sealed, payload) in &self.transactions {
            let number = sealed.index;
            golden.put(&format!("transaction {number} K_tx"), sealed.key.bytes());
            golden.put(&format!("transaction {number} tx_commit"), sealed.tx_commit);
            golden.put(&format!("transaction {number} private header"), sealed.header.encode().unwrap());
            golden.put(&format!("transaction {number} payload"), payload);
            golden.put(&format!("transaction {number} payload tag"), sealed.payload.tag.0);
            golden.put(&format!("transaction {number} ciphertext digest"), sealed.ciphertext_digest.0);
        }
        golden.put("parcel", &self.parcel);
        golden
    }

    /// The file says the same, and what the file says opens for every destination.
    fn check(&self, name: &str, about: &str) {
        let values = self.golden(about).settle(name);
        let parcel = &values["parcel"];
        let context = ParcelContext {
            ctx: CTX,
            suite: self.targets[0].public.suite(),
            destinations: self.targets.iter().map(|target| (target.tag, target.public.id())).collect(),
        };
        for (tag, secret) in &self.secrets {
            let mut opener = ParcelOpener::new(context.clone(), *tag, secret.clone());
            let mut payloads: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let mut ended = Vec::new();
            let mut sink = |event: Event<'_>| match event {
                Event::Begin { index, .. } => drop(payloads.insert(index, Vec::new())),
                Event::Payload { index, bytes } => payloads.get_mut(&index).unwrap().extend(bytes),
                Event::End(sealed) => ended.push(*sealed),
                Event::Ciphertext { .. } | Event::Header { .. } => {}
            };
            opener.push(parcel, &mut sink).unwrap();
            opener.finish(&mut sink).unwrap();
            assert!(payloads.values().eq(self.transactions.iter().map(|(_, payload)| payload)));
            assert!(ended.iter().eq(self.transactions.iter().map(|(sealed, _)| sealed)));
        }
    }
}

fn whole(
    sealer: &mut ParcelSealer,
    header: PrivateHeader,
    payload: Vec<u8>,
    out: &mut Vec<u8>,
) -> (SealedTransaction, Vec<u8>) {
    (sealer.seal(header, &payload, out).unwrap(), payload)
}

#[test]
fn one_small_transaction_in_suite_2() {
    seal(Suite::XWing, &[1], 1, |sealer, targets, out| {
        let payload = b"hello".to_vec();
        vec![whole(sealer, header(1, Some(told(&payload)), targets), payload, out)]
    })
    .check("seal-x-wing", "One transaction of 5 bytes, suite 2.");
}

#[test]
fn several_transactions_for_two_destinations_in_suite_1() {
    seal(Suite::X25519, &[1, 2], 3, |sealer, targets, out| {
        let [first, second, third] = [payload(0), payload(66_000), payload(300)];
        vec![
            whole(sealer, header(1, Some(told(&first)), targets), first, out),
            whole(sealer, header(2, Some(told(&second)), targets), second, out),
            whole(sealer, full_header(3, told(&third), targets), third, out),
        ]
    })
    .check(
        "seal-x25519-several",
        "Three transactions (0, 66,000 and 300 bytes) to two destinations, suite 1; the last has every optional field.",
    );
}

#[test]
fn two_destinations_in_suite_2() {
    seal(Suite::XWing, &[1, 2], 1, |sealer, targets, out| {
        let payload = payload(100);
        vec![whole(sealer, full_header(2, told(&payload), targets), payload, out)]
    })
    .check("seal-x-wing-two-destinations", "One transaction with every optional field to two destinations, suite 2.");
}

#[test]
fn a_length_in_the_trailer_and_zstd_in_suite_1() {
    seal(Suite::X25519, &[1], 1, |sealer, targets, out| {
        // A zstd frame made by hand (RFC 8878): one raw block, so that no compressor's version matters.
        let payload = b"carried in a raw block".to_vec();
        let block = ((payload.len() as u32) << 3 | 1).to_le_bytes();
        let carried = [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, payload.len() as u8][..], &block[..3], &payload[..]].concat();
        let mut header = header(1, None, targets);
        header.compression = Compression::Zstd;
        sealer.begin(header, out).unwrap();
        sealer.push(&carried, out).unwrap();
        let trailer = Payload { carried: carried.len() as u64, ..told(&payload) };
        vec![(sealer.end(Some(trailer), out).unwrap(), payload)]
    })
    .check(
        "seal-x25519-trailer",
        "One compressed transaction whose lengths and payload tag stand in its trailer, suite 1.",
    );
}

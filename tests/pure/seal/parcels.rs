//! Makes parcels for any destinations, and opens them.

use std::collections::BTreeMap;

use sealcast::core::id::{DestinationTag, Suite, Time, TransactionId};
use sealcast::core::seal::compress::Compressor;
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::seal::transaction::{Compression, Payload, PrivateHeader};
use sealcast::core::seal::{
    BodyDigest, BodyError, BodyEvent, BodyOpener, Event, OpenError, ParcelContext, ParcelOpener, ParcelSealer,
    SealedTransaction, WrapTarget,
};
use sealcast::core::sign::SecretKey;
use zeroize::Zeroizing;

pub const CTX: [u8; 32] = [0xc7; 32];
pub const SUITES: [Suite; 2] = [Suite::X25519, Suite::XWing];

pub fn tag(number: u8) -> DestinationTag {
    DestinationTag([number; 16])
}

pub fn id(number: u32) -> TransactionId {
    let [a, b, c, d] = number.to_be_bytes();
    TransactionId::from_parts(Time(1_700_000_000_000), [a, b, c, d, 0, 0, 0, 0, 0, 0])
}

/// A destination's secret, from its number.
pub fn secret(suite: Suite, number: u8) -> HpkeSecret {
    HpkeSecret::generate(suite, &[number; 32]).expect("an honest key")
}

pub fn targets(suite: Suite, numbers: &[u8]) -> Vec<WrapTarget> {
    let target = |&number: &u8| WrapTarget { tag: tag(number), public: secret(suite, number).public().clone() };
    numbers.iter().map(target).collect()
}

pub fn context(targets: &[WrapTarget]) -> ParcelContext {
    ParcelContext {
        ctx: CTX,
        suite: targets[0].public.suite(),
        destinations: targets.iter().map(|target| (target.tag, target.public.id())).collect(),
    }
}

pub fn k(byte: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([byte; 32])
}

pub fn header(number: u32, payload: Option<Payload>, targets: &[WrapTarget]) -> PrivateHeader {
    PrivateHeader::new(id(number), Time(1_700_000_060_000), payload, targets.iter().map(|target| target.tag))
}

pub fn plain(payload: &[u8]) -> Payload {
    Payload::plain(payload.len() as u64, PayloadTagger::whole(&SecretKey::from_seed(&[1; 32]), payload))
}

pub fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) % 251) as u8 ^ seed).collect()
}

pub fn sealer(targets: &[WrapTarget], transactions: u32, out: &mut Vec<u8>) -> ParcelSealer {
    let draws: Vec<[u8; 64]> = (0..targets.len()).map(|at| [at as u8 + 1; 64]).collect();
    ParcelSealer::new(&CTX, targets, transactions, &k(9), &draws, out).expect("an envelope")
}

pub fn sealed(targets: &[WrapTarget], payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<SealedTransaction>) {
    let mut out = Vec::new();
    let mut sealer = sealer(targets, payloads.len() as u32, &mut out);
    let mut all = Vec::new();
    for (number, payload) in payloads.iter().enumerate() {
        all.push(sealer.seal(header(number as u32, Some(plain(payload)), targets), payload, &mut out).expect("seals"));
    }
    sealer.finish().expect("all are sealed");
    (out, all)
}

#[derive(Default, Debug, PartialEq)]
pub struct Opened {
    pub payloads: BTreeMap<u32, Vec<u8>>,
    pub ciphertexts: BTreeMap<u32, Vec<u8>>,
    pub announced: BTreeMap<u32, Option<u64>>,
    pub headers: u32,
    pub ended: Vec<SealedTransaction>,
}

impl Opened {
    pub fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Begin { index, ciphertext_bytes } => {
                assert!(self.announced.insert(index, ciphertext_bytes).is_none());
                self.payloads.insert(index, Vec::new());
                self.ciphertexts.insert(index, Vec::new());
            }
            Event::Ciphertext { index, bytes } => self.ciphertexts.get_mut(&index).expect("begun").extend(bytes),
            Event::Header { .. } => self.headers += 1,
            Event::Payload { index, bytes } => self.payloads.get_mut(&index).expect("begun").extend(bytes),
            Event::End(sealed) => self.ended.push(*sealed),
        }
    }
}

pub fn open(
    context: &ParcelContext,
    own: DestinationTag,
    secret: HpkeSecret,
    sealed: &[u8],
    step: usize,
) -> Result<Opened, OpenError> {
    let mut opener = ParcelOpener::new(context.clone(), own, secret);
    let mut opened = Opened::default();
    for part in sealed.chunks(step) {
        opener.push(part, &mut |event| opened.take(event))?;
    }
    let count = opener.finish(&mut |event| opened.take(event))?;
    assert_eq!(count as usize, opened.ended.len());
    Ok(opened)
}

/// Opens what a node kept of one transaction.
pub fn open_body(sealed: &SealedTransaction, ciphertext: &[u8], step: usize) -> Result<Vec<u8>, BodyError> {
    let mut opener = BodyOpener::new(&sealed.key);
    let mut payload = Vec::new();
    let mut sink = |event: BodyEvent<'_>| {
        if let BodyEvent::Payload(bytes) = event {
            payload.extend_from_slice(bytes);
        }
    };
    for part in ciphertext.chunks(step) {
        assert_eq!(opener.push(part, &mut sink)?, part.len());
    }
    let opened = opener.finish(&mut sink)?;
    assert_eq!((opened.header, opened.payload), (sealed.header.clone(), sealed.payload));
    Ok(payload)
}

/// Everything that holds for a parcel that opens.
pub fn check(opened: &Opened, payloads: &[Vec<u8>], sealed: &[SealedTransaction]) {
    assert!(opened.payloads.values().eq(payloads), "payloads differ");
    assert_eq!(opened.ended, sealed);
    assert_eq!(opened.headers as usize, payloads.len());
    for (transaction, ciphertext) in sealed.iter().zip(opened.ciphertexts.values()) {
        let mut digest = BodyDigest::new();
        digest.update(ciphertext);
        assert_eq!(digest.finish(), (transaction.ciphertext_bytes, transaction.ciphertext_digest));
        assert!(transaction.key.commits(&transaction.tx_commit));
        let index = transaction.index;
        assert!(opened.announced[&index].is_none_or(|bytes| bytes == transaction.ciphertext_bytes));
        let again = open_body(transaction, ciphertext, 50_000).expect("what a node keeps opens alone");
        assert!(again == payloads[index as usize]);
    }
}

/// A parcel whose one transaction tells its lengths in the trailer.
pub fn sealed_open_ended(
    targets: &[WrapTarget],
    payload: &[u8],
    compression: Compression,
) -> (Vec<u8>, SealedTransaction) {
    let mut out = Vec::new();
    let mut sealer = sealer(targets, 1, &mut out);
    let mut header = header(0, None, targets);
    header.compression = compression;
    sealer.begin(header, &mut out).expect("begins");
    let carried = match compression {
        Compression::None => payload.to_vec(),
        Compression::Zstd => Compressor::whole(payload).expect("compresses"),
    };
    for part in carried.chunks(10_000) {
        sealer.push(part, &mut out).expect("seals");
    }
    let trailer = Payload { carried: carried.len() as u64, ..plain(payload) };
    let sealed = sealer.end(Some(trailer), &mut out).expect("ends");
    sealer.finish().expect("is whole");
    (out, sealed)
}

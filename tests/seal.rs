//! Sealing and opening whole parcels: what goes in comes out, and nothing else ever does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sealcast::core::id::{DestinationTag, PayloadTag, RefusalReason, Suite, Time, TransactionId};
use sealcast::core::limits;
use sealcast::core::seal::compress::Compressor;
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::stream::CHUNK_BYTES;
use sealcast::core::seal::suite::{HpkeSecret, SuiteError};
use sealcast::core::seal::transaction::{Compression, Padding, Payload, PrivateHeader};
use sealcast::core::seal::{
    BodyDigest, BodyError, BodyEvent, BodyOpener, EnvelopeError, EnvelopeOpenError, Event, OpenError, ParcelContext,
    ParcelOpener, ParcelSealError, ParcelSealer, SealedTransaction, WrapTarget, envelope_bytes,
};
use sealcast::core::sign::SecretKey;
use zeroize::Zeroizing;

const CTX: [u8; 32] = [0xc7; 32];
const SUITES: [Suite; 2] = [Suite::X25519, Suite::XWing];

fn tag(number: u8) -> DestinationTag {
    DestinationTag([number; 16])
}

fn id(number: u32) -> TransactionId {
    let [a, b, c, d] = number.to_be_bytes();
    TransactionId::from_parts(Time(1_700_000_000_000), [a, b, c, d, 0, 0, 0, 0, 0, 0])
}

/// A destination's secret, from its number.
fn secret(suite: Suite, number: u8) -> HpkeSecret {
    HpkeSecret::generate(suite, &[number; 32]).expect("an honest key")
}

fn targets(suite: Suite, numbers: &[u8]) -> Vec<WrapTarget> {
    let target = |&number: &u8| WrapTarget { tag: tag(number), public: secret(suite, number).public().clone() };
    numbers.iter().map(target).collect()
}

fn context(targets: &[WrapTarget]) -> ParcelContext {
    ParcelContext {
        ctx: CTX,
        suite: targets[0].public.suite(),
        destinations: targets.iter().map(|target| (target.tag, target.public.id())).collect(),
    }
}

fn k(byte: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([byte; 32])
}

fn header(number: u32, payload: Option<Payload>, targets: &[WrapTarget]) -> PrivateHeader {
    PrivateHeader::new(id(number), Time(1_700_000_060_000), payload, targets.iter().map(|target| target.tag))
}

fn plain(payload: &[u8]) -> Payload {
    Payload::plain(payload.len() as u64, PayloadTagger::whole(&SecretKey::from_seed(&[1; 32]), payload))
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) % 251) as u8 ^ seed).collect()
}

fn sealer(targets: &[WrapTarget], transactions: u32, out: &mut Vec<u8>) -> ParcelSealer {
    let draws: Vec<[u8; 64]> = (0..targets.len()).map(|at| [at as u8 + 1; 64]).collect();
    ParcelSealer::new(&CTX, targets, transactions, &k(9), &draws, out).expect("an envelope")
}

fn sealed(targets: &[WrapTarget], payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<SealedTransaction>) {
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
struct Opened {
    payloads: BTreeMap<u32, Vec<u8>>,
    ciphertexts: BTreeMap<u32, Vec<u8>>,
    announced: BTreeMap<u32, Option<u64>>,
    headers: u32,
    ended: Vec<SealedTransaction>,
}

impl Opened {
    fn take(&mut self, event: Event<'_>) {
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

fn open(
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
fn open_body(sealed: &SealedTransaction, ciphertext: &[u8], step: usize) -> Result<Vec<u8>, BodyError> {
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
fn check(opened: &Opened, payloads: &[Vec<u8>], sealed: &[SealedTransaction]) {
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

#[test]
fn parcels_open_at_every_boundary_in_both_suites() {
    // The private header takes the first bytes of the first chunk, so boundaries lie a little before the chunks' ends.
    let boundary = CHUNK_BYTES - 4 - header(0, Some(plain(b"")), &targets(Suite::X25519, &[1])).encode().unwrap().len();
    for suite in SUITES {
        let targets = targets(suite, &[1]);
        for size in
            [0, 1, boundary - 1, boundary, boundary + 1, boundary + CHUNK_BYTES, boundary + CHUNK_BYTES + 1, 200_000]
        {
            let payloads = [bytes(size, 3)];
            let (parcel, all) = sealed(&targets, &payloads);
            for step in [parcel.len(), 70_000, 997] {
                let opened = open(&context(&targets), tag(1), secret(suite, 1), &parcel, step).expect("opens");
                check(&opened, &payloads, &all);
            }
        }
    }
}

#[test]
fn every_destination_opens_every_transaction_with_its_own_key() {
    for suite in SUITES {
        let targets = targets(suite, &[1, 4, 9]);
        let payloads = [bytes(10, 1), bytes(0, 2), bytes(100_000, 3), bytes(65_536, 4)];
        let (parcel, all) = sealed(&targets, &payloads);
        for number in [1, 4, 9] {
            let opened = open(&context(&targets), tag(number), secret(suite, number), &parcel, 4096).expect("opens");
            check(&opened, &payloads, &all);
        }
    }
}

#[test]
fn a_thousand_transactions_fit_one_parcel() {
    let targets = targets(Suite::X25519, &[1]);
    let payloads: Vec<Vec<u8>> = (0..limits::TRANSACTIONS_PER_PARCEL).map(|at| bytes(at % 50, at as u8)).collect();
    let (parcel, all) = sealed(&targets, &payloads);
    let opened = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &parcel, 65_536).expect("opens");
    check(&opened, &payloads, &all);
}

/// A parcel whose one transaction tells its lengths in the trailer.
fn sealed_open_ended(targets: &[WrapTarget], payload: &[u8], compression: Compression) -> (Vec<u8>, SealedTransaction) {
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

#[test]
fn a_transaction_of_unknown_length_ends_with_its_parcel() {
    let targets = targets(Suite::X25519, &[1]);
    let boundary = CHUNK_BYTES - 4 - header(0, None, &targets).encode().unwrap().len();
    for size in [0, 1, 47, 48, 49, boundary - 48, boundary - 47, boundary - 20, boundary, boundary + 1, 200_000] {
        for compression in [Compression::None, Compression::Zstd] {
            let payload = bytes(size, 5);
            let (parcel, all) = sealed_open_ended(&targets, &payload, compression);
            for step in [parcel.len(), 65_552, 999] {
                let opened = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &parcel, step).expect("opens");
                assert_eq!(opened.announced[&0], None);
                check(&opened, std::slice::from_ref(&payload), std::slice::from_ref(&all));
            }
            let cut = &parcel[..parcel.len() - 1];
            assert!(open(&context(&targets), tag(1), secret(Suite::X25519, 1), cut, 999).is_err());
            let longer = [&parcel[..], &[0]].concat();
            assert!(open(&context(&targets), tag(1), secret(Suite::X25519, 1), &longer, 999).is_err());
        }
    }
}

#[test]
fn padding_and_compression_leave_the_payload_as_it_was() {
    let targets = targets(Suite::X25519, &[1]);
    let payloads = [bytes(1_000, 1), vec![7; 300_000]];
    let mut out = Vec::new();
    let mut sealer = sealer(&targets, 2, &mut out);
    let mut all = Vec::new();
    for (number, payload) in payloads.iter().enumerate() {
        let carried = Compressor::whole(payload).expect("compresses");
        let told = Payload { carried: carried.len() as u64, ..plain(payload) };
        let mut header = header(number as u32, Some(told), &targets);
        header.compression = Compression::Zstd;
        header.padding = Padding::Padme;
        all.push(sealer.seal(header, &carried, &mut out).expect("seals"));
    }
    sealer.finish().expect("is whole");
    assert!(all[1].ciphertext_bytes < 1_000);
    let opened = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &out, 100).expect("opens");
    check(&opened, &payloads, &all);
}

#[test]
fn a_header_that_lies_about_a_compressed_length_is_refused() {
    let targets = targets(Suite::X25519, &[1]);
    let payload = vec![7; 300_000];
    let carried = Compressor::whole(&payload).expect("compresses");
    for lie in [0, 299_999, 300_001, limits::PAYLOAD_BYTES] {
        let mut out = Vec::new();
        let mut sealer = sealer(&targets, 1, &mut out);
        let told = Payload { bytes: lie, carried: carried.len() as u64, tag: PayloadTag([1; 32]) };
        let mut header = header(0, Some(told), &targets);
        header.compression = Compression::Zstd;
        sealer.seal(header, &carried, &mut out).expect("the sealer cannot know");
        let error = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &out, 1000).expect_err("a lie");
        assert_eq!(error.refusal(), Some(RefusalReason::Compression), "{lie}: {error}");
    }
}

#[test]
fn every_single_bit_of_a_parcel_counts() {
    let targets = targets(Suite::X25519, &[1, 2]);
    let (parcel, _) = sealed(&targets, &[bytes(40, 1), bytes(3, 2)]);
    let wraps = envelope_bytes(Suite::X25519, 2);
    for bit in 0..parcel.len() * 8 {
        let mut altered = parcel.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        for number in [1, 2] {
            let refused = open(&context(&targets), tag(number), secret(Suite::X25519, number), &altered, usize::MAX);
            let error = refused.expect_err("altered");
            // Only the version, in which every other value may be a later one, is no verdict.
            assert_eq!(error.refusal().is_none(), bit / 8 == 4, "bit {bit} of {} ({wraps}): {error}", parcel.len() * 8);
        }
    }
}

#[test]
fn every_byte_of_a_post_quantum_parcel_counts() {
    let targets = targets(Suite::XWing, &[1]);
    let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
    for at in 0..parcel.len() {
        let mut altered = parcel.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(open(&context(&targets), tag(1), secret(Suite::XWing, 1), &altered, usize::MAX).is_err(), "byte {at}");
    }
}

#[test]
fn no_shorter_and_no_longer_parcel_opens() {
    let targets = targets(Suite::X25519, &[1]);
    let (parcel, _) = sealed(&targets, &[bytes(40, 1), bytes(3, 2)]);
    for length in 0..parcel.len() {
        let cut = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &parcel[..length], usize::MAX);
        assert!(cut.expect_err("cut").refusal().is_some(), "{length}");
    }
    for more in [&[0][..], &[0; 100], &parcel[envelope_bytes(Suite::X25519, 1)..]] {
        let longer = [&parcel[..], more].concat();
        let refused = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &longer, 77);
        assert_eq!(refused, Err(OpenError::Trailing { announced: 2 }));
    }
}

#[test]
fn transactions_cannot_change_places_or_parcels() {
    let targets = targets(Suite::X25519, &[1]);
    let (parcel, all) = sealed(&targets, &[bytes(40, 1), bytes(40, 2)]);
    let (envelope, rest) = parcel.split_at(envelope_bytes(Suite::X25519, 1));
    let (first, second) = rest.split_at(all[0].ciphertext_bytes as usize);
    let swapped = [envelope, second, first].concat();
    let refused = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &swapped, usize::MAX);
    assert_eq!(refused, Err(OpenError::Transaction { index: 0, cause: BodyError::Length }));
    let doubled = [envelope, first, first].concat();
    let refused = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &doubled, usize::MAX);
    assert_eq!(refused, Err(OpenError::Transaction { index: 1, cause: BodyError::Length }));
    // The same K and the same payloads in another context: other keys throughout.
    let mut elsewhere = context(&targets);
    elsewhere.ctx = [0; 32];
    let refused = open(&elsewhere, tag(1), secret(Suite::X25519, 1), &parcel, usize::MAX);
    assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)));
}

#[test]
fn wraps_cannot_change_places_be_dropped_or_doubled() {
    for suite in SUITES {
        let targets = targets(suite, &[1, 2]);
        let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
        let one = (envelope_bytes(suite, 2) - envelope_bytes(suite, 1)) as usize;
        let fixed = envelope_bytes(suite, 1) - one;
        let (head, rest) = parcel.split_at(fixed);
        let (first, rest) = rest.split_at(one);
        let (second, body) = rest.split_at(one);
        for (name, altered) in [
            ("swapped", [head, second, first, body].concat()),
            ("dropped", [head, first, body].concat()),
            ("doubled", [head, first, first, second, body].concat()),
            ("one for both", [head, first, first, body].concat()),
            ("short", [head, first, &second[1..], body].concat()),
            ("long", [head, first, second, &[0], body].concat()),
        ] {
            let mut refused = 0;
            for number in [1, 2] {
                let opened = open(&context(&targets), tag(number), secret(suite, number), &altered, usize::MAX);
                refused += u32::from(opened.is_err_and(|error| error.refusal().is_some()));
            }
            assert_eq!(refused, 2, "{name}");
        }
    }
}

#[test]
fn a_commitment_forces_one_key_on_all_destinations() {
    // A sender that wraps one K for the first and another for the second: it makes two parcels and joins their wraps.
    let targets = targets(Suite::X25519, &[1, 2]);
    let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
    let draws = [[1; 64], [2; 64]];
    let mut other = Vec::new();
    ParcelSealer::new(&CTX, &targets, 1, &k(8), &draws, &mut other).expect("an envelope");
    let second = envelope_bytes(Suite::X25519, 1)..envelope_bytes(Suite::X25519, 2);
    let mut joined = parcel.clone();
    joined[second.clone()].copy_from_slice(&other[second]);
    for (number, reason) in [(1, RefusalReason::Stream), (2, RefusalReason::Unopenable)] {
        let refused = open(&context(&targets), tag(number), secret(Suite::X25519, number), &joined, usize::MAX);
        assert_eq!(refused.expect_err("two keys").refusal(), Some(reason));
    }
    // The commitment of the one over the wrap of the other.
    let mut crossed = parcel.clone();
    crossed[9..41].copy_from_slice(&other[9..41]);
    let refused = open(&context(&targets), tag(1), secret(Suite::X25519, 1), &crossed, usize::MAX);
    assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)));
}

#[test]
fn another_key_at_hand_is_local_trouble_and_no_verdict() {
    let targets = targets(Suite::XWing, &[1]);
    let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
    for (own, key) in [(tag(1), secret(Suite::XWing, 7)), (tag(2), secret(Suite::XWing, 1))] {
        let error = open(&context(&targets), own, key, &parcel, usize::MAX).expect_err("not its key");
        assert!(error.refusal().is_none() && error.retryable(), "{error}");
    }
}

#[test]
fn what_cannot_be_sealed_is_named() {
    let both = targets(Suite::X25519, &[1, 2]);
    let new = |targets: &[WrapTarget], transactions, draws: &[[u8; 64]]| {
        ParcelSealer::new(&CTX, targets, transactions, &k(9), draws, &mut Vec::new()).map(drop)
    };
    let twice = vec![both[0].clone(), both[0].clone()];
    let falling = vec![both[1].clone(), both[0].clone()];
    let mixed = vec![both[0].clone(), targets(Suite::XWing, &[2])[0].clone()];
    let draws = [[1; 64]; 2];
    assert_eq!(new(&twice, 1, &draws), Err(EnvelopeError::Order.into()));
    assert_eq!(new(&falling, 1, &draws), Err(EnvelopeError::Order.into()));
    assert_eq!(new(&both, 1, &draws[1..]), Err(EnvelopeError::Randomness { needed: 2, given: 1 }.into()));
    assert!(matches!(new(&mixed, 1, &draws), Err(ParcelSealError::Envelope(EnvelopeError::MixedSuites { .. }))));
    assert!(matches!(new(&[], 1, &[]), Err(ParcelSealError::Envelope(EnvelopeError::Range(_)))));
    for transactions in [0, limits::TRANSACTIONS_PER_PARCEL as u32 + 1] {
        assert!(matches!(new(&both, transactions, &draws), Err(ParcelSealError::Envelope(EnvelopeError::Range(_)))));
    }

    let mut out = Vec::new();
    let mut sealer = sealer(&both, 2, &mut out);
    let good = |number| header(number, Some(plain(b"four")), &both);
    assert_eq!(sealer.begin(header(0, None, &both), &mut out), Err(ParcelSealError::NotAlone));
    assert_eq!(
        sealer.begin(header(0, Some(plain(b"")), &both[..1]), &mut out),
        Err(ParcelSealError::Destinations { index: 0 })
    );
    assert!(matches!(sealer.push(b"", &mut out), Err(ParcelSealError::Order { call: "push", .. })));
    sealer.seal(good(0), b"four", &mut out).expect("seals");
    assert_eq!(sealer.begin(good(0), &mut out), Err(ParcelSealError::Repeated { index: 1, id: id(0) }));
    sealer.begin(good(1), &mut out).expect("begins");
    assert!(matches!(sealer.begin(good(2), &mut out), Err(ParcelSealError::Order { call: "begin", .. })));
    sealer.push(b"four", &mut out).expect("fits");
    let error = sealer.push(b"5", &mut out).expect_err("too long");
    assert_eq!(error.to_string(), "transaction 1: the payload has 5 bytes, its header says 4");
    assert!(matches!(sealer.finish(), Err(ParcelSealError::Order { call: "finish", sealed: 1, announced: 2 })));
}

#[test]
fn a_small_order_enc_is_refused_before_the_secret_is_used() {
    for suite in SUITES {
        let targets = targets(suite, &[1]);
        let (parcel, _) = sealed(&targets, &[bytes(4, 1)]);
        let end = envelope_bytes(suite, 1) - 48;
        let mut altered = parcel.clone();
        altered[end - 32..end].fill(0);
        let refused = open(&context(&targets), tag(1), secret(suite, 1), &altered, usize::MAX);
        assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)));
        let error = sealcast::core::seal::suite::unwrap(&secret(suite, 1), b"", b"", &altered[41..end], &[0; 48]);
        assert!(matches!(error, Err(SuiteError::SmallOrder { .. })));
    }
}

#[test]
fn an_opener_that_failed_gives_the_same_error_for_ever() {
    let targets = targets(Suite::X25519, &[1]);
    let (mut parcel, _) = sealed(&targets, &[bytes(40, 1)]);
    *parcel.last_mut().unwrap() ^= 1;
    let mut opener = ParcelOpener::new(context(&targets), tag(1), secret(Suite::X25519, 1));
    let error = opener.push(&parcel, &mut |_| {}).expect_err("altered");
    assert_eq!(opener.push(&parcel, &mut |_| panic!("nothing more")), Err(error.clone()));
    assert_eq!(opener.finish(&mut |_| panic!("nothing more")), Err(error));
}

#[test]
fn secrets_do_not_show() {
    let targets = targets(Suite::X25519, &[0xab]);
    let mut out = Vec::new();
    let mut sealer = sealer(&targets, 1, &mut out);
    let shown = format!("{sealer:?}");
    let all = sealer.seal(header(0, Some(plain(b"x")), &targets), b"x", &mut out).expect("seals");
    let opener = ParcelOpener::new(context(&targets), tag(0xab), secret(Suite::X25519, 0xab));
    let key = data_encoding::HEXLOWER.encode(all.key.bytes());
    let listed = format!("{:?}", all.key.bytes());
    for shown in [shown, format!("{all:?}"), format!("{opener:?}"), format!("{:?}", BodyOpener::new(&all.key))] {
        assert!(!shown.contains(&key) && !shown.contains(&listed), "{shown}");
        assert!(!shown.contains("171, 171, 171, 171"), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_sealed_opens_in_whatever_pieces(
        sizes in prop::collection::vec(prop_oneof![0usize..300, 65_000usize..66_000, 0usize..200_000], 1..6),
        numbers in prop::collection::btree_set(any::<u8>(), 1..4),
        suite in prop::sample::select(SUITES.to_vec()),
        padding in any::<bool>(),
        step in 1usize..150_000,
        cut in any::<prop::sample::Index>(),
    ) {
        let numbers: Vec<u8> = numbers.into_iter().collect();
        let targets = targets(suite, &numbers);
        let payloads: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, &size)| bytes(size, at as u8)).collect();
        let mut out = Vec::new();
        let mut parcel = Vec::new();
        let mut sealer = sealer(&targets, payloads.len() as u32, &mut out);
        let mut all = Vec::new();
        for (number, payload) in payloads.iter().enumerate() {
            let mut header = header(number as u32, Some(plain(payload)), &targets);
            header.padding = if padding { Padding::Padme } else { Padding::None };
            sealer.begin(header, &mut out).unwrap();
            for part in payload.chunks(step) {
                sealer.push(part, &mut out).unwrap();
                parcel.append(&mut out);
            }
            all.push(sealer.end(None, &mut out).unwrap());
        }
        parcel.append(&mut out);
        sealer.finish().unwrap();
        for &number in &numbers {
            let step = step.max(parcel.len() / 2_000);
            let opened = open(&context(&targets), tag(number), secret(suite, number), &parcel, step).unwrap();
            check(&opened, &payloads, &all);
        }
        let cut = cut.index(parcel.len());
        prop_assert!(open(&context(&targets), tag(numbers[0]), secret(suite, numbers[0]), &parcel[..cut], step).is_err());
        let mut altered = parcel;
        altered[cut] ^= 0x10;
        prop_assert!(open(&context(&targets), tag(numbers[0]), secret(suite, numbers[0]), &altered, 99_999).is_err());
    }
}

//! Nothing else ever comes out: what was changed, cut, moved or made against the rules is refused.

use sealcast::core::id::{PayloadTag, RefusalReason, Suite};
use sealcast::core::limits;
use sealcast::core::seal::compress::Compressor;
use sealcast::core::seal::transaction::{Compression, Payload};
use sealcast::core::seal::{
    BodyError, BodyOpener, EnvelopeError, EnvelopeOpenError, Event, OpenError, ParcelOpener, ParcelSealError,
    ParcelSealer, WrapTarget, envelope_bytes,
};

use crate::seal::parcels::*;

#[test]
fn n38_a_compression_bomb_gives_no_more_than_its_header_says() {
    let targets = targets(Suite::X25519, &[1]);
    let carried = Compressor::whole(&vec![0; 64 << 20]).expect("compresses");
    assert!(carried.len() < 10_000);
    let mut out = Vec::new();
    let mut sealer = sealer(&targets, 1, &mut out);
    let told = Payload { bytes: 100_000, carried: carried.len() as u64, tag: PayloadTag([1; 32]) };
    let mut header = header(0, Some(told), &targets);
    header.compression = Compression::Zstd;
    sealer.seal(header, &carried, &mut out).expect("the sealer cannot know");
    let mut opener = ParcelOpener::new(context(&targets), tag(1), secret(Suite::X25519, 1));
    let (mut given, mut largest) = (0, 0);
    let mut sink = |event: Event<'_>| {
        if let Event::Payload { bytes, .. } = event {
            given += bytes.len();
            largest = largest.max(bytes.len());
        }
    };
    let error = opener.push(&out, &mut sink).expect_err("a bomb");
    assert_eq!(error.refusal(), Some(RefusalReason::Compression), "{error}");
    assert!(given <= 100_000 && largest <= 64 * 1024, "{given} bytes came out, {largest} at once");
}

#[test]
fn n38_a_header_that_lies_about_a_compressed_length_is_refused() {
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
fn n38_a_compressed_payload_that_asks_for_more_memory_than_may_be_is_refused() {
    let targets = targets(Suite::X25519, &[1]);
    let payload = bytes(100, 1);
    let opened = |window_log: u8| {
        // A zstd frame: its magic, no size and no checksum, the window, one last block of plain bytes.
        let block = (payload.len() as u32) << 3 | 1;
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
        let carried = [&frame[..], &block.to_le_bytes()[..3], &payload].concat();
        let mut out = Vec::new();
        let mut sealer = sealer(&targets, 1, &mut out);
        let told = Payload { bytes: 100, carried: carried.len() as u64, tag: PayloadTag([1; 32]) };
        let mut header = header(0, Some(told), &targets);
        header.compression = Compression::Zstd;
        sealer.seal(header, &carried, &mut out).expect("the sealer cannot know");
        open(&context(&targets), tag(1), secret(Suite::X25519, 1), &out, 1000)
    };
    let most = limits::ZSTD_WINDOW_LOG as u8;
    assert!(opened(most).is_ok());
    for window_log in [most + 1, 27, 31] {
        let Err(error) = opened(window_log) else { panic!("a window of 2^{window_log} bytes") };
        assert_eq!(error.refusal(), Some(RefusalReason::Compression), "{error}");
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

/// A parcel for two with its wraps changed: its envelope's head, the two wraps, the rest go in, the parcel comes out. Neither
/// opens it, both refuse it.
fn refused_by_both(change: impl Fn([&[u8]; 4]) -> Vec<u8>) {
    for suite in SUITES {
        let targets = targets(suite, &[1, 2]);
        let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
        let one = (envelope_bytes(suite, 2) - envelope_bytes(suite, 1)) as usize;
        let (head, rest) = parcel.split_at(envelope_bytes(suite, 1) - one);
        let (first, rest) = rest.split_at(one);
        let (second, body) = rest.split_at(one);
        let altered = change([head, first, second, body]);
        for number in [1, 2] {
            let opened = open(&context(&targets), tag(number), secret(suite, number), &altered, usize::MAX);
            let error = opened.expect_err("altered");
            assert!(error.refusal().is_some(), "{suite}, {number}: {error}");
        }
    }
}

#[test]
fn n10_wraps_swapped_between_destinations() {
    refused_by_both(|[head, first, second, body]| [head, second, first, body].concat());
}

#[test]
fn n10_a_wrap_is_for_one_destination_though_another_has_the_same_key() {
    for suite in SUITES {
        let mut targets = targets(suite, &[1, 2]);
        targets[1].public = targets[0].public.clone();
        let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
        let wrap = envelope_bytes(suite, 2) - envelope_bytes(suite, 1);
        let at = envelope_bytes(suite, 1) - wrap;
        let mut swapped = parcel.clone();
        swapped[at..at + 2 * wrap].rotate_left(wrap);
        for number in [1, 2] {
            let open = |parcel| open(&context(&targets), tag(number), secret(suite, 1), parcel, usize::MAX);
            assert!(open(&parcel).is_ok());
            assert_eq!(open(&swapped), Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)), "{suite}");
        }
    }
}

#[test]
fn n11_a_wrap_dropped_or_doubled() {
    refused_by_both(|[head, first, _, body]| [head, first, body].concat());
    refused_by_both(|[head, first, second, body]| [head, first, first, second, body].concat());
    refused_by_both(|[head, first, _, body]| [head, first, first, body].concat());
}

#[test]
fn n12_a_wrapped_key_one_byte_short_or_long() {
    refused_by_both(|[head, first, second, body]| [head, first, &second[1..], body].concat());
    refused_by_both(|[head, first, second, body]| [head, &first[..first.len() - 1], second, body].concat());
    refused_by_both(|[head, first, second, body]| [head, first, second, &[0], body].concat());
    refused_by_both(|[head, first, second, body]| [head, first, &[0], second, body].concat());
}

#[test]
fn r21_another_key_at_hand_is_local_trouble_and_no_verdict() {
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

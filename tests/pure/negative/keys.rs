//! 13, 17 to 19: HPKE keys, public and encapsulated.

use sealcast::core::directory::{DestinationKey, KemKeyError, check_kem_key};
use sealcast::core::gather::{Caps, DeferReason};
use sealcast::core::id::{KeyId, RefusalReason, Suite};
use sealcast::core::seal::suite::{HpkePublic, SuiteError, unwrap};
use sealcast::core::seal::{EnvelopeOpenError, OpenError, envelope_bytes};
use sealcast::core::split::stripe::Stripe;

use crate::gathering::{Node, key_of, tiny};
use crate::seal::parcels;
use crate::segments::{core, split, web};

#[test]
fn n13_an_unknown_key_id_is_put_aside_and_no_verdict() {
    let mut core = core(&web(), 1, tiny());
    core.destinations[0].key = KeyId([0xee; 16]);
    let stripes: Vec<Stripe> = split(core.clone(), &web(), &[7; 40]);
    let mut node = Node::new(Caps::default());
    stripes.iter().for_each(|stripe| node.send_stripe(stripe));
    assert_eq!(node.reassembler.deferred_by_reason(), [(DeferReason::KeyMissing, 5)].into());
    assert!(node.refused.is_empty() && !node.staged.contains_key(&key_of(&core)));
    assert_eq!(node.cursors[0].mark().offset, 5, "no cursor waits for it");
    // Whoever opens with another key than the core names says so, and never tries it.
    let targets = parcels::targets(Suite::XWing, &[1]);
    let (parcel, _) = parcels::sealed(&targets, &[parcels::bytes(40, 1)]);
    let other = parcels::secret(Suite::XWing, 7);
    let error = parcels::open(&parcels::context(&targets), parcels::tag(1), other, &parcel, usize::MAX).unwrap_err();
    assert!(matches!(error, OpenError::Envelope(EnvelopeOpenError::OtherKey { .. })), "{error}");
    assert_eq!(error.refusal(), None);
}

/// The seven encodings of small order, as numbers mod 2^255: 0, 1, two of order 8, p - 1, p, p + 1.
fn small_order() -> Vec<[u8; 32]> {
    let mut points = vec![[0; 32], [0; 32]];
    points[1][0] = 1;
    for digits in [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ] {
        points.push(data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap().try_into().unwrap());
    }
    for first in [0xec, 0xed, 0xee] {
        let mut point = [0xff; 32];
        (point[0], point[31]) = (first, 0x7f);
        points.push(point);
    }
    points
}

#[test]
fn n17_small_order_x25519_in_both_suites() {
    let points = small_order();
    assert_eq!(points.len(), 7);
    for point in points.iter().flat_map(|point| [0, 0x80].map(|top| (*point, top))).map(|(mut point, top)| {
        point[31] |= top;
        point
    }) {
        let shared = x25519_dalek::StaticSecret::from([5; 32]).diffie_hellman(&point.into());
        assert!(!shared.was_contributory(), "whatever the secret, the outcome is the same");
        for suite in parcels::SUITES {
            let secret = parcels::secret(suite, 1);
            let mut public = secret.public().bytes().to_vec();
            let at = public.len() - 32;
            public[at..].copy_from_slice(&point);
            // Where a directory lists it, where a sender would use it, where a sender sends it.
            assert_eq!(check_kem_key(suite, &public), Err(KemKeyError::SmallOrder));
            assert!(DestinationKey::current(suite, public.clone().into()).is_err());
            let refused = HpkePublic::from_bytes(suite, &public);
            assert_eq!(refused, Err(SuiteError::SmallOrder { what: "the public key" }));
            let targets = parcels::targets(suite, &[1]);
            let (mut parcel, _) = parcels::sealed(&targets, &[parcels::bytes(4, 1)]);
            let end = envelope_bytes(suite, 1) - 48;
            parcel[end - 32..end].copy_from_slice(&point);
            let refused = unwrap(&secret, b"", b"", &parcel[41..end], &[0; 48]);
            assert_eq!(refused, Err(SuiteError::SmallOrder { what: "the encapsulated key" }));
            let context = parcels::context(&targets);
            let refused = parcels::open(&context, parcels::tag(1), secret, &parcel, usize::MAX).unwrap_err();
            assert_eq!(refused.refusal(), Some(RefusalReason::Unopenable));
        }
    }
}

#[test]
fn n18_an_ml_kem_key_that_is_not_canonical() {
    let honest = parcels::secret(Suite::XWing, 3).public().bytes().to_vec();
    assert_eq!(check_kem_key(Suite::XWing, &honest), Ok(()));
    // Two 12-bit coefficients lie in three bytes (FIPS 203, ByteEncode12); 3329 is 0xd01. In the first, a middle and the last.
    for at in [0, 576, 1149] {
        for value in [3329u16, 3330, 4095] {
            let [high, low] = value.to_be_bytes();
            let mut first = honest.clone();
            (first[at], first[at + 1]) = (low, first[at + 1] & 0xf0 | high);
            let mut second = honest.clone();
            (second[at + 1], second[at + 2]) = (second[at + 1] & 0x0f | low << 4, (value >> 4) as u8);
            for public in [first, second] {
                assert_eq!(check_kem_key(Suite::XWing, &public), Err(KemKeyError::NotCanonical), "{value} at {at}");
                assert!(DestinationKey::current(Suite::XWing, public.clone().into()).is_err());
                assert_eq!(HpkePublic::from_bytes(Suite::XWing, &public), Err(SuiteError::NotCanonical));
            }
        }
        // The largest that is one.
        let mut right = honest.clone();
        (right[at], right[at + 1]) = (0x00, right[at + 1] & 0xf0 | 0x0d);
        assert_eq!(check_kem_key(Suite::XWing, &right), Ok(()));
        assert!(HpkePublic::from_bytes(Suite::XWing, &right).is_ok());
    }
    // Behind the coefficients any bytes are a seed.
    let mut seed = honest;
    seed[1152..1184].fill(0xff);
    assert_eq!(check_kem_key(Suite::XWing, &seed), Ok(()));
    assert!(HpkePublic::from_bytes(Suite::XWing, &seed).is_ok());
}

#[test]
fn n19_ml_kem_gives_another_secret_and_the_wrap_does_not_open() {
    // ML-KEM never fails: an altered ciphertext gives a secret of its own (implicit rejection). All of it looks the same.
    let targets = parcels::targets(Suite::XWing, &[1]);
    let (parcel, _) = parcels::sealed(&targets, &[parcels::bytes(40, 1)]);
    let context = parcels::context(&targets);
    for at in (41..41 + 1088).step_by(97).chain([41 + 1087]) {
        let mut altered = parcel.clone();
        altered[at] ^= 1 << (at % 8);
        let secret = parcels::secret(Suite::XWing, 1);
        let refused = parcels::open(&context, parcels::tag(1), secret, &altered, usize::MAX);
        assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)), "byte {at}");
    }
}

//! 29 to 31: Ed25519 keys and signatures with points that are small, mixed, or written a second way.

use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, SigningKey, Verifier};
use sealcast::core::directory::SenderEntry;
use sealcast::core::gather::Skip;
use sealcast::core::id::VerifyingKeyBytes;
use sealcast::core::sign::{PublicKey, SecretKey, SignError};
use sealcast::core::split::header::{self, Profile};
use sealcast::core::split::segment::encode;
use sealcast::core::wire::label;
use sha2::{Digest, Sha512};

use crate::segments::*;

const SEED: [u8; 32] = [30; 32];

/// A signature whose R is this one and whose S makes the equation hold if R stands for the neutral point.
fn signed_with(r: [u8; 32], message: &[u8]) -> [u8; 64] {
    let key = SigningKey::from_bytes(&SEED);
    let hash =
        Sha512::new().chain_update(r).chain_update(key.verifying_key().as_bytes()).chain_update(message).finalize();
    let challenge = Scalar::from_bytes_mod_order_wide(&hash.into());
    let s = challenge * key.to_scalar();
    [r, s.to_bytes()].concat().try_into().unwrap()
}

/// The gate does not let a stripe in whose header bears this signature.
fn stopped_at_the_gate(header: &[u8], signature: [u8; 64]) {
    let gate = sealcast::core::gather::Gate::new(std::sync::Arc::new(directory()), orders());
    let record = encode(header, &signature, 0, &[], b"x");
    assert_eq!(gate.check(&record.into(), NOW), Err(Skip::Signature));
}

/// A header over one shard without parity: its proof is empty.
fn header_of_one() -> Vec<u8> {
    let stripes = split(core(&web(), 1, Profile::new(1, 0, 16).unwrap()), &web(), b"x");
    stripes[0].header_bytes.to_vec()
}

#[test]
fn n29_small_order_a_and_r() {
    for point in EIGHT_TORSION {
        let bytes = VerifyingKeyBytes(point.compress().to_bytes());
        assert_eq!(PublicKey::check(&bytes), Err(SignError::Weak));
    }
    let header = header_of_one();
    let public = SecretKey::from_seed(&SEED).public();
    assert_eq!(public, web().public());
    let message = [label::STRIPE, &header].concat();
    for point in EIGHT_TORSION {
        let signature = signed_with(point.compress().to_bytes(), &message);
        // A verifier that is not strict takes it where R is the neutral point: the sender would have two signatures to show.
        let lax = SigningKey::from_bytes(&SEED).verifying_key().verify(&message, &Signature::from_bytes(&signature));
        assert_eq!(lax.is_ok(), point == EIGHT_TORSION[0]);
        assert_eq!(header::verify(&header, &signature, &public), Err(SignError::Signature));
        stopped_at_the_gate(&header, signature);
    }
}

#[test]
fn n30_non_canonical_a_and_r() {
    let neutral_as_p_plus_1 = {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xee, 0x7f);
        bytes
    };
    let zero_as_p = {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xed, 0x7f);
        bytes
    };
    // x = 0 has no sign.
    let negative_zero = {
        let mut bytes = [0; 32];
        (bytes[0], bytes[31]) = (1, 0x80);
        bytes
    };
    let header = header_of_one();
    let message = [label::STRIPE, &header].concat();
    for bytes in [neutral_as_p_plus_1, zero_as_p, negative_zero] {
        assert_eq!(PublicKey::check(&VerifyingKeyBytes(bytes)), Err(SignError::NotCanonical));
        let signature = signed_with(bytes, &message);
        assert_eq!(header::verify(&header, &signature, &web().public()), Err(SignError::Signature));
        stopped_at_the_gate(&header, signature);
    }
}

#[test]
fn n31_mixed_order_a() {
    let honest = SigningKey::from_bytes(&SEED).verifying_key().to_edwards();
    for torsion in &EIGHT_TORSION[1..] {
        let bytes = VerifyingKeyBytes((honest + torsion).compress().to_bytes());
        assert_eq!(PublicKey::check(&bytes), Err(SignError::Weak));
    }
    // No directory lists one: an entry holds a key that was checked, and a file is checked when it is read.
    let entry: fn(&SenderEntry) -> &PublicKey = |entry| &entry.signing;
    let file = draft().sign(&secret(1)).unwrap();
    let text = std::str::from_utf8(&file).unwrap().split_once('\n').unwrap().1;
    let name = "web".parse().unwrap();
    let known = entry(&directory().senders[&name]).bytes().to_string();
    let mixed = VerifyingKeyBytes((honest + EIGHT_TORSION[1]).compress().to_bytes()).to_string();
    let text = text.replace(&known, &mixed);
    let signature = data_encoding::HEXLOWER.encode(&secret(1).sign(label::DIRECTORY, text.as_bytes()));
    let file = format!("sealcast-directory v1 ed25519 {signature}\n{text}");
    let error = sealcast::core::directory::Directory::verify(file.as_bytes(), &secret(1).public(), 0).unwrap_err();
    assert!(error.to_string().contains("sender web: signing"), "{error}");
}

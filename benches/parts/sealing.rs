//! Sealing's parts: the AEAD stream, and HPKE in both suites. Baseline is aws-lc-rs, the library that TLS runs on here.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, X25519, agree, agree_ephemeral};
use aws_lc_rs::hmac;
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, ML_KEM_768};
use aws_lc_rs::rand::SystemRandom;
use sealcast::core::id::Suite;
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::stream::{CHUNK_BYTES, StreamError, StreamOpener, StreamSealer, TAG_BYTES, sealed_bytes};
use sealcast::core::seal::suite::{HpkeSecret, unwrap, wrap};

use crate::measure::{Arm, Part, Target, Unit};
use crate::segments::{sealed as some_bytes, web};

const KEY: [u8; 32] = [7; 32];

pub fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for payload in [1 << 10, 64 << 10, 1 << 20] {
        parts.push(Part::new("stream-seal", "one core", payload, Unit::Megabytes, move || stream_seal(payload)));
        parts.push(Part::new("stream-open", "one core", payload, Unit::Megabytes, move || stream_open(payload)));
        parts.push(Part::new("payload-tag", "BLAKE3, keyed", payload, Unit::Megabytes, move || payload_tag(payload)));
    }
    for (suite, condition) in [(Suite::X25519, "X25519"), (Suite::XWing, "X-Wing")] {
        parts.push(Part::new("hpke-seal", condition, 0, Unit::Micros, move || hpke_seal(suite)));
        parts.push(Part::new("hpke-open", condition, 0, Unit::Micros, move || hpke_open(suite)));
    }
    parts
}

/// The AEAD alone, over the same chunks: from plaintext in one place to ciphertext in another, and back.
pub struct RawAead(LessSafeKey);

impl RawAead {
    pub fn new() -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).unwrap()))
    }

    fn nonce(chunk: usize) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(chunk as u64).to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// `sealed` has room for a tag behind each chunk.
    pub fn seal(&self, plaintext: &[u8], sealed: &mut [u8]) {
        let places = sealed.chunks_mut(CHUNK_BYTES + TAG_BYTES);
        for (at, (chunk, place)) in plaintext.chunks(CHUNK_BYTES).zip(places).enumerate() {
            let (ciphertext, tag) = place.split_at_mut(chunk.len());
            self.0.seal_out_of_place_scatter(Self::nonce(at), Aad::empty(), chunk, ciphertext, &[], tag).unwrap();
        }
    }

    pub fn open(&self, sealed: &[u8], plaintext: &mut [u8]) {
        let places = plaintext.chunks_mut(CHUNK_BYTES);
        for (at, (chunk, place)) in sealed.chunks(CHUNK_BYTES + TAG_BYTES).zip(places).enumerate() {
            let (ciphertext, tag) = chunk.split_at(chunk.len() - TAG_BYTES);
            self.0.open_separate_gather(Self::nonce(at), Aad::empty(), ciphertext, tag, place).unwrap();
        }
    }

    /// Sealing this many bytes, as a baseline.
    pub fn sealing(payload: usize) -> Arm {
        let (aead, plaintext) = (Self::new(), some_bytes(payload, 1));
        let mut sealed = vec![0; sealed_bytes(payload as u64) as usize];
        Arm::fast("aws-lc-rs AEAD", move || aead.seal(&plaintext, &mut sealed))
    }

    /// Opening this many bytes, as a baseline.
    pub fn opening(payload: usize) -> Arm {
        let (aead, mut plaintext) = (Self::new(), some_bytes(payload, 1));
        let mut sealed = vec![0; sealed_bytes(payload as u64) as usize];
        aead.seal(&plaintext, &mut sealed);
        Arm::fast("aws-lc-rs AEAD", move || aead.open(&sealed, &mut plaintext))
    }
}

/// Copying this many bytes, as a baseline.
pub fn memcpy(payload: usize) -> Arm {
    let (from, mut to) = (some_bytes(payload, 1), vec![0; payload]);
    Arm::fast("memcpy", move || std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from)))
}

fn stream_seal(payload: usize) -> Vec<Arm> {
    let plaintext = some_bytes(payload, 1);
    let mut out = Vec::with_capacity(sealed_bytes(payload as u64) as usize);
    let own = move || {
        out.clear();
        let mut sealer = StreamSealer::of_length(&KEY, payload as u64);
        sealer.push(&plaintext, &mut out);
        sealer.finish(&mut out);
    };
    let baseline = RawAead::sealing(payload);
    // A stream of one short chunk is mostly keys and the first block: no target is set for it.
    let baseline = if payload < CHUNK_BYTES { baseline } else { baseline.target(Target::AtLeast(0.95)) };
    vec![Arm::fast("sealcast", own), baseline, memcpy(payload)]
}

fn stream_open(payload: usize) -> Vec<Arm> {
    let mut sealed = Vec::new();
    let mut sealer = StreamSealer::new(&KEY);
    sealer.push(&some_bytes(payload, 1), &mut sealed);
    sealer.finish(&mut sealed);
    let mut out = Vec::with_capacity(payload);
    let own = move || {
        out.clear();
        let mut opener = StreamOpener::new(&KEY, Some(payload as u64));
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok::<(), StreamError>(())
        };
        opener.push(&sealed, &mut sink).unwrap();
        opener.finish(&mut sink).unwrap();
    };
    let baseline = RawAead::opening(payload);
    let baseline = if payload < CHUNK_BYTES { baseline } else { baseline.target(Target::AtLeast(0.95)) };
    vec![Arm::fast("sealcast", own), baseline, memcpy(payload)]
}

fn payload_tag(payload: usize) -> Vec<Arm> {
    let (key, bytes) = (web(), some_bytes(payload, 1));
    let own = Arm::fast("sealcast", move || PayloadTagger::whole(&key, &bytes));
    let (key, bytes) = (hmac::Key::new(hmac::HMAC_SHA256, &KEY), some_bytes(payload, 1));
    let another = Arm::fast("HMAC-SHA256 of aws-lc-rs", move || hmac::sign(&key, &bytes));
    vec![own, another, memcpy(payload)]
}

/// What the encapsulation alone costs: key agreement, and ML-KEM-768 beside it in X-Wing; no key schedule, no AEAD.
const KEM: &str = "aws-lc-rs KEM";
const INFO: &[u8] = &[1; 100];
const AAD: &[u8] = &[2; 32];

fn hpke_seal(suite: Suite) -> Vec<Arm> {
    let public = HpkeSecret::generate(suite, &[3; 32]).unwrap().public().clone();
    let own = Arm::fast("sealcast", move || wrap(&public, INFO, AAD, &[4; 32], &[5; 64]).unwrap());
    let peer = PrivateKey::generate(&X25519).unwrap().compute_public_key().unwrap();
    let kem = DecapsulationKey::generate(&ML_KEM_768).unwrap().encapsulation_key().unwrap();
    let random = SystemRandom::new();
    let baseline = Arm::fast(KEM, move || {
        let ephemeral = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
        let public = ephemeral.compute_public_key().unwrap();
        let peer = UnparsedPublicKey::new(&X25519, &peer);
        let agreed = agree_ephemeral(ephemeral, peer, (), |secret| Ok(shared(secret))).unwrap();
        let encapsulated = (suite == Suite::XWing).then(|| kem.encapsulate().unwrap());
        (public, agreed, encapsulated)
    });
    vec![own, baseline]
}

fn hpke_open(suite: Suite) -> Vec<Arm> {
    let secret = HpkeSecret::generate(suite, &[3; 32]).unwrap();
    let (enc, ciphertext) = wrap(secret.public(), INFO, AAD, &[4; 32], &[5; 64]).unwrap();
    let own = Arm::fast("sealcast", move || unwrap(&secret, INFO, AAD, &enc, &ciphertext).unwrap());
    let private = PrivateKey::generate(&X25519).unwrap();
    let peer: agreement::PublicKey = PrivateKey::generate(&X25519).unwrap().compute_public_key().unwrap();
    let kem = DecapsulationKey::generate(&ML_KEM_768).unwrap();
    let (encapsulated, _) = kem.encapsulation_key().unwrap().encapsulate().unwrap();
    let baseline = Arm::fast(KEM, move || {
        let peer = UnparsedPublicKey::new(&X25519, &peer);
        let agreed = agree(&private, peer, (), |secret| Ok(shared(secret))).unwrap();
        let decapsulated =
            (suite == Suite::XWing).then(|| kem.decapsulate(Ciphertext::from(encapsulated.as_ref())).unwrap());
        (agreed, decapsulated)
    });
    vec![own, baseline]
}

fn shared(secret: &[u8]) -> [u8; 32] {
    secret.try_into().unwrap()
}

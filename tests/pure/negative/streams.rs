//! 1 to 7: what a sender that breaks the rules makes of a transaction's STREAM and of the commitment, in parcels that are right
//! otherwise.

use chacha20poly1305::aead::Aead;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use hkdf::Hkdf;
use sealcast::core::id::{RefusalReason, Suite};
use sealcast::core::seal::stream::{CHUNK_BYTES, StreamError, TAG_BYTES};
use sealcast::core::seal::transaction::{Compression, Padding};
use sealcast::core::seal::{BodyError, EnvelopeOpenError, LENGTH_BYTES, OpenError, SealedTransaction, envelope_bytes};
use sealcast::core::wire::{WireError, label};
use sha2::Sha256;

use crate::seal::parcels::*;

/// A chunk as its sealer says: its place, whether it is the final one, its plaintext.
#[derive(Clone)]
struct Chunk {
    place: u64,
    last: bool,
    plaintext: Vec<u8>,
}

fn nonce(place: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&place.to_be_bytes());
    nonce[11] = last.into();
    nonce.into()
}

fn derived(transaction: &[u8; 32], purpose: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::from_prk(transaction).unwrap().expand(purpose, &mut key).unwrap();
    key
}

/// The STREAM's key of a transaction.
pub fn stream_key(transaction: &[u8; 32]) -> [u8; 32] {
    derived(transaction, label::STREAM)
}

/// A transaction's length, as it is sealed.
fn sealed_length(transaction: &[u8; 32], length: u64) -> Vec<u8> {
    let aead = ChaCha20Poly1305::new(&derived(transaction, label::LENGTH).into());
    aead.encrypt(&Nonce::default(), &length.to_be_bytes()[..]).unwrap()
}

/// A parcel of one transaction, its STREAM sealed again after a change of its chunks. `told`: its length is told in front.
fn lie(payload: usize, told: bool, change: impl FnOnce(&mut Vec<Chunk>)) -> Vec<u8> {
    let targets = targets(Suite::X25519, &[1]);
    let payload = bytes(payload, 3);
    let (parcel, sealed) = match told {
        true => {
            let (parcel, mut all) = sealed(&targets, &[payload]);
            (parcel, all.remove(0))
        }
        false => sealed_open_ended(&targets, &payload, Compression::None),
    };
    resealed(&parcel, &sealed, change)
}

/// What is in a transaction's STREAM.
fn chunks(stream: &[u8], sealed: &SealedTransaction) -> Vec<Chunk> {
    let aead = ChaCha20Poly1305::new(&stream_key(sealed.key.bytes()).into());
    let count = stream.chunks(CHUNK_BYTES + TAG_BYTES).len() as u64;
    (0..)
        .zip(stream.chunks(CHUNK_BYTES + TAG_BYTES))
        .map(|(place, chunk)| {
            let last = place + 1 == count;
            Chunk { place, last, plaintext: aead.decrypt(&nonce(place, last), chunk).unwrap() }
        })
        .collect()
}

/// These chunks as this transaction's STREAM.
fn stream(chunks: Vec<Chunk>, sealed: &SealedTransaction) -> Vec<u8> {
    let aead = ChaCha20Poly1305::new(&stream_key(sealed.key.bytes()).into());
    let seal = |chunk: Chunk| aead.encrypt(&nonce(chunk.place, chunk.last), &chunk.plaintext[..]).unwrap();
    chunks.into_iter().flat_map(seal).collect()
}

/// The STREAM of a parcel's last transaction, sealed again after a change of its chunks.
fn resealed(parcel: &[u8], last: &SealedTransaction, change: impl FnOnce(&mut Vec<Chunk>)) -> Vec<u8> {
    let (head, rest) = parcel.split_at(parcel.len() - last.ciphertext_bytes as usize + LENGTH_BYTES);
    let mut chunks = chunks(rest, last);
    change(&mut chunks);
    [head, &stream(chunks, last)].concat()
}

/// The payload's length with which the STREAM's plaintext is exactly two chunks.
fn exactly_two_chunks(told: bool) -> usize {
    let mut plaintext = 0;
    lie(1000, told, |chunks| plaintext = chunks[0].plaintext.len());
    2 * CHUNK_BYTES - (plaintext - 1000)
}

fn opened(parcel: &[u8]) -> Result<Opened, OpenError> {
    let targets = targets(Suite::X25519, &[1]);
    open(&context(&targets), tag(1), secret(Suite::X25519, 1), parcel, 50_000)
}

/// It is refused, at this chunk and with this reason.
fn refused_at(parcel: &[u8], cause: StreamError) {
    let error = opened(parcel).expect_err("a lie");
    assert_eq!(error, OpenError::Transaction { index: 0, cause: BodyError::Stream(cause) });
    assert_eq!(error.refusal(), Some(RefusalReason::Stream));
}

/// Two and a half chunks, whether their length is told in front or behind.
fn both(change: impl Fn(&mut Vec<Chunk>), told: StreamError, untold: StreamError) {
    let payload = 5 * CHUNK_BYTES / 2;
    assert!(opened(&lie(payload, true, |_| {})).is_ok() && opened(&lie(payload, false, |_| {})).is_ok());
    refused_at(&lie(payload, true, &change), told);
    refused_at(&lie(payload, false, &change), untold);
}

#[test]
fn n01_a_final_flag_that_is_cleared() {
    let end = StreamError::Chunk { chunk: 2 };
    both(|chunks| chunks[2].last = false, end, end);
}

#[test]
fn n02_a_final_flag_that_comes_early() {
    let early = StreamError::Chunk { chunk: 1 };
    both(|chunks| chunks[1].last = true, early, early);
    // The end that it announces is no end either.
    let ending = |chunks: &mut Vec<Chunk>| {
        chunks[1].last = true;
        chunks.truncate(2);
    };
    refused_at(&lie(5 * CHUNK_BYTES / 2, true, ending), early);
    let error = opened(&lie(5 * CHUNK_BYTES / 2, false, ending)).expect_err("no trailer stands there");
    assert_eq!(error.refusal(), Some(RefusalReason::Malformed), "{error}");
}

#[test]
fn n03_chunks_that_changed_places() {
    let first = StreamError::Chunk { chunk: 0 };
    both(|chunks| chunks.swap(0, 1), first, first);
}

#[test]
fn n04_the_last_chunk_dropped() {
    let whole = lie(5 * CHUNK_BYTES / 2, true, |_| {});
    let kept = envelope_bytes(Suite::X25519, 1) + LENGTH_BYTES + 2 * (CHUNK_BYTES + TAG_BYTES);
    let error = opened(&whole[..kept]).expect_err("cut");
    assert_eq!(error.refusal(), Some(RefusalReason::Stream), "{error}");
    refused_at(&lie(5 * CHUNK_BYTES / 2, false, |chunks| drop(chunks.pop())), StreamError::Chunk { chunk: 1 });
}

#[test]
fn n05_an_empty_extra_final_chunk() {
    let extra = |chunks: &mut Vec<Chunk>| {
        assert!(chunks.len() == 2 && chunks[1].plaintext.len() == CHUNK_BYTES);
        chunks[1].last = false;
        chunks.push(Chunk { place: 2, last: true, plaintext: Vec::new() });
    };
    refused_at(&lie(exactly_two_chunks(true), true, extra), StreamError::Chunk { chunk: 1 });
    refused_at(&lie(exactly_two_chunks(false), false, extra), StreamError::EmptyFinal { chunk: 2 });
}

#[test]
fn n06_bytes_behind_the_final_chunk() {
    for told in [true, false] {
        let good = lie(1000, told, |_| {});
        for more in [1, 15, 16, 17, CHUNK_BYTES] {
            let error = opened(&[&good[..], &vec![0; more]].concat()).expect_err("longer");
            let reason = if told { RefusalReason::Malformed } else { RefusalReason::Stream };
            assert_eq!(error.refusal(), Some(reason), "{more}: {error}");
        }
    }
    // A whole chunk more, sealed as the next one.
    let more = Chunk { place: 1, last: true, plaintext: vec![7] };
    let error = opened(&lie(1000, true, |chunks| chunks.push(more))).expect_err("longer");
    assert_eq!(error, OpenError::Trailing { announced: 1 });
}

#[test]
fn n07_a_commitment_with_one_bit_flipped() {
    for (suite, step) in [(Suite::X25519, 1), (Suite::XWing, 37)] {
        let targets = targets(suite, &[1]);
        let (parcel, _) = sealed(&targets, &[bytes(40, 1)]);
        for bit in (0..256).step_by(step) {
            let mut altered = parcel.clone();
            altered[9 + bit / 8] ^= 1 << (bit % 8);
            let refused = open(&context(&targets), tag(1), secret(suite, 1), &altered, usize::MAX);
            assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)), "{suite}: bit {bit}");
        }
    }
}

/// The field of a transaction for which a parcel is refused.
fn wrong_field(parcel: &[u8]) -> (u32, &'static str) {
    let error = opened(parcel).expect_err("a lie");
    assert_eq!(error.refusal(), Some(RefusalReason::Malformed), "{error}");
    match error {
        OpenError::Transaction { index, cause: BodyError::Content(WireError::Invalid { field, .. }) } => (index, field),
        other => panic!("{other:?}"),
    }
}

/// Writes another number of bytes wherever the plaintext from `from` on tells this one.
fn tell(plaintext: &mut [u8], from: usize, is: u64, told: u64) {
    for at in from..plaintext.len() - 7 {
        if plaintext[at..at + 8] == is.to_be_bytes() {
            plaintext[at..at + 8].copy_from_slice(&told.to_be_bytes());
        }
    }
}

#[test]
fn n38_lengths_and_padding_that_do_not_agree_are_refused() {
    // The header tells a byte fewer than the sealed length: what is over could be taken for padding.
    let shorter = lie(1000, true, |chunks| {
        *chunks[0].plaintext.last_mut().unwrap() = 0;
        tell(&mut chunks[0].plaintext, 0, 1000, 999);
    });
    assert_eq!(wrong_field(&shorter), (0, "transaction length"));
    // The trailer tells a byte more than came.
    let longer = lie(1000, false, |chunks| {
        let trailer = chunks[0].plaintext.len() - 48;
        tell(&mut chunks[0].plaintext, trailer, 1000, 1001);
    });
    assert_eq!(wrong_field(&longer), (0, "carried length"));
    // What hides a length hides nothing else.
    let (targets, payload, mut parcel) = (targets(Suite::X25519, &[1]), bytes(10_001, 3), Vec::new());
    let mut sealer = sealer(&targets, 1, &mut parcel);
    let mut header = header(0, Some(plain(&payload)), &targets);
    header.padding = Padding::Padme;
    let sealed = sealer.seal(header, &payload, &mut parcel).unwrap();
    assert!(opened(&resealed(&parcel, &sealed, |_| {})).is_ok());
    let used = resealed(&parcel, &sealed, |chunks| *chunks[0].plaintext.last_mut().unwrap() = 1);
    assert_eq!(wrong_field(&used), (0, "padding"));
}

/// Writes other bytes of the same length over these, where they stand last.
fn replace(plaintext: &mut [u8], is: &[u8], with: &[u8]) {
    let at = plaintext.windows(is.len()).rposition(|found| found == is).expect("they stand there");
    plaintext[at..at + is.len()].copy_from_slice(with);
}

#[test]
fn n09_one_id_for_two_transactions_of_a_parcel_is_refused() {
    let targets = targets(Suite::X25519, &[1]);
    let (parcel, all) = sealed(&targets, &[bytes(40, 1), bytes(50, 2)]);
    assert!(opened(&resealed(&parcel, &all[1], |_| {})).is_ok());
    let twice = resealed(&parcel, &all[1], |chunks| {
        replace(&mut chunks[0].plaintext, &id(1).to_bytes(), &id(0).to_bytes());
    });
    assert_eq!(wrong_field(&twice), (1, "transaction id"));
}

#[test]
fn n11_a_transaction_for_other_destinations_than_its_parcel_is_refused() {
    let elsewhere = lie(1000, true, |chunks| replace(&mut chunks[0].plaintext, &tag(1).0, &tag(2).0));
    assert_eq!(wrong_field(&elsewhere), (0, "destination tag"));
}

#[test]
fn n06_a_transaction_without_end_is_alone_in_its_parcel() {
    let targets = targets(Suite::X25519, &[1]);
    let (alone, transaction) = sealed_open_ended(&targets, &bytes(1000, 3), Compression::None);
    let mut content = chunks(&alone[envelope_bytes(Suite::X25519, 1) + LENGTH_BYTES..], &transaction);
    // The second of two, that ends where the parcel does.
    let (parcel, all) = sealed(&targets, &[bytes(40, 1), bytes(50, 2)]);
    let head = &parcel[..parcel.len() - all[1].ciphertext_bytes as usize];
    replace(&mut content[0].plaintext, &id(0).to_bytes(), &id(1).to_bytes());
    let length = sealed_length(all[1].key.bytes(), u64::MAX);
    let beside = [head, &length, &stream(content, &all[1])].concat();
    assert_eq!(wrong_field(&beside), (1, "transaction length"));
}

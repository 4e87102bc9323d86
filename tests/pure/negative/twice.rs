//! 8 and 9: one parcel with two content keys. The cipher alone would not mind: Poly1305 is no commitment to its key.

use chacha20poly1305::aead::Aead;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use hkdf::Hkdf;
use sealcast::core::id::{RefusalReason, Suite};
use sealcast::core::seal::{EnvelopeOpenError, OpenError, envelope_bytes, suite};
use sealcast::core::wire::label;
use sha2::Sha256;

use super::streams::stream_key;
use crate::seal::parcels::*;

/// A number below p = 2^130 - 5: its bits from 128 on, and those below.
type Number = (u128, u128);

const P: Number = (3, u128::MAX - 4);

fn reduced(mut number: Number) -> Number {
    while number >= P {
        let (low, borrow) = number.1.overflowing_sub(P.1);
        number = (number.0 - P.0 - u128::from(borrow), low);
    }
    number
}

fn add(a: Number, b: Number) -> Number {
    let (low, carry) = a.1.overflowing_add(b.1);
    reduced((a.0 + b.0 + u128::from(carry), low))
}

fn negative(a: Number) -> Number {
    let (low, borrow) = P.1.overflowing_sub(a.1);
    reduced((P.0 - a.0 - u128::from(borrow), low))
}

fn times(a: Number, b: Number) -> Number {
    let mut product = (0, 0);
    for bit in (0..130).rev() {
        product = add(product, product);
        let set = if bit < 128 { b.1 >> bit & 1 } else { b.0 >> (bit - 128) & 1 };
        if set == 1 {
            product = add(product, a);
        }
    }
    product
}

fn power(a: Number, exponent: Number) -> Number {
    let mut power = (0, 1);
    for bit in (0..130).rev() {
        power = times(power, power);
        let set = if bit < 128 { exponent.1 >> bit & 1 } else { exponent.0 >> (bit - 128) & 1 };
        if set == 1 {
            power = times(power, a);
        }
    }
    power
}

/// Poly1305's r and s under this key with a nonce of zeros and a final flag: the first half of ChaCha20's block 0 (RFC 8439).
fn one_time_key(key: &[u8; 32], nonce: &[u8; 12]) -> (Number, u128) {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut state = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    key.chunks(4).zip(&mut state[4..12]).for_each(|(bytes, into)| *into = word(bytes));
    nonce.chunks(4).zip(&mut state[13..16]).for_each(|(bytes, into)| *into = word(bytes));
    let start = state;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            state[x] = u32::wrapping_add(state[x], state[y]);
            state[z] = u32::rotate_left(state[z] ^ state[x], turn);
        }
    };
    for _ in 0..10 {
        (0..4).for_each(|at| quarter(at, at + 4, at + 8, at + 12));
        (0..4).for_each(|at| quarter(at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4));
    }
    let half: Vec<u8> =
        state.iter().zip(start).take(8).flat_map(|(word, first)| word.wrapping_add(first).to_le_bytes()).collect();
    let r = u128::from_le_bytes(half[..16].try_into().unwrap()) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    ((0, r), u128::from_le_bytes(half[16..].try_into().unwrap()))
}

/// Three blocks of ciphertext and their tag that authenticate under both keys.
fn opens_under_both(keys: [&[u8; 32]; 2], nonce: &[u8; 12]) -> Vec<u8> {
    let [(r1, s1), (r2, s2)] = keys.map(|key| one_time_key(key, nonce));
    let block = |bytes: u128| (1, bytes);
    let lengths = block(48u128 << 64);
    let rest = |r: Number, last: u128| {
        let high = times(block(7), power(r, (0, 4)));
        add(add(high, times(block(last), power(r, (0, 2)))), times(lengths, r))
    };
    let free = add(power(r1, (0, 3)), negative(power(r2, (0, 3))));
    let inverse = power(free, (P.0, P.1 - 2));
    for last in 0.. {
        let both = add(rest(r2, last), negative(rest(r1, last)));
        for carries in -3..=3i32 {
            // h1 + s1 and h2 + s2 agree in their lower 128 bits; their carries differ by -3 to 3.
            let carry = (carries.unsigned_abs().into(), 0);
            let carry = if carries < 0 { negative(carry) } else { carry };
            let apart = add(add((0, s2), negative((0, s1))), carry);
            let middle = times(add(both, apart), inverse);
            if middle.0 != 1 {
                continue;
            }
            let tag = |r: Number, s: u128| add(rest(r, last), times(middle, power(r, (0, 3)))).1.wrapping_add(s);
            if tag(r1, s1) == tag(r2, s2) {
                return [7, middle.1, last, tag(r1, s1)].iter().flat_map(|block| block.to_le_bytes()).collect();
            }
        }
    }
    unreachable!("there is one among few")
}

/// An envelope for two destinations that commits to the first key and wraps another for the second, so that its wrap opens.
fn two_keys(suite: Suite) -> Vec<u8> {
    let targets = targets(suite, &[1, 2]);
    let (mut parcel, _) = sealed(&targets, &[bytes(40, 1)]);
    let commitment = parcel[9..41].to_vec();
    let second = &targets[1];
    let info = [label::WRAP, &CTX, &second.tag.0, &second.public.id().0].concat();
    let (enc, wrapped) = suite::wrap(&second.public, &info, &commitment, &*k(8), &[2; 64]).unwrap();
    let place = envelope_bytes(suite, 1) as usize..envelope_bytes(suite, 2) as usize;
    parcel[place].copy_from_slice(&[enc, wrapped].concat());
    parcel
}

#[test]
fn n08_ciphertext_that_opens_under_two_keys_opens_for_no_second_one() {
    // What each destination would derive from its own K.
    let mut parcel = two_keys(Suite::X25519);
    let envelope = parcel[..envelope_bytes(Suite::X25519, 2)].to_vec();
    let hash = {
        use sha2::Digest;
        Sha256::new().chain_update(label::ENVELOPE).chain_update(&envelope).finalize()
    };
    let streams = [k(9), k(8)].map(|k| {
        let mut transaction = [0; 32];
        let info = [label::TX, &hash, &[0; 4]].concat();
        Hkdf::<Sha256>::new(Some(&CTX), &*k).expand(&info, &mut transaction).unwrap();
        stream_key(&transaction)
    });
    let mut nonce = [0; 12];
    nonce[11] = 1;
    let chunk = opens_under_both([&streams[0], &streams[1]], &nonce);
    let read = streams.map(|key| ChaCha20Poly1305::new(&key.into()).decrypt(&Nonce::from(nonce), &chunk[..]));
    let [Ok(first), Ok(second)] = read else { panic!("the chunk is made to open under both") };
    assert_ne!(first, second, "two readers would read two texts");
    // The second reader stops before it looks at any of it.
    parcel.truncate(envelope.len());
    parcel.extend(&chunk);
    let targets = targets(Suite::X25519, &[1, 2]);
    let refused = open(&context(&targets), tag(2), secret(Suite::X25519, 2), &parcel, usize::MAX);
    assert_eq!(refused, Err(OpenError::Envelope(EnvelopeOpenError::Unopenable)));
}

#[test]
fn n09_two_content_keys_in_one_envelope() {
    for suite in SUITES {
        let targets = targets(suite, &[1, 2]);
        let parcel = two_keys(suite);
        let refused = open(&context(&targets), tag(2), secret(suite, 2), &parcel, usize::MAX);
        let error = refused.expect_err("its K is not the one that the envelope commits to");
        assert_eq!(error, OpenError::Envelope(EnvelopeOpenError::Unopenable), "{suite}");
        assert_eq!(error.refusal(), Some(RefusalReason::Unopenable));
        // The first finds its K, and that the envelope is not the one under which anything was sealed.
        let refused = open(&context(&targets), tag(1), secret(suite, 1), &parcel, usize::MAX);
        assert_eq!(refused.expect_err("another E").refusal(), Some(RefusalReason::Stream), "{suite}");
    }
}

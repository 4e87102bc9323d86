//! What goes in comes out: sizes, destinations, forms, pieces.

use proptest::prelude::*;
use sealcast::core::id::Suite;
use sealcast::core::limits;
use sealcast::core::seal::compress::Compressor;
use sealcast::core::seal::stream::CHUNK_BYTES;
use sealcast::core::seal::transaction::{Compression, Padding, Payload};

use crate::seal::parcels::*;

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

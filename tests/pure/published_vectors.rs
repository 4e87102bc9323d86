//! The published vectors of both suites: RFC 9180 for suite 1, X-Wing's draft and the post-quantum HPKE draft for suite 2.
//! Each file under vectors/ names its source.

use hpke::kem::{X25519HkdfSha256, XWing};
use hpke::{Deserializable, Kem, Serializable};
use sealcast::core::id::Suite;
use sealcast::core::seal::suite::{HpkePublic, HpkeSecret, WRAP_RANDOMNESS_BYTES, unwrap, wrap};
use serde_json::Value;

fn field(vector: &Value, name: &str) -> Vec<u8> {
    let text = vector[name].as_str().unwrap_or_else(|| panic!("{name} is missing"));
    data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hexadecimal")
}

/// The randomness of a wrap that draws these bytes.
fn drawn(bytes: &[u8]) -> [u8; WRAP_RANDOMNESS_BYTES] {
    let mut randomness = [0; WRAP_RANDOMNESS_BYTES];
    randomness[..bytes.len()].copy_from_slice(bytes);
    randomness
}

/// A whole HPKE vector (Base mode, sequence number 0) through our own key types, wrap and unwrap.
fn whole<K: Kem>(suite: Suite, json: &str) {
    let vector: Value = serde_json::from_str(json).expect("JSON");
    let secret = HpkeSecret::from_bytes(suite, &field(&vector, "skRm")).expect("a secret");
    assert_eq!(secret.public().bytes(), field(&vector, "pkRm"));
    let public = HpkePublic::from_bytes(suite, &field(&vector, "pkRm")).expect("a public key");
    let [info, aad, plaintext] = ["info", "aad", "pt"].map(|name| field(&vector, name));
    let (enc, ciphertext) = wrap(&public, &info, &aad, &plaintext, &drawn(&field(&vector, "ikmE"))).expect("wraps");
    assert_eq!(enc, field(&vector, "enc"));
    assert_eq!(ciphertext, field(&vector, "ct"));
    assert_eq!(unwrap(&secret, &info, &aad, &enc, &ciphertext).expect("opens").as_slice(), plaintext);

    let key = K::PrivateKey::from_bytes(&field(&vector, "skRm")).expect("a secret");
    let enc = K::EncappedKey::from_bytes(&enc).expect("an encapsulated key");
    let shared = K::decap(&key, None, &enc).expect("decapsulates");
    assert_eq!(shared.0.as_slice(), field(&vector, "shared_secret"));
}

#[test]
fn suite_1_is_rfc_9180() {
    whole::<X25519HkdfSha256>(Suite::X25519, include_str!("vectors/hpke-x25519.json"));
}

#[test]
fn suite_2_is_hpke_with_x_wing() {
    whole::<XWing>(Suite::XWing, include_str!("vectors/hpke-x-wing.json"));
}

#[test]
fn suite_2_encapsulates_as_x_wing_does() {
    let file: Value = serde_json::from_str(include_str!("vectors/x-wing.json")).expect("JSON");
    let vectors = file["vectors"].as_array().expect("vectors");
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let secret = HpkeSecret::from_bytes(Suite::XWing, &field(vector, "sk")).expect("a secret");
        assert_eq!(field(vector, "sk"), field(vector, "seed"));
        assert_eq!(secret.public().bytes(), field(vector, "pk"));
        let (enc, _) = wrap(secret.public(), b"", b"", b"", &drawn(&field(vector, "eseed"))).expect("wraps");
        assert_eq!(enc, field(vector, "ct"));
        let key = <XWing as Kem>::PrivateKey::from_bytes(&field(vector, "sk")).expect("a secret");
        let enc = <XWing as Kem>::EncappedKey::from_bytes(&enc).expect("an encapsulated key");
        assert_eq!(XWing::decap(&key, None, &enc).expect("decapsulates").0.as_slice(), field(vector, "ss"));
        assert_eq!(XWing::sk_to_pk(&key).to_bytes().as_slice(), field(vector, "pk"));
    }
}

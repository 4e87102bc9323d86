//! The keys, the directory and the times of the golden files.

use std::collections::BTreeSet;
use std::time::Duration;

use sealcast::core::directory::{
    DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, ReaderEntry, SenderEntry, destination_tag,
};
use sealcast::core::id::{DestinationTag, EnvironmentId, Suite, Time, TransactionId};
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::sign::{PublicKey, SecretKey};

use crate::file::Golden;

pub const ENVIRONMENT: EnvironmentId = EnvironmentId(*b"golden-sealcast!");
pub const NOW: Time = Time(1_767_225_600_000);
pub const DEADLINE: Time = Time(NOW.0 + 3_600_000);

pub fn seed(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

pub fn operator() -> SecretKey {
    seed(1)
}

pub fn sender() -> SecretKey {
    seed(2)
}

/// The destination key of this suite; each destination has others.
pub fn secret(destination: &str, suite: Suite) -> HpkeSecret {
    let number = if destination == "orders" { 0x10 } else { 0x20 } + suite.number();
    HpkeSecret::from_bytes(suite, &[number; 32]).unwrap()
}

pub fn tag(destination: &str) -> DestinationTag {
    destination_tag(ENVIRONMENT, &destination.parse().unwrap(), 0)
}

/// Three nodes, the destinations "orders" and "audit", the sender "web", the reader "app".
pub fn directory() -> Vec<u8> {
    let mut draft = Draft::new(ENVIRONMENT, "golden".parse().unwrap(), Time(NOW.0 + 365 * 86_400_000));
    for (number, name) in (0x30..).step_by(4).zip(["a", "b", "c"]) {
        draft.add_node(NodeEntry {
            name: name.parse().unwrap(),
            address: format!("{name}.example:7400"),
            signing: seed(number).public(),
            tls: seed(number + 1).public().bytes(),
            hpke: HpkeSecret::from_bytes(Suite::XWing, &[number + 2; 32]).unwrap().public().bytes().to_vec().into(),
        });
    }
    for name in ["orders", "audit"] {
        let keys = [Suite::X25519, Suite::XWing].map(|suite| {
            let public = secret(name, suite).public().bytes().to_vec();
            DestinationKey::current(suite, public.into()).unwrap()
        });
        let nodes = ["a", "b", "c"].map(|node| node.parse().unwrap());
        draft.add_destination(DestinationEntry::new(ENVIRONMENT, name.parse().unwrap(), nodes, keys.to_vec()));
    }
    let destinations = BTreeSet::from(["orders".parse().unwrap(), "audit".parse().unwrap()]);
    let signing = sender().public();
    draft.add_sender(SenderEntry { name: "web".parse().unwrap(), signing, destinations: destinations.clone() });
    let hpke = HpkeSecret::from_bytes(Suite::XWing, &[0x41; 32]).unwrap().public().bytes().to_vec().into();
    draft.add_reader(ReaderEntry { name: "app".parse().unwrap(), signing: seed(0x40).public(), hpke, destinations });
    draft.sign(&operator()).unwrap()
}

pub fn transaction_id(number: usize) -> TransactionId {
    TransactionId::from_parts(NOW, [0xa0 + number as u8; 10])
}

#[test]
fn a_directory() {
    let mut golden =
        Golden::new("The signed directory of the other files: three nodes, two destinations, a sender, a reader.");
    golden.put("operator seed", *operator().seed());
    golden.put("operator public key", operator().public().bytes().0);
    golden.put("directory", directory());
    let values = golden.settle("directory");
    let operator: [u8; 32] = values["operator public key"].as_slice().try_into().unwrap();
    let operator = PublicKey::check(&sealcast::core::id::VerifyingKeyBytes(operator)).unwrap();
    let directory = Directory::verify(&values["directory"], &operator, 0).unwrap();
    assert_eq!(directory.destinations.len(), 2);
    assert_eq!(directory.destinations.values().next().unwrap().max_life, Duration::from_secs(7 * 86_400));
}

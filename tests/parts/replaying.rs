//! The stored log of an earlier version (tests/golden/log-1.hex) through the real store: whatever the batches, and wherever
//! the power was cut in between, the state is the recorded one (R4).

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::CrashDisk;
use crate::ledger::{options, seams};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use sealcast::core::decide::Entry;
use sealcast::store::group::{ApplyEntry, GroupStore, Mutation};

/// The values of the file, by name.
fn stored() -> BTreeMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-1.hex");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n").replace("\n ", "");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, hex)| (name.to_owned(), HEXLOWER.decode(hex.trim().as_bytes()).unwrap())).collect()
}

#[tokio::test]
async fn r04_the_store_makes_the_recorded_state_of_a_stored_log_in_any_batches_and_over_power_cuts() {
    let stored = stored();
    let last = (1..).take_while(|index| stored.contains_key(&format!("entry {index:02}"))).last().unwrap();
    assert!(last > 10, "the file was read");
    let to_apply = |index: u64| ApplyEntry {
        index,
        id: Bytes::copy_from_slice(&index.to_be_bytes()),
        membership: None,
        entry: Some(Entry::decode(&stored[&format!("entry {index:02}")]).unwrap()),
    };
    for (batch, cut_after) in [(1, 4), (3, 9), (100, 100)] {
        let mut disk = CrashDisk::new();
        let mut store = GroupStore::open(&options(), &seams(disk.clone(), 1)).unwrap();
        let (mut applied, mut cut) = (0, false);
        while applied < last {
            let entries = (applied + 1..=last).take(batch).map(to_apply).collect();
            store.apply(entries).await.unwrap();
            // What apply computed may lie behind: the log, which is durable, is applied again from there.
            applied = store.progress().borrow().applied;
            let digest = store.progress().borrow().state_digest;
            assert_eq!(digest.0, stored[&format!("state {applied:02}")][..], "behind entry {applied}");
            if applied >= cut_after && !cut {
                cut = true;
                let note = Mutation::Note { name: "n".to_owned(), value: Bytes::from_static(b"1") };
                store.write(vec![note]).await.unwrap();
                drop(store);
                disk = disk.crash();
                store = GroupStore::open(&options(), &seams(disk.clone(), 2)).unwrap();
                applied = store.progress().borrow().applied;
                let digest = store.progress().borrow().state_digest;
                assert!(applied >= cut_after);
                assert_eq!(digest.0, stored[&format!("state {applied:02}")][..], "after the cut");
            }
        }
        drop(store);
    }
}

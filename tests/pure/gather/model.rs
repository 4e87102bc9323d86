//! Everything comes out once, whatever the order: the property, and by name the inputs that once broke it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sealcast::core::gather::{Caps, ParcelKey};
use sealcast::core::id::Digest;

use crate::gathering::*;
use crate::segments::*;

/// What senders send and how a node reads it.
#[derive(Debug)]
struct Case<'a> {
    /// Sealed bytes of each parcel; even parcels are those of one sender, odd ones those of another.
    lengths: &'a [usize],
    /// Bits: which shards of a stripe are lost, up to m of them.
    losses: &'a [u8],
    /// For each record: what it is sorted by, its partition, and whether (0) it comes twice.
    keys: &'a [(u32, usize, u8)],
    /// Which partition is read next.
    paces: &'a [usize],
    caps: Caps,
}

type Parcels = BTreeMap<ParcelKey, (Digest, Vec<u8>)>;

impl Case<'_> {
    /// A node with the records in its log, and what must come out.
    fn sent(&self) -> (Node, Parcels) {
        let mut node = Node::new(self.caps);
        let mut records = Vec::new();
        let mut expected = BTreeMap::new();
        for (number, &length) in (0u8..).zip(self.lengths) {
            let sender = if number & 1 == 0 { web() } else { shop() };
            let core = core(&sender, number, tiny());
            let sealed = sealed(length, number);
            let stripes = split(core.clone(), &sender, &sealed);
            expected.insert(key_of(&core), (stripes.last().unwrap().digest, sealed));
            for stripe in &stripes {
                let lost = self.losses[(stripe.header.stripe as usize + usize::from(number)) % self.losses.len()];
                let mut left = 2;
                for segment in &stripe.segments {
                    if left > 0 && lost >> segment.index & 1 == 1 {
                        left -= 1;
                    } else {
                        records.push(segment.record.clone());
                    }
                }
            }
        }
        let mut placed: Vec<_> = records
            .iter()
            .enumerate()
            .flat_map(|(at, record)| {
                let (order, partition, copies) = self.keys[at % self.keys.len()];
                let order = order.wrapping_mul(at as u32 + 1);
                let copies = if copies == 0 { 2 } else { 1 };
                (0..copies).map(move |copy: u32| (order.rotate_left(copy * 7), partition, record))
            })
            .collect();
        placed.sort_by_key(|(order, partition, _)| (*order, *partition));
        for (_, partition, record) in placed {
            node.append(partition, record);
        }
        (node, expected)
    }

    fn within_caps(&self, node: &Node) -> Result<(), TestCaseError> {
        prop_assert!(node.reassembler.held_bytes() <= self.caps.total_bytes);
        prop_assert!(node.reassembler.held_bytes_of(&bytes_of(&web())) <= self.caps.sender_bytes);
        prop_assert!(node.reassembler.held_bytes_of(&bytes_of(&shop())) <= self.caps.sender_bytes);
        Ok(())
    }

    fn everything_comes_out_once(&self) -> Result<(), TestCaseError> {
        let (mut node, expected) = self.sent();
        let all = 3 * node.log.iter().map(Vec::len).max().unwrap();
        for step in 0..2 * all {
            node.collect(if step < all { self.paces[step % self.paces.len()] } else { step % 3 });
            self.within_caps(&node)?;
        }
        for _ in 0..200 {
            if node.staged.len() == expected.len() && node.reassembler.deferred() == 0 {
                break;
            }
            node.wait(Duration::from_secs(5));
            self.within_caps(&node)?;
        }
        prop_assert_eq!(&node.staged, &expected);
        prop_assert!(node.equivocations.is_empty() && node.refused.is_empty() && node.assembling.is_empty());
        node.assert_clean();
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Parcels of two senders, segments lost up to m of each stripe, doubled, in any order over three partitions that are
    /// read at any pace, under caps that force deferrals: everything comes out once, in order, and every offset passes.
    #[test]
    fn whatever_the_order_everything_comes_out_once(
        lengths in prop::collection::vec(1usize..400, 1..8),
        losses in prop::collection::vec(0u8..32, 1..40),
        keys in prop::collection::vec((any::<u32>(), 0usize..3, 0u8..10), 1..40),
        paces in prop::collection::vec(0usize..3, 1..40),
        caps in (9_000usize..60_000, 12_000usize..90_000),
    ) {
        let caps = Caps { sender_bytes: caps.0, total_bytes: caps.1, deferred: 10_000 };
        let case = Case { lengths: &lengths, losses: &losses, keys: &keys, paces: &paces, caps };
        case.everything_comes_out_once()?;
    }
}

/// Two senders each held two of the three shards that a stripe needs, in memory that has room for five. Neither held enough
/// more than the other to give way, so both were put off for stalling, came again together, and never ended.
#[test]
fn r16_two_senders_that_fill_the_memory_take_turns() {
    let case = Case {
        lengths: &[337, 289, 145, 97],
        losses: &[0, 1, 3, 1, 9],
        keys: &[(123_120_361, 0, 0)],
        paces: &[0],
        caps: Caps { sender_bytes: 9_000, total_bytes: 12_000, deferred: 10_000 },
    };
    case.everything_comes_out_once().unwrap();
}

//! The BLAKE3 Merkle tree, for any number of leaves, split as RFC 6962, section 2.1 does (docs/wire-format.md, "Merkle
//! tree"). Leaves come in as hashes, so that other signed batches can use the same tree under a leaf label of their own.
//!
//! Owns hashing leaves and nodes, roots and proofs. Must not know what a leaf means.

use crate::core::id::Digest;
use crate::core::wire::label;

/// The hash of a shard: BLAKE3(L("leaf"), u16 index, shard).
pub fn leaf(index: u16, shard: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label::LEAF).update(&index.to_be_bytes()).update(shard);
    Digest(*hasher.finalize().as_bytes())
}

/// The hash of an inner node: BLAKE3(L("node"), left, right).
pub fn node(left: &Digest, right: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label::NODE).update(&left.0).update(&right.0);
    Digest(*hasher.finalize().as_bytes())
}

/// How many of `count` (at least 2) leaves stand on the left: the largest power of two below `count`.
fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// The root over these leaf hashes. No leaves have no root: `None`. One leaf is its own root.
pub fn root(leaves: &[Digest]) -> Option<Digest> {
    match leaves {
        [] => None,
        [only] => Some(*only),
        more => {
            let (left, right) = more.split_at(left_of(more.len()));
            Some(node(&root(left)?, &root(right)?))
        }
    }
}

/// The root over these leaf hashes, and each leaf's proof: the sibling hashes from the leaf up.
pub fn proofs(leaves: &[Digest]) -> Option<(Digest, Vec<Vec<Digest>>)> {
    let mut proofs = vec![Vec::new(); leaves.len()];
    Some((build(leaves, &mut proofs)?, proofs))
}

fn build(leaves: &[Digest], proofs: &mut [Vec<Digest>]) -> Option<Digest> {
    match leaves {
        [] => None,
        [only] => Some(*only),
        more => {
            let at = left_of(more.len());
            let (left, right) = more.split_at(at);
            let (left_proofs, right_proofs) = proofs.split_at_mut(at);
            let (left, right) = (build(left, left_proofs)?, build(right, right_proofs)?);
            left_proofs.iter_mut().for_each(|proof| proof.push(right));
            right_proofs.iter_mut().for_each(|proof| proof.push(left));
            Some(node(&left, &right))
        }
    }
}

/// The exact number of hashes in the proof of leaf `index` of `count`; 0 when there is no such leaf.
pub fn proof_length(index: usize, count: usize) -> usize {
    let (mut index, mut count, mut length) = (index, count, 0);
    if index >= count {
        return 0;
    }
    while count > 1 {
        let left = left_of(count);
        (index, count) = if index < left { (index, left) } else { (index - left, count - left) };
        length += 1;
    }
    length
}

/// The root that this leaf and proof lead to. `None` when the index is not below `count` or the proof's length is not the
/// exact one.
pub fn climb(leaf: Digest, index: usize, count: usize, proof: &[Digest]) -> Option<Digest> {
    if index >= count {
        return None;
    }
    if count == 1 {
        return proof.is_empty().then_some(leaf);
    }
    let (top, below) = proof.split_last()?;
    let left = left_of(count);
    if index < left {
        Some(node(&climb(leaf, index, left, below)?, top))
    } else {
        Some(node(top, &climb(leaf, index - left, count - left, below)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u16) -> Vec<Digest> {
        (0..count).map(|index| leaf(index, b"shard")).collect()
    }

    #[test]
    fn every_proof_of_every_small_tree_leads_to_its_root_and_no_other_does() {
        assert_eq!(root(&[]), None);
        for count in 1..=65u16 {
            let leaves = leaves(count);
            let (top, proofs) = proofs(&leaves).unwrap();
            assert_eq!(root(&leaves), Some(top));
            for (index, (leaf, proof)) in leaves.iter().zip(&proofs).enumerate() {
                let count = usize::from(count);
                assert_eq!(proof.len(), proof_length(index, count));
                assert_eq!(climb(*leaf, index, count, proof), Some(top));
                let longer = [proof.as_slice(), &[Digest([0; 32])]].concat();
                assert_eq!(climb(*leaf, index, count, &longer), None);
                if let Some((_, shorter)) = proof.split_last() {
                    assert_eq!(climb(*leaf, index, count, shorter), None);
                }
                assert_eq!(climb(*leaf, count, count, proof), None);
                if count > 1 {
                    let other = (index + 1) % count;
                    assert_ne!(climb(*leaf, other, count, proof), Some(top));
                }
            }
        }
    }

    #[test]
    fn the_split_is_that_of_rfc_6962() {
        let l = leaves(5);
        let four = node(&node(&l[0], &l[1]), &node(&l[2], &l[3]));
        assert_eq!(root(&l), Some(node(&four, &l[4])));
    }
}

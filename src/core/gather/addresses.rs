//! A set of addresses kept as runs of offsets, because the records of a large parcel lie one after the other.

use std::collections::BTreeMap;

use super::Address;

/// A set of addresses. Costs one entry for each run of neighbouring offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// (partition, first offset) -> last offset. Runs neither touch nor overlap.
    last_by_start: BTreeMap<(i32, i64), i64>,
    count: usize,
}

impl Addresses {
    /// Adds an address; whether it is new.
    pub fn insert(&mut self, at: Address) -> bool {
        let Address { partition, offset } = at;
        let before = self.run_at_or_before(at);
        if before.is_some_and(|(_, last)| offset <= last) {
            return false;
        }
        let start = match before {
            Some((start, last)) if last.checked_add(1) == Some(offset) => start,
            _ => offset,
        };
        let after = offset.checked_add(1).and_then(|next| self.last_by_start.remove(&(partition, next)));
        self.last_by_start.insert((partition, start), after.unwrap_or(offset));
        self.count += 1;
        true
    }

    /// Takes an address out; whether it was there.
    pub fn remove(&mut self, at: Address) -> bool {
        let Address { partition, offset } = at;
        let Some((start, last)) = self.run_at_or_before(at).filter(|(_, last)| offset <= *last) else {
            return false;
        };
        self.last_by_start.remove(&(partition, start));
        self.count -= 1;
        if start < offset {
            self.last_by_start.insert((partition, start), offset - 1);
        }
        if offset < last {
            self.last_by_start.insert((partition, offset + 1), last);
        }
        true
    }

    /// Takes out all of a partition, and gives them.
    pub fn remove_partition(&mut self, partition: i32) -> Self {
        let of = |(number, _): &(i32, i64)| *number == partition;
        let last_by_start: BTreeMap<_, _> = self.last_by_start.extract_if(.., |start, _| of(start)).collect();
        let length = |((_, start), last): (&(i32, i64), &i64)| usize::try_from(last - start + 1).unwrap_or(usize::MAX);
        let count = last_by_start.iter().map(length).sum();
        self.count -= count;
        Self { last_by_start, count }
    }

    fn run_at_or_before(&self, at: Address) -> Option<(i64, i64)> {
        let (&(partition, start), &last) = self.last_by_start.range(..=(at.partition, at.offset)).next_back()?;
        (partition == at.partition).then_some((start, last))
    }

    /// Whether the address is in the set.
    pub fn contains(&self, at: Address) -> bool {
        self.run_at_or_before(at).is_some_and(|(_, last)| at.offset <= last)
    }

    /// Every address, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Address> + '_ {
        self.last_by_start
            .iter()
            .flat_map(|(&(partition, start), &last)| (start..=last).map(move |offset| Address { partition, offset }))
    }

    /// The runs: partition, first and last offset, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (i32, std::ops::RangeInclusive<i64>)> + '_ {
        self.last_by_start.iter().map(|(&(partition, start), &last)| (partition, start..=last))
    }

    /// How many runs there are: what it costs.
    pub fn run_count(&self) -> usize {
        self.last_by_start.len()
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.last_by_start.is_empty()
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        for at in other.iter() {
            self.insert(at);
        }
    }
}

impl FromIterator<Address> for Addresses {
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> Self {
        let mut set = Self::default();
        for at in addresses {
            set.insert(at);
        }
        set
    }
}

impl From<Address> for Addresses {
    fn from(at: Address) -> Self {
        std::iter::once(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..2i32, 0..40i64), 0..200)) {
            let (mut set, mut model) = (Addresses::default(), BTreeSet::new());
            for (add, partition, offset) in steps {
                let at = Address { partition, offset };
                if add {
                    prop_assert_eq!(set.insert(at), model.insert(at));
                } else {
                    prop_assert_eq!(set.remove(at), model.remove(&at));
                }
                prop_assert!(set.contains(at) == add);
                prop_assert!(set.iter().eq(model.iter().copied()));
                prop_assert!(set.run_count() <= model.len());
                prop_assert_eq!(set.len(), model.len());
            }
            let gone = set.remove_partition(1);
            prop_assert!(gone.iter().all(|at| at.partition == 1) && set.iter().all(|at| at.partition == 0));
            prop_assert_eq!((gone.len() + set.len(), gone.len()), (model.len(), gone.iter().count()));
        }
    }

    #[test]
    fn neighbours_are_one_run() {
        let set: Addresses = [3, 1, 2, 0].map(|offset| Address { partition: 0, offset }).into_iter().collect();
        assert_eq!(set.run_count(), 1);
    }
}

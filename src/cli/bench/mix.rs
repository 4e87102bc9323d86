//! Which payload and which destination a send has: fixed by its number, so that two runs send the same.
//!
//! Owns the arithmetic. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::cli::size::Size;

/// Most different sizes of a mix.
const MOST_SIZES: usize = 16;
/// Largest weight.
const MOST_WEIGHT: u64 = 1_000_000;

/// Payload sizes and how often each is sent, as people write it: `1KiB:80,64KiB:20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mix(Vec<(Size, u64)>);

impl Mix {
    /// One size.
    pub(super) fn of(size: Size) -> Self {
        Self(vec![(size, 1)])
    }

    /// The sizes and their weights, as they were written.
    pub(super) fn sizes(&self) -> &[(Size, u64)] {
        &self.0
    }

    /// The largest payload, in bytes.
    pub(super) fn largest(&self) -> u64 {
        self.0.iter().map(|(size, _)| size.0).max().unwrap_or_default()
    }

    /// The mean payload, in bytes.
    pub(super) fn mean(&self) -> f64 {
        let bytes: f64 = self.0.iter().map(|(size, weight)| size.0 as f64 * *weight as f64).sum();
        bytes / self.turn() as f64
    }

    /// The sum of the weights: so many sends make a turn.
    pub(super) fn turn(&self) -> u64 {
        self.0.iter().map(|(_, weight)| weight).sum::<u64>().max(1)
    }

    /// Payload bytes of a send: in each turn each size comes exactly as often as its weight says, and its sends are spread
    /// over it. Turns differ, so that no sender of several has sizes of its own.
    pub(super) fn size(&self, send: u64) -> u64 {
        self.size_with(self.stride(), send)
    }

    /// A stride without a common factor with the turn reaches every place once; near the golden ratio it does so evenly.
    fn stride(&self) -> u64 {
        let total = self.turn();
        let mut stride = ((total as f64 * 0.618_034) as u64).max(1);
        while gcd(stride, total) != 1 {
            stride += 1;
        }
        stride
    }

    fn size_with(&self, stride: u64, send: u64) -> u64 {
        let total = self.turn();
        let turn = (send % total).wrapping_add(send / total) % total;
        let mut place = u64::try_from(u128::from(turn) * u128::from(stride) % u128::from(total)).unwrap_or_default();
        for (size, weight) in &self.0 {
            match place.checked_sub(*weight) {
                None => return size.0,
                Some(left) => place = left,
            }
        }
        self.largest()
    }

    /// How many of the sends before this one have each size.
    fn before(&self, send: u64) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        let whole = send / self.turn();
        for (size, weight) in &self.0 {
            *counts.entry(size.0).or_default() += weight * whole;
        }
        let stride = self.stride();
        for send in whole * self.turn()..send {
            *counts.entry(self.size_with(stride, send)).or_default() += 1;
        }
        counts
    }

    /// How many of these sends have each size.
    pub(super) fn sends_of_each(&self, sends: Range<u64>) -> BTreeMap<u64, u64> {
        let mut counts = self.before(sends.end);
        for (size, count) in self.before(sends.start) {
            let all = counts.entry(size).or_default();
            *all = all.saturating_sub(count);
        }
        counts
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight = weight.parse().ok().filter(|weight| (1..=MOST_WEIGHT).contains(weight));
            let weight = weight.ok_or_else(|| format!("{part}: a weight from 1 to {MOST_WEIGHT} follows the colon"))?;
            Ok::<_, String>((size.parse().map_err(|error| format!("{part}: {error}"))?, weight))
        };
        let sizes = text.split(',').map(part).collect::<Result<Vec<_>, _>>()?;
        if sizes.len() > MOST_SIZES { Err(format!("at most {MOST_SIZES} sizes")) } else { Ok(Self(sizes)) }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (size, weight)) in self.0.iter().enumerate() {
            match (at, self.0.len()) {
                (0, 1) => write!(f, "{size}")?,
                (0, _) => write!(f, "{size}:{weight}")?,
                _ => write!(f, ",{size}:{weight}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_kept_to_and_spread() {
        let mix: Mix = "1KiB:80,64KiB:20".parse().unwrap();
        let sizes: Vec<u64> = (0..200).map(|send| mix.size(send)).collect();
        for run in sizes.chunks(100) {
            assert_eq!(run.iter().filter(|size| **size == 64 << 10).count(), 20);
        }
        for run in sizes.chunks(20) {
            let large = run.iter().filter(|size| **size == 64 << 10).count();
            assert!((2..=6).contains(&large), "{large} of 20: {sizes:?}");
        }
        for range in [0..0, 0..200, 7..100, 100..193, 130..131] {
            let mut counted = mix.sends_of_each(range.clone());
            range.for_each(|send| *counted.get_mut(&mix.size(send)).unwrap() -= 1);
            assert_eq!(counted.into_values().collect::<Vec<_>>(), [0, 0]);
        }
        assert_eq!((mix.largest(), mix.mean()), (64 << 10, (80.0 * 1024.0 + 20.0 * 65536.0) / 100.0));
    }

    #[test]
    fn mixes_are_written_as_they_are_read() {
        for text in ["1KiB", "1KiB:80,64KiB:20", "0B:1,1MiB:2,3B:1000000"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        assert_eq!("1KiB,2KiB".parse::<Mix>().unwrap().to_string(), "1KiB:1,2KiB:1");
        for text in ["", "1KiB:", "1KiB:0", "1KiB:x", "1KiB,,2KiB", "1KiB:80;2KiB:20", "1KiB:1000001"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
        assert!(["1B"; 17].join(",").parse::<Mix>().is_err());
    }

    #[test]
    fn every_small_mix_reaches_every_size_as_often_as_it_should() {
        for first in 1..=12 {
            for second in 1..=12 {
                let mix: Mix = format!("1B:{first},2B:{second}").parse().unwrap();
                let ones = (0..first + second).filter(|send| mix.size(*send) == 1).count() as u64;
                assert_eq!(ones, first, "{mix}");
            }
        }
    }
}

//! The erasure code: systematic Reed-Solomon over GF(2^8) with polynomial 0x11d, Vandermonde matrix made systematic
//! (docs/wire-format.md, "Segments"). Without parity shards there is nothing to compute.
//!
//! The only place that knows the codec. Must not know headers or proofs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::core::limits;

/// The codec was given what it cannot work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// k or m outside the limits.
    #[error("a code of {k} data and {m} parity shards is outside 1..=32 and 0..=32")]
    Shape {
        /// Data shards.
        k: usize,
        /// Parity shards.
        m: usize,
    },
    /// Wrong number of shards, unequal or zero lengths, or fewer than k present.
    #[error("the codec cannot work on these shards: {cause}")]
    Shards {
        /// What the codec says.
        cause: String,
    },
}

impl CodeError {
    /// Never: the same shards give the same error.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A code of k data and m parity shards. Cheap to clone; its matrix is built once in a process.
#[derive(Debug, Clone)]
pub struct Code {
    k: usize,
    m: usize,
    codec: Option<Arc<ReedSolomon>>,
}

/// Matrices that were built, by (k, m): at most `DATA_SHARDS` x `PARITY_SHARDS` of them.
static CODECS_BY_SHAPE: Mutex<BTreeMap<(usize, usize), Arc<ReedSolomon>>> = Mutex::new(BTreeMap::new());

impl Code {
    /// The code with this many data and parity shards. Errors: [`CodeError::Shape`].
    pub fn new(k: usize, m: usize) -> Result<Self, CodeError> {
        if !(1..=limits::DATA_SHARDS).contains(&k) || m > limits::PARITY_SHARDS {
            return Err(CodeError::Shape { k, m });
        }
        if m == 0 {
            return Ok(Self { k, m, codec: None });
        }
        let mut codecs = CODECS_BY_SHAPE.lock().unwrap_or_else(PoisonError::into_inner);
        let codec = match codecs.get(&(k, m)) {
            Some(codec) => Arc::clone(codec),
            None => {
                let codec = Arc::new(ReedSolomon::new(k, m).map_err(|_| CodeError::Shape { k, m })?);
                codecs.insert((k, m), Arc::clone(&codec));
                codec
            }
        };
        Ok(Self { k, m, codec: Some(codec) })
    }

    /// Data shards.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Parity shards.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Fills the m parity shards from the k data shards, all of one length above zero. Errors: [`CodeError::Shards`].
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodeError> {
        match &self.codec {
            None if data.len() == self.k && parity.is_empty() => Ok(()),
            None => Err(CodeError::Shards { cause: "no parity to encode".to_owned() }),
            Some(codec) => codec.encode_sep(data, parity).map_err(|e| CodeError::Shards { cause: e.to_string() }),
        }
    }

    /// Fills the shards that are marked absent (`false`) from k that are present; all n of one length above zero. When
    /// more than k are present, which k are used is the codec's choice, so callers that judge mark exactly k (R2).
    /// Errors: [`CodeError::Shards`].
    pub fn rebuild(&self, shards: &mut [(&mut [u8], bool)]) -> Result<(), CodeError> {
        match &self.codec {
            None if shards.len() == self.k && shards.iter().all(|(_, present)| *present) => Ok(()),
            None => Err(CodeError::Shards { cause: "without parity every shard is needed".to_owned() }),
            Some(codec) => codec.reconstruct(shards).map_err(|e| CodeError::Shards { cause: e.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_outside_the_limits_are_refused() {
        for (k, m) in [(0, 1), (33, 1), (1, 33)] {
            assert_eq!(Code::new(k, m).unwrap_err(), CodeError::Shape { k, m });
        }
        assert!(Code::new(32, 32).is_ok());
    }

    #[test]
    fn one_data_shard_is_copied() {
        let code = Code::new(1, 2).unwrap();
        let (mut one, mut two) = ([0; 3], [0; 3]);
        code.encode(&[b"abc"], &mut [&mut one, &mut two]).unwrap();
        assert_eq!((&one, &two), (b"abc", b"abc"));
    }

    /// Parity by the definition in docs/wire-format.md: row r of the Vandermonde matrix is the powers of r, the matrix is
    /// multiplied by the inverse of its top, so shard r is the polynomial through the data shards at 0..k, evaluated at r.
    #[test]
    fn parity_is_the_interpolating_polynomial_at_k_and_beyond() {
        fn mul(mut a: u8, mut b: u8) -> u8 {
            let mut product = 0;
            while b != 0 {
                if b & 1 == 1 {
                    product ^= a;
                }
                a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1d };
                b >>= 1;
            }
            product
        }
        let inverse = |a: u8| (1..=255).find(|&b| mul(a, b) == 1).unwrap();
        let (k, m) = (5u8, 3u8);
        let data: Vec<[u8; 1]> = vec![[7], [0], [255], [19], [128]];
        let mut parity = vec![[0u8; 1]; m.into()];
        Code::new(k.into(), m.into())
            .unwrap()
            .encode(
                &data.iter().map(|d| &d[..]).collect::<Vec<_>>(),
                &mut parity.iter_mut().map(|p| &mut p[..]).collect::<Vec<_>>(),
            )
            .unwrap();
        for (row, shard) in (k..).zip(&parity) {
            let mut sum = 0;
            for i in 0..k {
                let mut weight = 1;
                for j in (0..k).filter(|&j| j != i) {
                    weight = mul(weight, mul(row ^ j, inverse(i ^ j)));
                }
                sum ^= mul(weight, data[usize::from(i)][0]);
            }
            assert_eq!(shard[0], sum);
        }
    }
}

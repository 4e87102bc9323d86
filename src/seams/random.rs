//! Randomness: the operating system's, drawn fallibly; or a seeded stream for tests.

use std::sync::Mutex;

/// The operating system gave no randomness. Nothing can be sealed without it; try again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the operating system's randomness failed: {cause}")]
pub struct RandomnessError {
    /// What the system said.
    pub cause: String,
}

impl RandomnessError {
    /// Whether the same draw can succeed later: the system may have some then.
    pub fn retryable(&self) -> bool {
        true
    }
}

/// Where random bytes come from.
pub trait Randomness: Send + Sync + 'static {
    /// Fills `into` whole, or fails and the bytes must not be used.
    fn fill(&self, into: &mut [u8]) -> Result<(), RandomnessError>;
}

impl dyn Randomness {
    /// `N` random bytes.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], RandomnessError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// `getrandom(2)` and its like.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandomness;

impl Randomness for OsRandomness {
    fn fill(&self, into: &mut [u8]) -> Result<(), RandomnessError> {
        getrandom::fill(into).map_err(|error| RandomnessError { cause: error.to_string() })
    }
}

/// The same bytes for the same seed: for tests, golden files and simulation, never for keys that guard anything.
/// Bytes are BLAKE3's extendable output over the seed, in the order of the draws.
#[derive(Debug)]
pub struct SeededRandomness {
    stream: Mutex<blake3::OutputReader>,
}

impl SeededRandomness {
    /// Starts the stream of this seed.
    pub fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"sealcast seeded randomness").update(&seed.to_be_bytes());
        Self { stream: Mutex::new(hasher.finalize_xof()) }
    }
}

impl Randomness for SeededRandomness {
    fn fill(&self, into: &mut [u8]) -> Result<(), RandomnessError> {
        self.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill(into);
        Ok(())
    }
}

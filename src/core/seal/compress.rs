//! zstd on request (RFC 8878): compressing a payload before it is sealed, and expanding it after it was opened, within what
//! its header says and never beyond.
//!
//! Owns both directions. Must not know keys.

use std::fmt;
use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use crate::core::limits;

/// zstd's own default: the knee of its curve.
const LEVEL: i32 = 3;

/// What is expanded or compressed at a time, in bytes.
const STEP_BYTES: usize = 64 * 1024;

/// What zstd takes to expand beside its window, in bytes: a block as it came, one as it is given, tables.
const ZSTD_BYTES: usize = 448 * 1024;

/// Why a payload does not expand, or cannot be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// The carried bytes are no zstd frames within our window.
    #[error("the payload is not zstd, or needs a window above 8 MiB")]
    Malformed,
    /// They expand to more or to fewer bytes than the header says, or end within a frame.
    #[error("the payload does not expand to the length that its header says")]
    Length,
    /// This process could not get the memory: local trouble, no verdict (R21).
    #[error("no memory for zstd")]
    Memory,
}

impl CompressError {
    /// Whether the same call can succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Memory)
    }

    fn from_zstd(error: &io::Error) -> Self {
        // zstd tells its errors apart by this name alone.
        if error.to_string().starts_with("Allocation error") { Self::Memory } else { Self::Malformed }
    }
}

/// Compresses a payload as it passes.
pub struct Compressor {
    encoder: Encoder<'static>,
    step: Vec<u8>,
}

impl Compressor {
    /// Starts a payload. Errors: [`CompressError::Memory`].
    pub fn new() -> Result<Self, CompressError> {
        let mut encoder = Encoder::new(LEVEL).map_err(|_| CompressError::Memory)?;
        encoder.set_parameter(CParameter::WindowLog(limits::ZSTD_WINDOW_LOG - 2)).map_err(|_| CompressError::Memory)?;
        Ok(Self { encoder, step: vec![0; STEP_BYTES] })
    }

    /// More of the payload; what is ready to be carried is appended to `out`. Errors: [`CompressError::Memory`].
    pub fn push(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CompressError> {
        let mut input = InBuffer::around(payload);
        while input.pos() < payload.len() {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            self.encoder.run(&mut input, &mut output).map_err(|_| CompressError::Memory)?;
            out.extend_from_slice(output.as_slice());
        }
        Ok(())
    }

    /// Ends the frame. Errors: [`CompressError::Memory`].
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), CompressError> {
        loop {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            let left = self.encoder.finish(&mut output, true).map_err(|_| CompressError::Memory)?;
            out.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// A payload that is at hand. Errors: [`CompressError::Memory`].
    pub fn whole(payload: &[u8]) -> Result<Vec<u8>, CompressError> {
        let mut compressor = Self::new()?;
        let mut out = Vec::new();
        compressor.push(payload, &mut out)?;
        compressor.finish(&mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

/// Expands a payload as it is opened.
pub(super) struct Expander {
    decoder: Decoder<'static>,
    step: Vec<u8>,
    /// Bytes that it may still give.
    left: u64,
    /// What its window can come to take, in bytes.
    window: usize,
    /// Whether a frame just ended.
    ended: bool,
}

impl Expander {
    /// Starts a payload of at most `most` bytes.
    pub(super) fn new(most: u64) -> Result<Self, CompressError> {
        let mut decoder = Decoder::new().map_err(|_| CompressError::Memory)?;
        decoder.set_parameter(DParameter::WindowLogMax(limits::ZSTD_WINDOW_LOG)).map_err(|_| CompressError::Memory)?;
        // A frame may claim the widest window; more than it gives is never written to.
        let window = (1 << limits::ZSTD_WINDOW_LOG).min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(Self { decoder, step: vec![0; STEP_BYTES], left: most, window, ended: false })
    }

    /// What it can come to hold in memory until its end, in bytes: zstd's window, blocks and tables.
    pub(super) fn most_bytes(&self) -> usize {
        self.window + ZSTD_BYTES + STEP_BYTES
    }

    /// Expands more; stops at the first byte beyond the limit.
    pub(super) fn push(&mut self, carried: &[u8], sink: &mut impl FnMut(&[u8])) -> Result<(), CompressError> {
        let mut input = InBuffer::around(carried);
        loop {
            let mut output = OutBuffer::around(self.step.as_mut_slice());
            let hint = self.decoder.run(&mut input, &mut output).map_err(|error| CompressError::from_zstd(&error))?;
            let expanded = output.as_slice();
            self.left = self.left.checked_sub(expanded.len() as u64).ok_or(CompressError::Length)?;
            self.ended = hint == 0;
            let filled = expanded.len() == STEP_BYTES;
            if !expanded.is_empty() {
                sink(expanded);
            }
            if input.pos() == carried.len() && (!filled || self.ended) {
                return Ok(());
            }
        }
    }

    /// Checks that the last frame is whole.
    pub(super) fn finish(&self) -> Result<(), CompressError> {
        if self.ended { Ok(()) } else { Err(CompressError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(carried: &[u8], most: u64, step: usize) -> Result<Vec<u8>, CompressError> {
        let mut expander = Expander::new(most)?;
        let mut out = Vec::new();
        for part in carried.chunks(step) {
            expander.push(part, &mut |bytes| out.extend_from_slice(bytes))?;
        }
        expander.finish()?;
        Ok(out)
    }

    #[test]
    fn what_is_compressed_expands() {
        for size in [0, 1, 1000, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 1_000_000] {
            for payload in [vec![7; size], (0..size).map(|at| (at * at % 253) as u8).collect::<Vec<u8>>()] {
                let carried = Compressor::whole(&payload).expect("compresses");
                for step in [1, 1000, usize::MAX] {
                    assert!(expanded(&carried, size as u64, step) == Ok(payload.clone()), "{size} in steps of {step}");
                }
                if size > 0 {
                    assert_eq!(expanded(&carried, size as u64 - 1, 1000), Err(CompressError::Length));
                }
                let cut = carried.len() - 1;
                assert!(expanded(carried.get(..cut).expect("shorter"), size as u64, 1000).is_err());
            }
        }
    }

    #[test]
    fn a_bomb_gives_no_more_than_its_header_says() {
        let bomb = Compressor::whole(&vec![0; 64 << 20]).expect("compresses");
        assert!(bomb.len() < 10_000);
        let mut given = 0;
        let mut expander = Expander::new(1000).expect("memory");
        assert_eq!(expander.push(&bomb, &mut |bytes| given += bytes.len()), Err(CompressError::Length));
        assert_eq!(given, 0);
        assert_eq!(expanded(b"no zstd at all", 1000, 4), Err(CompressError::Malformed));
    }
}

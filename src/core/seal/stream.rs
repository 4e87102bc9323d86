//! The STREAM of a transaction: 64 KiB plaintext chunks under ChaCha20-Poly1305 (RFC 8439), each with its place and whether
//! it is the last in its nonce (design, section 3; the construction of age and of "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", section 7).
//!
//! Nonce: 11-byte big-endian counter from 0, then one byte: 1 for the final chunk, else 0. Empty AAD. All chunks but the last
//! are full; an exact multiple ends with a full final chunk; an empty stream is one empty final chunk.
//!
//! Owns chunks. Must not know what the plaintext means.

use std::fmt;
use std::ops::{Deref, DerefMut};

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use zeroize::optimization_barrier;

/// Plaintext bytes of a full chunk.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes that a chunk grows by: its Poly1305 tag.
pub const TAG_BYTES: usize = 16;

/// Why a stream does not open. Which of its bytes are wrong, nobody can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A chunk fails its authentication: altered, out of order, under another key, or its final flag is not where the end is.
    #[error("chunk {chunk} does not open")]
    Chunk {
        /// Which chunk, from 0.
        chunk: u64,
    },
    /// The bytes end before the stream does.
    #[error("the bytes end within chunk {chunk}")]
    Truncated {
        /// The chunk that is incomplete.
        chunk: u64,
    },
    /// A final chunk without bytes stands behind others: exact multiples end with a full chunk.
    #[error("chunk {chunk} is final and empty, but not the only one")]
    EmptyFinal {
        /// Which chunk.
        chunk: u64,
    },
}

impl StreamError {
    /// Whether the same bytes can open later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Length of the STREAM of this many plaintext bytes: 16 more for each chunk.
pub fn sealed_bytes(plaintext: u64) -> u64 {
    let chunks = plaintext.div_ceil(CHUNK_BYTES as u64).max(1);
    plaintext.saturating_add(chunks.saturating_mul(TAG_BYTES as u64))
}

/// A buffer of plaintext: wiped when its stream ends or is dropped. Wiped in one stroke, because byte after byte would take
/// as long as opening.
struct Wiped(Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        // Whatever was in it, as far as it ever reached.
        let reached = self.0.capacity();
        self.0.clear();
        self.0.resize(reached, 0);
        optimization_barrier(self.0.as_slice());
    }
}

impl Deref for Wiped {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// A length as the chunks' u64.
const CHUNK: u64 = CHUNK_BYTES as u64;

/// What is still to come, if that is known, after so many bytes more.
fn less(left: Option<u64>, bytes: usize) -> Option<u64> {
    left.map(|left| left.saturating_sub(bytes as u64))
}

struct Chunks {
    aead: ChaCha20Poly1305,
    next: u64,
}

impl Chunks {
    fn new(key: &[u8; 32]) -> Self {
        Self { aead: ChaCha20Poly1305::new(key.into()), next: 0 }
    }

    /// The nonce of the next chunk. Lengths are limited to far below 2^64 chunks, so the three highest of the counter's
    /// 11 bytes stay zero.
    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        let counter = self.next.to_be_bytes();
        let flag = [u8::from(last)];
        nonce.iter_mut().skip(3).zip(counter.iter().chain(&flag)).for_each(|(to, from)| *to = *from);
        nonce.into()
    }

    fn seal(&mut self, chunk: &mut [u8], last: bool) -> Tag {
        let Ok(tag) = self.aead.encrypt_inout_detached(&self.nonce(last), b"", chunk.into()) else {
            unreachable!("a chunk is far below ChaCha20's 256 GiB")
        };
        self.next += 1;
        tag
    }

    fn open(&mut self, chunk: InOutBuf<'_, '_, u8>, tag: &Tag, last: bool) -> Result<(), StreamError> {
        let opened = self.aead.decrypt_inout_detached(&self.nonce(last), b"", chunk, tag);
        opened.map_err(|_| StreamError::Chunk { chunk: self.next })?;
        self.next += 1;
        Ok(())
    }
}

/// Seals a stream into a buffer of the caller. Holds back at most one chunk: what is not full yet, or of which only what
/// follows tells whether it is the last.
pub struct StreamSealer {
    chunks: Chunks,
    pending: Wiped,
    /// Plaintext bytes still to come; `None` while only the end tells.
    left: Option<u64>,
    done: bool,
}

impl StreamSealer {
    /// Starts under a key that seals nothing else.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { chunks: Chunks::new(key), pending: Wiped(Vec::new()), left: None, done: false }
    }

    /// The same for a stream of exactly `length` plaintext bytes: its last chunk is known when it comes. One that turns out
    /// shorter ends where it ends; one that goes on behind `length` does not open.
    pub fn of_length(key: &[u8; 32], length: u64) -> Self {
        Self { left: Some(length), ..Self::new(key) }
    }

    /// Seals more plaintext; what became complete is appended to `out`.
    pub fn push(&mut self, mut plaintext: &[u8], out: &mut Vec<u8>) {
        while !plaintext.is_empty() {
            if self.pending.len() == CHUNK_BYTES {
                // Something follows it.
                self.seal_pending(false, out);
            }
            if self.pending.is_empty()
                && let Some(last) = self.tells(plaintext.len())
            {
                let (chunk, rest) = plaintext.split_at_checked(CHUNK_BYTES).unwrap_or((plaintext, &[]));
                seal_into(&mut self.chunks, chunk, last, out);
                self.passed(chunk.len());
                (plaintext, self.done) = (rest, last);
                continue;
            }
            if self.pending.capacity() == 0 {
                // At once as large as it can get: growing would leave copies of plaintext behind.
                let most = self.left.map_or(CHUNK, |left| left.min(CHUNK)) as usize;
                self.pending.reserve_exact(most.max(plaintext.len().min(CHUNK_BYTES)));
            }
            let room = CHUNK_BYTES - self.pending.len();
            let (fits, rest) = plaintext.split_at_checked(room).unwrap_or((plaintext, &[]));
            self.pending.extend_from_slice(fits);
            self.passed(fits.len());
            plaintext = rest;
        }
    }

    /// Whether the next chunk, none of which came before, is the last; `None` when it is not all in these bytes, or nobody knows.
    fn tells(&self, bytes: usize) -> Option<bool> {
        match self.left {
            Some(left) if left == bytes as u64 && bytes <= CHUNK_BYTES => Some(true),
            _ => (bytes > CHUNK_BYTES).then_some(false),
        }
    }

    fn passed(&mut self, bytes: usize) {
        self.left = less(self.left, bytes);
    }

    fn seal_pending(&mut self, last: bool, out: &mut Vec<u8>) {
        seal_into(&mut self.chunks, &self.pending, last, out);
        self.pending.clear();
    }

    /// Ends the stream with its final chunk.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        if !self.done || !self.pending.is_empty() {
            self.seal_pending(true, out);
        }
    }
}

/// Copies a chunk to the end of `out` and seals it there.
fn seal_into(chunks: &mut Chunks, chunk: &[u8], last: bool, out: &mut Vec<u8>) {
    let at = out.len();
    out.reserve(chunk.len() + TAG_BYTES);
    out.extend_from_slice(chunk);
    let tag = match out.get_mut(at..) {
        Some(place) => chunks.seal(place, last),
        None => unreachable!("out grew from this length"),
    };
    out.extend_from_slice(&tag);
}

impl fmt::Debug for StreamSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamSealer(chunk {})", self.chunks.next)
    }
}

/// Opens a stream as its bytes come. Gives a chunk's plaintext only after the chunk's authentication; holds at most one
/// chunk.
pub struct StreamOpener {
    chunks: Chunks,
    /// Plaintext bytes still to come; `None` while only the end of the bytes ends the stream.
    left: Option<u64>,
    /// The chunk that is being gathered.
    gathered: Wiped,
    /// Where a chunk is opened that came in one piece.
    opened: Wiped,
    done: bool,
}

impl StreamOpener {
    /// Starts a stream of `length` plaintext bytes, or, with `None`, one that ends where the bytes end.
    pub fn new(key: &[u8; 32], length: Option<u64>) -> Self {
        let (gathered, opened) = (Wiped(Vec::new()), Wiped(Vec::new()));
        Self { chunks: Chunks::new(key), left: length, gathered, opened, done: false }
    }

    /// Whether the final chunk was opened.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Length of the chunk that is being gathered, with its tag.
    fn wanted(&self) -> usize {
        self.left.map_or(CHUNK_BYTES, |left| left.min(CHUNK) as usize) + TAG_BYTES
    }

    /// Takes bytes and gives `sink` every chunk's plaintext that they complete. Returns how many bytes it took: fewer than
    /// given only when a stream of known length ended within them. Errors: [`StreamError`], and those of `sink`; after one the
    /// opener is of no use.
    pub fn push<E: From<StreamError>>(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut rest = bytes;
        while !self.done && !rest.is_empty() {
            let wanted = self.wanted();
            let last = self.left.is_some_and(|left| left <= CHUNK);
            if self.gathered.len() == wanted {
                // Only a stream of unknown length waits with a full chunk; more bytes follow, so it is not the last.
                self.open_gathered(false, sink)?;
            }
            // What is in one piece need not be gathered.
            let whole = rest.len() > wanted || (rest.len() == wanted && self.left.is_some());
            if self.gathered.is_empty() && whole {
                let (chunk, after) = rest.split_at_checked(wanted).unwrap_or((rest, &[]));
                self.open(chunk, last, sink)?;
                (rest, self.done) = (after, last);
                continue;
            }
            if self.gathered.capacity() < wanted {
                self.gathered.reserve_exact(wanted);
            }
            let (taken, after) = rest.split_at_checked(wanted - self.gathered.len()).unwrap_or((rest, &[]));
            self.gathered.extend_from_slice(taken);
            rest = after;
            if self.left.is_some() && self.gathered.len() == wanted {
                self.open_gathered(last, sink)?;
                self.done = last;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Says that no more bytes come; opens the final chunk of a stream of unknown length. Errors: [`StreamError`], and those
    /// of `sink`.
    pub fn finish<E: From<StreamError>>(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.done {
            return Ok(());
        }
        let chunk = self.chunks.next;
        if self.left.is_some() || self.gathered.len() < TAG_BYTES {
            return Err(StreamError::Truncated { chunk }.into());
        }
        if self.gathered.len() == TAG_BYTES && chunk > 0 {
            return Err(StreamError::EmptyFinal { chunk }.into());
        }
        self.open_gathered(true, sink)?;
        self.done = true;
        Ok(())
    }

    /// Opens a whole chunk from where it lies into the buffer.
    fn open<E: From<StreamError>>(
        &mut self,
        chunk: &[u8],
        last: bool,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let truncated = StreamError::Truncated { chunk: self.chunks.next };
        let (sealed, tag) = chunk.split_last_chunk::<TAG_BYTES>().ok_or(truncated)?;
        // The first chunk of a stream is its longest.
        if self.opened.capacity() == 0 {
            self.opened.reserve_exact(sealed.len());
        }
        self.opened.resize(sealed.len(), 0);
        let buffer = InOutBuf::new(sealed, &mut self.opened).map_err(|_| truncated)?;
        self.chunks.open(buffer, &Tag::from(*tag), last)?;
        self.left = less(self.left, sealed.len());
        sink(&self.opened)
    }

    /// Opens the gathered chunk in place.
    fn open_gathered<E: From<StreamError>>(
        &mut self,
        last: bool,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((chunk, tag)) = self.gathered.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(StreamError::Truncated { chunk: self.chunks.next }.into());
        };
        let tag = Tag::from(*tag);
        self.chunks.open((&mut *chunk).into(), &tag, last)?;
        self.left = less(self.left, chunk.len());
        let taken = sink(chunk);
        self.gathered.clear();
        taken
    }
}

impl fmt::Debug for StreamOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamOpener(chunk {})", self.chunks.next)
    }
}

#[cfg(test)]
mod tests {
    use aead_stream::{EncryptorBE32, Nonce as Prefix, StreamBE32};

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const SIZES: [usize; 9] = [
        0,
        1,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        2 * CHUNK_BYTES - 16,
        2 * CHUNK_BYTES,
        2 * CHUNK_BYTES + 1,
        3 * CHUNK_BYTES,
    ];

    fn plaintext(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    /// A stream that knows its length from the start has the same bytes, whatever the pieces; one that was announced longer
    /// ends where it ends, and one that goes on behind its end does not open.
    #[test]
    fn an_announced_length_changes_no_byte() {
        let announced = |plaintext: &[u8], step, length: usize| {
            let mut sealer = StreamSealer::of_length(&KEY, length as u64);
            let mut out = Vec::new();
            plaintext.chunks(step).for_each(|part| sealer.push(part, &mut out));
            sealer.finish(&mut out);
            out
        };
        for length in SIZES {
            let plaintext = plaintext(length);
            for step in [100, CHUNK_BYTES, CHUNK_BYTES + 1, 4 * CHUNK_BYTES] {
                let right = sealed(&plaintext, 1000);
                assert_eq!(announced(&plaintext, step, length), right);
                assert_eq!(announced(&plaintext, step, length + 1), right);
            }
        }
        let longer = announced(&plaintext(10), 5, 5);
        for length in [None, Some(5), Some(10)] {
            let mut opener = StreamOpener::new(&KEY, length);
            let mut sink = |_: &[u8]| Ok::<(), StreamError>(());
            let taken = opener.push(&longer, &mut sink);
            assert!(taken.and_then(|taken| opener.finish(&mut sink).map(|()| taken)) != Ok(longer.len()));
        }
    }

    fn sealed(plaintext: &[u8], step: usize) -> Vec<u8> {
        let mut sealer = StreamSealer::new(&KEY);
        let mut out = Vec::new();
        plaintext.chunks(step).for_each(|part| sealer.push(part, &mut out));
        sealer.finish(&mut out);
        out
    }

    fn opened(sealed: &[u8], length: Option<u64>, step: usize) -> Result<Vec<u8>, StreamError> {
        let mut opener = StreamOpener::new(&KEY, length);
        let mut out = Vec::new();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        for part in sealed.chunks(step) {
            assert_eq!(opener.push(part, &mut sink)?, part.len(), "nothing follows the end");
        }
        opener.finish(&mut sink)?;
        assert!(opener.is_done());
        Ok(out)
    }

    /// A stream made by hand: each part a chunk with the flag beside it.
    fn by_hand(parts: &[(&[u8], bool)]) -> Vec<u8> {
        let mut chunks = Chunks::new(&KEY);
        let mut out = Vec::new();
        for (part, last) in parts {
            seal_into(&mut chunks, part, *last, &mut out);
        }
        out
    }

    #[test]
    fn what_is_sealed_opens_whatever_the_pieces() {
        for size in SIZES {
            let plaintext = plaintext(size);
            let whole = sealed(&plaintext, usize::MAX);
            assert_eq!(whole.len() as u64, sealed_bytes(size as u64), "{size}");
            for step in [1000, CHUNK_BYTES, CHUNK_BYTES + 16, 100_000] {
                assert!(whole == sealed(&plaintext, step), "{size} in steps of {step}");
                assert!(opened(&whole, Some(size as u64), step) == Ok(plaintext.clone()), "{size}, {step}");
                assert!(opened(&whole, None, step) == Ok(plaintext.clone()), "{size}, {step}, length unknown");
            }
        }
    }

    #[test]
    fn it_is_the_stream_that_others_write() {
        // Another implementation, whose nonce is a 7-byte prefix, a 4-byte counter and the flag: with a prefix of zeros the same.
        for size in SIZES {
            let plaintext = plaintext(size);
            let mut other = EncryptorBE32::<ChaCha20Poly1305>::new(
                &KEY.into(),
                &Prefix::<ChaCha20Poly1305, StreamBE32<ChaCha20Poly1305>>::default(),
            );
            let mut expected = Vec::new();
            let mut rest = &plaintext[..];
            while rest.len() > CHUNK_BYTES {
                expected.extend(other.encrypt_next(&rest[..CHUNK_BYTES]).expect("seals"));
                rest = &rest[CHUNK_BYTES..];
            }
            expected.extend(other.encrypt_last(rest).expect("seals"));
            assert!(sealed(&plaintext, usize::MAX) == expected, "{size}");
        }
    }

    #[test]
    fn a_final_flag_that_is_cleared_or_early_is_refused() {
        let full = plaintext(CHUNK_BYTES);
        let cleared = by_hand(&[(&full, false), (b"end", false)]);
        let early = by_hand(&[(&full, true), (b"end", true)]);
        for length in [None, Some(CHUNK_BYTES as u64 + 3)] {
            assert_eq!(opened(&cleared, length, 50_000), Err(StreamError::Chunk { chunk: 1 }));
            assert_eq!(opened(&early, length, 50_000), Err(StreamError::Chunk { chunk: 0 }));
        }
    }

    #[test]
    fn swapped_dropped_and_doubled_chunks_are_refused() {
        let sealed = sealed(&plaintext(3 * CHUNK_BYTES), usize::MAX);
        let chunks: Vec<&[u8]> = sealed.chunks(CHUNK_BYTES + TAG_BYTES).collect();
        let length = 3 * CHUNK_BYTES as u64;
        for (order, unknown, known) in [
            (&[1, 0, 2][..], StreamError::Chunk { chunk: 0 }, StreamError::Chunk { chunk: 0 }),
            (&[0, 1], StreamError::Chunk { chunk: 1 }, StreamError::Truncated { chunk: 2 }),
            (&[0, 0, 1, 2], StreamError::Chunk { chunk: 1 }, StreamError::Chunk { chunk: 1 }),
            (&[1, 2], StreamError::Chunk { chunk: 0 }, StreamError::Chunk { chunk: 0 }),
            (&[], StreamError::Truncated { chunk: 0 }, StreamError::Truncated { chunk: 0 }),
        ] {
            let bytes: Vec<u8> = order.iter().flat_map(|&at| chunks[at]).copied().collect();
            assert_eq!(opened(&bytes, None, 70_000), Err(unknown), "{order:?}");
            assert_eq!(opened(&bytes, Some(length), 70_000), Err(known), "{order:?}");
        }
    }

    #[test]
    fn an_empty_extra_final_chunk_is_refused() {
        let full = plaintext(CHUNK_BYTES);
        let extra = by_hand(&[(&full, false), (b"", true)]);
        assert_eq!(opened(&extra, None, 70_000), Err(StreamError::EmptyFinal { chunk: 1 }));
        assert_eq!(opened(&extra, Some(CHUNK_BYTES as u64), 1 << 20), Err(StreamError::Chunk { chunk: 0 }));
    }

    #[test]
    fn bytes_after_the_final_chunk_are_not_taken() {
        let mut sealed = sealed(b"payload", usize::MAX);
        let end = sealed.len();
        sealed.push(0);
        let mut opener = StreamOpener::new(&KEY, Some(7));
        let taken = opener.push(&sealed, &mut |_| Ok::<(), StreamError>(())).expect("opens");
        assert_eq!((taken, opener.is_done()), (end, true));
        assert_eq!(opened(&sealed, None, 1 << 20), Err(StreamError::Chunk { chunk: 0 }));
    }

    #[test]
    fn every_bit_counts() {
        let sealed = sealed(b"a short payload", usize::MAX);
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&altered, None, 1000), Err(StreamError::Chunk { chunk: 0 }));
        }
    }
}

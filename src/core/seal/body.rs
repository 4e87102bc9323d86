//! One transaction's ciphertext: its sealed length, then private header, payload and what hides its length as one STREAM
//! (docs/wire-format.md, "Transactions"). It opens with K_tx alone: nodes keep it as it came.
//!
//! Owns the layout inside the STREAM and its checks. Must not know parcels or where K_tx comes from.

use std::fmt;

use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Nonce, Tag};

use super::compress::{CompressError, Expander};
use super::keys::TransactionKey;
use super::stream::{StreamError, StreamOpener, StreamSealer, TAG_BYTES, sealed_bytes};
use super::transaction::{Compression, IN_TRAILER, Payload, PrivateHeader, TRAILER_BYTES};
use crate::core::id::RefusalReason;
use crate::core::limits;
use crate::core::wire::{Reader, WireError, in_range};

/// Length of a transaction's sealed length, in bytes.
pub const LENGTH_BYTES: usize = 8 + TAG_BYTES;

/// Length of the field before the private header, in bytes.
const HEADER_LENGTH_BYTES: u64 = 4;

/// Why a transaction cannot be sealed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The private header is beyond a limit or contradicts itself.
    #[error("private header: {0}")]
    Header(#[from] WireError),
    /// More or fewer bytes than the header announced.
    #[error("the payload has {given} bytes, its header says {announced}")]
    Length {
        /// What the header says.
        announced: u64,
        /// What came; at least this many when it is more.
        given: u64,
    },
    /// A trailer for a header that tells the length, or none for one that does not.
    #[error("the trailer goes with a header that does not tell the payload's length, and only with it")]
    Trailer,
}

impl SealError {
    /// Whether the same call can succeed later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Why a transaction's ciphertext does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Its sealed length does not open.
    #[error("the sealed length does not open")]
    Length,
    /// Its STREAM does not open.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What opened is not what a transaction looks like.
    #[error(transparent)]
    Content(#[from] WireError),
    /// The payload does not expand as its header says.
    #[error(transparent)]
    Compression(#[from] CompressError),
}

impl BodyError {
    /// The verdict, if these bytes deserve one (R22): the same at every node.
    pub fn refusal(&self) -> Option<RefusalReason> {
        match self {
            Self::Length | Self::Stream(_) => Some(RefusalReason::Stream),
            Self::Content(error) => (!error.retryable()).then_some(RefusalReason::Malformed),
            Self::Compression(error) => (!error.retryable()).then_some(RefusalReason::Compression),
        }
    }

    /// Whether the same bytes may open later: under a later version, or when this process has memory.
    pub fn retryable(&self) -> bool {
        self.refusal().is_none()
    }
}

/// The key of the sealed length seals nothing else, so its nonce is zeros.
fn length_cipher(key: &TransactionKey) -> (ChaCha20Poly1305, Nonce) {
    (ChaCha20Poly1305::new((&*key.length_key()).into()), Nonce::default())
}

/// Length of the whole ciphertext of a STREAM of `length` plaintext bytes, with its sealed length.
fn ciphertext_bytes(length: u64) -> u64 {
    sealed_bytes(length).saturating_add(LENGTH_BYTES as u64)
}

/// Plaintext bytes of the STREAM without what pads it.
fn content_bytes(header_bytes: usize, carried: u64) -> u64 {
    HEADER_LENGTH_BYTES.saturating_add(header_bytes as u64).saturating_add(carried)
}

/// Seals one transaction.
#[derive(Debug)]
pub(super) struct BodySealer {
    stream: StreamSealer,
    announced: Option<Payload>,
    compression: Compression,
    carried: u64,
    /// Zeros that follow the payload.
    padding: u64,
}

impl BodySealer {
    /// Seals length and header into `out`.
    pub(super) fn new(key: &TransactionKey, header: &PrivateHeader, out: &mut Vec<u8>) -> Result<Self, SealError> {
        let header_bytes = header.encode()?;
        let (length, padding) = match header.payload {
            None => (IN_TRAILER, 0),
            Some(payload) => {
                let content = content_bytes(header_bytes.len(), payload.carried);
                let padded = header.padding.padded(content);
                (padded, padded - content)
            }
        };
        let (aead, nonce) = length_cipher(key);
        let mut sealed = length.to_be_bytes();
        let Ok(tag) = aead.encrypt_inout_detached(&nonce, b"", sealed.as_mut_slice().into()) else {
            unreachable!("8 bytes are below every limit of the cipher")
        };
        out.extend_from_slice(&sealed);
        out.extend_from_slice(&tag);
        let mut stream = match header.payload {
            // Its length says how much room it takes at most; a trailer comes after what nobody knows yet.
            Some(_) => StreamSealer::of_length(&key.stream_key(), length),
            None => StreamSealer::new(&key.stream_key()),
        };
        // At most 32 KiB.
        stream.push(&(header_bytes.len() as u32).to_be_bytes(), out);
        stream.push(&header_bytes, out);
        Ok(Self { stream, announced: header.payload, compression: header.compression, carried: 0, padding })
    }

    /// More of the payload, as it is carried.
    pub(super) fn push(&mut self, carried: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let given = self.carried.saturating_add(carried.len() as u64);
        let announced = self.announced.map_or(limits::PAYLOAD_BYTES, |payload| payload.carried);
        if given > announced {
            return Err(SealError::Length { announced, given });
        }
        self.carried = given;
        self.stream.push(carried, out);
        Ok(())
    }

    /// Ends it. A trailer goes with a header without lengths.
    pub(super) fn finish(mut self, trailer: Option<Payload>, out: &mut Vec<u8>) -> Result<Payload, SealError> {
        let payload = match (self.announced, trailer) {
            (Some(announced), None) => announced,
            (None, Some(trailer)) => trailer,
            _ => return Err(SealError::Trailer),
        };
        if payload.carried != self.carried {
            return Err(SealError::Length { announced: payload.carried, given: self.carried });
        }
        if trailer.is_some() {
            let bytes = payload.trailer();
            Payload::from_trailer(&bytes, self.compression)?;
            self.stream.push(&bytes, out);
        }
        const ZEROS: &[u8] = &[0; 4096];
        while self.padding > 0 {
            let part = ZEROS.get(..self.padding as usize).unwrap_or(ZEROS);
            self.stream.push(part, out);
            self.padding -= part.len() as u64;
        }
        self.stream.finish(out);
        Ok(payload)
    }
}

/// What opening a transaction's ciphertext gives, in this order.
#[derive(Debug)]
pub enum BodyEvent<'a> {
    /// How long the whole ciphertext is, with its sealed length; `None` when it ends where the bytes end.
    Length(Option<u64>),
    /// The private header; its first chunk was authenticated.
    Header(&'a PrivateHeader),
    /// Payload bytes, expanded; their chunk was authenticated. That the payload is whole is known only at the end.
    Payload(&'a [u8]),
}

/// A transaction that was opened to its end: everything agrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedBody {
    /// Its private header.
    pub header: PrivateHeader,
    /// Its true lengths and its tag, from header or trailer.
    pub payload: Payload,
}

/// Opens one transaction's ciphertext (sealed length and STREAM) as it comes, with K_tx alone.
pub struct BodyOpener {
    key: TransactionKey,
    length: Vec<u8>,
    stream: Option<StreamOpener>,
    content: Content,
}

impl BodyOpener {
    /// Starts at the sealed length.
    pub fn new(key: &TransactionKey) -> Self {
        Self { key: key.clone(), length: Vec::new(), stream: None, content: Content::default() }
    }

    /// Whether its end was reached: known before [`BodyOpener::finish`] only when the sealed length tells it.
    pub fn is_done(&self) -> bool {
        self.stream.as_ref().is_some_and(StreamOpener::is_done)
    }

    /// The private header, once its chunk was opened.
    pub fn header(&self) -> Option<&PrivateHeader> {
        self.content.header.as_ref()
    }

    /// What expanding its payload can come to hold in memory, in bytes; 0 when it is not compressed, or not known to be yet.
    pub fn expanding_bytes(&self) -> usize {
        self.content.expander.as_ref().map_or(0, Expander::most_bytes)
    }

    /// Takes more ciphertext and gives `sink` what it opens. Returns how many bytes it took: fewer than given only when the
    /// transaction ended within them. Errors: [`BodyError`]; after one the opener is of no use, and what it gave is no payload.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl FnMut(BodyEvent<'_>)) -> Result<usize, BodyError> {
        let mut rest = bytes;
        if self.stream.is_none() {
            let (taken, after) = rest.split_at_checked(LENGTH_BYTES - self.length.len()).unwrap_or((rest, &[]));
            self.length.extend_from_slice(taken);
            rest = after;
            if self.length.len() == LENGTH_BYTES {
                let length = open_length(&self.key, &self.length)?;
                sink(BodyEvent::Length(length.map(ciphertext_bytes)));
                self.content.length = length;
                self.stream = Some(StreamOpener::new(&self.key.stream_key(), length));
            }
        }
        if let Some(stream) = &mut self.stream {
            let content = &mut self.content;
            let taken = stream.push(rest, &mut |chunk: &[u8]| content.chunk(chunk, sink))?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(bytes.len() - rest.len())
    }

    /// Says that no more bytes come and checks that all is there: lengths, trailer, padding. Errors: [`BodyError`].
    pub fn finish(mut self, sink: &mut impl FnMut(BodyEvent<'_>)) -> Result<OpenedBody, BodyError> {
        let Some(stream) = &mut self.stream else {
            return Err(StreamError::Truncated { chunk: 0 }.into());
        };
        let content = &mut self.content;
        stream.finish(&mut |chunk: &[u8]| content.chunk(chunk, sink))?;
        self.content.finish()
    }
}

impl fmt::Debug for BodyOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyOpener").field("stream", &self.stream).finish_non_exhaustive()
    }
}

fn open_length(key: &TransactionKey, sealed: &[u8]) -> Result<Option<u64>, BodyError> {
    let mut reader = Reader::new(sealed);
    let mut length = reader.array::<8>("length")?;
    let tag = Tag::from(reader.array::<TAG_BYTES>("length")?);
    let (aead, nonce) = length_cipher(key);
    aead.decrypt_inout_detached(&nonce, b"", length.as_mut_slice().into(), &tag).map_err(|_| BodyError::Length)?;
    match u64::from_be_bytes(length) {
        IN_TRAILER => Ok(None),
        length => Ok(Some(in_range(length, HEADER_LENGTH_BYTES + 1, limits::STREAM_BYTES, "transaction length")?)),
    }
}

/// What stands inside the STREAM, taken apart chunk by chunk.
#[derive(Default)]
struct Content {
    /// Plaintext bytes of the STREAM, when the sealed length tells them.
    length: Option<u64>,
    header: Option<PrivateHeader>,
    expander: Option<Expander>,
    /// Carried bytes so far.
    carried: u64,
    /// Payload bytes so far.
    given: u64,
    /// The last bytes of a STREAM of unknown length: perhaps the trailer.
    held: Vec<u8>,
}

impl Content {
    fn chunk(&mut self, chunk: &[u8], sink: &mut impl FnMut(BodyEvent<'_>)) -> Result<(), BodyError> {
        if self.header.is_some() {
            return self.carry(chunk, sink);
        }
        let mut reader = Reader::new(chunk);
        let header = reader.long_bytes(limits::PRIVATE_HEADER_BYTES, "private header")?;
        let header_bytes = header.len();
        let header = PrivateHeader::decode(header)?;
        let most = match (self.length, header.payload) {
            (Some(length), Some(payload)) => {
                let padded = header.padding.padded(content_bytes(header_bytes, payload.carried));
                if length != padded {
                    let expected = "that of header, payload and padding";
                    return Err(WireError::Invalid { field: "transaction length", expected }.into());
                }
                payload.bytes
            }
            (None, None) => limits::PAYLOAD_BYTES,
            _ => {
                let expected = "lengths in the header, or 2^64-1 in both and a trailer";
                return Err(WireError::Invalid { field: "payload length", expected }.into());
            }
        };
        if header.compression == Compression::Zstd {
            self.expander = Some(Expander::new(most)?);
        }
        sink(BodyEvent::Header(self.header.insert(header)));
        self.carry(reader.rest(), sink)
    }

    /// Bytes behind the private header.
    fn carry(&mut self, bytes: &[u8], sink: &mut impl FnMut(BodyEvent<'_>)) -> Result<(), BodyError> {
        match self.header.as_ref().and_then(|header| header.payload) {
            Some(payload) => {
                let left = usize::try_from(payload.carried - self.carried).unwrap_or(usize::MAX);
                let (carried, padding) = bytes.split_at_checked(left).unwrap_or((bytes, &[]));
                if padding.iter().any(|&byte| byte != 0) {
                    return Err(WireError::Invalid { field: "padding", expected: "zeros" }.into());
                }
                self.give(carried, sink)
            }
            None => {
                // Whatever comes last is the trailer: the last 48 bytes are held back.
                let ready = (self.held.len() + bytes.len()).saturating_sub(TRAILER_BYTES);
                let from_held = ready.min(self.held.len());
                let (before, after) = bytes.split_at_checked(ready - from_held).unwrap_or((bytes, &[]));
                let mut first = [0; TRAILER_BYTES];
                first.iter_mut().zip(self.held.drain(..from_held)).for_each(|(to, byte)| *to = byte);
                self.give(first.get(..from_held).unwrap_or_default(), sink)?;
                self.give(before, sink)?;
                self.held.extend_from_slice(after);
                Ok(())
            }
        }
    }

    /// Carried bytes: expanded if need be, counted and given.
    fn give(&mut self, carried: &[u8], sink: &mut impl FnMut(BodyEvent<'_>)) -> Result<(), BodyError> {
        if carried.is_empty() {
            return Ok(());
        }
        self.carried = self.carried.saturating_add(carried.len() as u64);
        in_range(self.carried, 0, limits::PAYLOAD_BYTES, "carried length")?;
        let given = &mut self.given;
        let mut give = |bytes: &[u8]| {
            *given = given.saturating_add(bytes.len() as u64);
            sink(BodyEvent::Payload(bytes));
        };
        match &mut self.expander {
            Some(expander) => expander.push(carried, &mut give)?,
            None => give(carried),
        }
        Ok(())
    }

    /// All chunks were opened: checks what only the end tells.
    fn finish(self) -> Result<OpenedBody, BodyError> {
        // The first chunk gives the header or an error, and no stream ends without one.
        let header = self.header.ok_or(StreamError::Truncated { chunk: 0 })?;
        let payload = match header.payload {
            Some(payload) => payload,
            None => Payload::from_trailer(&self.held, header.compression)?,
        };
        if payload.carried != self.carried {
            let expected = "as many bytes as there are";
            return Err(WireError::Invalid { field: "carried length", expected }.into());
        }
        if let Some(expander) = &self.expander {
            expander.finish()?;
        }
        if payload.bytes != self.given {
            return Err(CompressError::Length.into());
        }
        Ok(OpenedBody { header, payload })
    }
}

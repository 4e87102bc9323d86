//! The checked reader and writer of everything binary, and the labels that keep one hash, signature or derivation apart
//! from another. Integers are big-endian.
//!
//! Owns how bytes are taken apart; must not know what they mean.

use super::limits;

/// What is wrong with bytes from outside: always which field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside this field.
    #[error("{field}: needs {needed} bytes, {left} are left")]
    Truncated {
        /// The field that was being read.
        field: &'static str,
        /// How many bytes it takes.
        needed: usize,
        /// How many there are.
        left: usize,
    },
    /// Bytes follow what should be the end.
    #[error("{after}: {left} bytes follow the end")]
    Trailing {
        /// What has ended.
        after: &'static str,
        /// How many bytes are too many.
        left: usize,
    },
    /// A number or length outside its range.
    #[error("{field}: {value} is outside {lowest}..={highest}")]
    Range {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// Its smallest value.
        lowest: u64,
        /// Its greatest value.
        highest: u64,
    },
    /// A value that this version does not know: perhaps from a later version, so deferred and never a verdict (R21).
    #[error("{field}: {value} is unknown to this version")]
    Unknown {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A field that must hold something else; `expected` says what.
    #[error("{field}: expected {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
    },
}

impl WireError {
    /// Whether reading the same bytes again can succeed: only under a later version.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// Takes bytes apart without ever reading past their end. No method panics.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// What is left, without taking it.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `length` bytes. Errors: [`WireError::Truncated`].
    pub fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(WireError::Truncated { field, needed: length, left: self.rest.len() }),
        }
    }

    /// The next `N` bytes as an array. Errors: [`WireError::Truncated`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let left = self.rest.len();
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(WireError::Truncated { field, needed: N, left }),
        }
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// A flag: 0 or 1, nothing else.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Range { field, value: other.into(), lowest: 0, highest: 1 }),
        }
    }

    /// One byte that is the number of an entry of a closed list. Errors: [`WireError::Unknown`] too.
    pub fn listed<T>(&mut self, from_number: fn(u8) -> Option<T>, field: &'static str) -> Result<T, WireError> {
        let number = self.u8(field)?;
        from_number(number).ok_or(WireError::Unknown { field, value: number.into() })
    }

    /// Bytes behind their u16 length, which is at most `most`. The limit is checked before the bytes.
    pub fn short_bytes(&mut self, most: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let length = self.u16(field)?;
        in_range(length.into(), 0, most as u64, field)?;
        self.take(length.into(), field)
    }

    /// Bytes behind their u32 length, which is at most `most`. The limit is checked before the bytes.
    pub fn long_bytes(&mut self, most: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let length = self.u32(field)?;
        in_range(length.into(), 0, most as u64, field)?;
        self.take(length as usize, field)
    }

    /// A name behind its u8 length.
    pub fn name<T: std::str::FromStr>(&mut self, field: &'static str) -> Result<T, WireError> {
        let length = self.u8(field)?;
        in_range(length.into(), 1, limits::NAME_BYTES as u64, field)?;
        let bytes = self.take(length.into(), field)?;
        let text = std::str::from_utf8(bytes).map_err(|_| WireError::Invalid { field, expected: "a name" })?;
        text.parse().map_err(|_| WireError::Invalid { field, expected: "a name" })
    }

    /// Ends the reading: nothing may be left. Errors: [`WireError::Trailing`].
    pub fn finish(self, after: &'static str) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(WireError::Trailing { after, left }),
        }
    }
}

/// Checks a number against its range. Errors: [`WireError::Range`].
pub fn in_range(value: u64, lowest: u64, highest: u64, field: &'static str) -> Result<u64, WireError> {
    if (lowest..=highest).contains(&value) {
        Ok(value)
    } else {
        Err(WireError::Range { field, value, lowest, highest })
    }
}

/// Puts bytes together. What is written comes from this process, so it has no errors; callers keep lengths within their
/// field (`short_bytes` to 65,535 and `name` to 255, both cut by [`limits`] long before).
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts empty, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// Bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    /// A flag: 0 or 1.
    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// Bytes behind their u16 length.
    pub fn short_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(u16::try_from(bytes.len()).is_ok());
        self.u16(bytes.len() as u16).put(bytes)
    }

    /// Bytes behind their u32 length.
    pub fn long_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        debug_assert!(u32::try_from(bytes.len()).is_ok());
        self.u32(bytes.len() as u32).put(bytes)
    }

    /// A name behind its u8 length.
    pub fn name(&mut self, name: &str) -> &mut Self {
        debug_assert!(u8::try_from(name.len()).is_ok());
        self.u8(name.len() as u8).put(name.as_bytes())
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Ends the writing.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// The labels: `L(x)` is ASCII `sealcast/v1 x` and a zero byte. Every signed, hashed or derived input starts with
        /// its own, so that none can stand for another.
        pub mod label {
            $($(#[$doc])* pub const $name: &[u8] = concat!("sealcast/v1 ", $text, "\0").as_bytes();)*

            /// All of them, for the test that they are distinct and none begins another.
            pub const ALL: &[&[u8]] = &[$($name),*];
        }
    };
}

labels! {
    /// A destination's tag.
    DESTINATION = "destination";
    /// An HPKE public key's id.
    KEY_ID = "key-id";
    /// ctx: what a parcel's keys are bound to.
    PARCEL = "parcel";
    /// A stripe header's digest.
    HEADER = "header";
    /// A stripe header's signature.
    STRIPE = "stripe";
    /// A segment's UUID.
    SEGMENT = "segment";
    /// The key commitment.
    COMMIT = "commit";
    /// HPKE's info when K is wrapped for a destination.
    WRAP = "wrap";
    /// E: the envelope's hash.
    ENVELOPE = "envelope";
    /// K_tx: a transaction's key.
    TX = "tx";
    /// tx_commit: a commitment to K_tx.
    TX_COMMIT = "tx-commit";
    /// The key that seals a transaction's length.
    LENGTH = "length";
    /// The key of a transaction's STREAM.
    STREAM = "stream";
    /// A Merkle leaf.
    LEAF = "leaf";
    /// A Merkle inner node.
    NODE = "node";
    /// The key of a sender's payload tags, derived from its seed.
    PAYLOAD_TAG = "payload-tag";
    /// The key under which a sender's outbox keeps transaction keys, derived from its seed.
    OUTBOX = "outbox";
    /// An ordering key's tag under a destination's index secret.
    KEY_TAG = "key-tag";
    /// An idempotency key's tag under a destination's index secret.
    IDEMPOTENCY_TAG = "idempotency-tag";
    /// A transaction's ciphertext digest.
    BODY = "body";
    /// A manifest's digest.
    MANIFEST = "manifest";
    /// The running digest over apply's changes.
    STATE = "state";
    /// A directory's signature.
    DIRECTORY = "directory";
    /// A receipt's leaf in its batch's tree.
    RECEIPT = "receipt";
    /// The key of a record on the notices topic.
    NOTICE = "notice";
    /// The signature over a batch of receipts.
    RECEIPTS = "receipts";
    /// A refusal's signature.
    REFUSAL = "refusal";
    /// A missing notice's signature.
    MISSING = "missing";
    /// A sender's query's signature.
    QUERY = "query";
    /// A destination's key ring, sealed to a node.
    KEY_RING = "key-ring";
    /// K_tx at rest, wrapped under a node's storage key.
    AT_REST = "at-rest";
    /// K_tx wrapped to a node or reader that asked for it.
    GRANT = "grant";
    /// A frame of the embedded transport's log.
    RECORDS = "records";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_none_begins_another() {
        for (at, one) in label::ALL.iter().enumerate() {
            for other in label::ALL.iter().skip(at + 1) {
                assert!(!one.starts_with(other) && !other.starts_with(one));
            }
        }
    }

    #[test]
    fn a_reader_never_reads_past_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u16("a"), Ok(0x0102));
        assert_eq!(reader.u32("b"), Err(WireError::Truncated { field: "b", needed: 4, left: 1 }));
        assert_eq!(reader.left(), 1);
        assert_eq!(reader.clone().finish("all"), Err(WireError::Trailing { after: "all", left: 1 }));
        assert_eq!(reader.u8("c"), Ok(3));
        assert_eq!(reader.finish("all"), Ok(()));
    }

    #[test]
    fn a_length_is_checked_against_its_limit_before_its_bytes() {
        let bytes = u32::MAX.to_be_bytes();
        assert_eq!(
            Reader::new(&bytes).long_bytes(16, "x"),
            Err(WireError::Range { field: "x", value: u32::MAX.into(), lowest: 0, highest: 16 })
        );
    }

    #[test]
    fn a_flag_is_zero_or_one() {
        assert_eq!(Reader::new(&[1]).flag("f"), Ok(true));
        assert!(Reader::new(&[2]).flag("f").is_err());
    }
}

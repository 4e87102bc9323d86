//! Sealing and opening for the arms that are not Sealcast: the same HPKE, envelope and chunks by the same public interface, one
//! transaction in a parcel, so that all sealed arms carry the same bytes and pay the same cryptography.

use std::time::Duration;

use sealcast::core::id::{DestinationTag, PayloadTag, Suite, TransactionId};
use sealcast::core::seal::suite::{HpkeSecret, WRAP_RANDOMNESS_BYTES};
use sealcast::core::seal::transaction::{Payload, PrivateHeader};
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, ParcelSealer, WrapTarget};
use sealcast::seams::Seams;
use zeroize::Zeroizing;

use crate::Failure;

/// A key pair that senders and readers share.
pub struct Seal {
    seams: Seams,
    secret: HpkeSecret,
    tag: DestinationTag,
}

/// Every message has a context of its own, as every parcel has.
fn context(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_be_bytes()).as_bytes()
}

impl Seal {
    /// A fresh key of suite 1.
    pub fn new(seams: &Seams) -> Result<Self, Failure> {
        let secret = HpkeSecret::generate(Suite::X25519, &seams.randomness.array()?)?;
        Ok(Self { seams: seams.clone(), secret, tag: DestinationTag([7; 16]) })
    }

    /// The sealed bytes of a message.
    pub fn seal(&self, number: u64, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        let random = &self.seams.randomness;
        let (now, k) = (self.seams.clock.now(), Zeroizing::new(random.array()?));
        let draws: [[u8; WRAP_RANDOMNESS_BYTES]; 1] = [random.array()?];
        let id = TransactionId::from_parts(now, random.array()?);
        let content = Payload::plain(payload.len() as u64, PayloadTag([0; 32]));
        let header = PrivateHeader::new(id, now.after(Duration::from_secs(3600)), Some(content), [self.tag]);
        let target = WrapTarget { tag: self.tag, public: self.secret.public().clone() };
        // Chunks of 64 KiB have a tag each; envelope and header are below 1 KiB.
        let mut sealed = Vec::with_capacity(payload.len() + payload.len() / 2048 + 1024);
        let mut sealer = ParcelSealer::new(&context(number), &[target], 1, &k, &draws, &mut sealed)?;
        sealer.seal(header, payload, &mut sealed)?;
        sealer.finish()?;
        Ok(sealed)
    }

    /// Opens all of a message; gives the length of its payload.
    pub fn open(&self, number: u64, sealed: &[u8]) -> Result<usize, Failure> {
        let context = ParcelContext {
            ctx: context(number),
            suite: Suite::X25519,
            destinations: vec![(self.tag, self.secret.public().id())],
        };
        let mut opener = ParcelOpener::new(context, self.tag, self.secret.clone());
        let mut length = 0;
        let mut sink = |event: Event<'_>| {
            if let Event::Payload { bytes, .. } = event {
                length += bytes.len();
            }
        };
        opener.push(sealed, &mut sink)?;
        opener.finish(&mut sink)?;
        Ok(length)
    }
}

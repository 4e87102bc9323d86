//! Sealing and opening: HPKE suites, the envelope, the STREAM, transactions (design, section 3).
//! Must not know how sealed bytes are cut or carried.
//!
//! ```text
//! suite -------> envelope -.
//! keys --> stream -.        +-> sealer, opener      custody: K_tx at rest and in grants
//! transaction -----+> body -'
//! compress --------'
//! ```

mod body;
pub mod compress;
pub mod custody;
mod envelope;
pub mod keys;
mod opener;
mod parcel;
mod sealer;
pub mod stream;
pub mod suite;
pub mod transaction;

pub use body::{BodyError, BodyEvent, BodyOpener, LENGTH_BYTES, OpenedBody, SealError};
pub use envelope::{EnvelopeError, EnvelopeOpenError, MAGIC, ParcelContext, VERSION, WrapTarget, envelope_bytes};
pub use opener::{Event, OpenError, ParcelOpener};
pub use parcel::{BodyDigest, SealedTransaction};
pub use sealer::{ParcelSealError, ParcelSealer};

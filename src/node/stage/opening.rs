//! One parcel that is being opened, stripe by stripe: what comes of it is a parcel to store, or why there is none (R24).
//!
//! Owns the opener, the envelope and the bodies that are written. Blocks where it opens, and runs on threads made for that.
//! Must not keep plaintext, nor wait for anything but the disk.

use std::sync::Arc;

use bytes::Bytes;

use super::undecided::{Counted, too_many};
use crate::core::decide::{Manifest, ManifestItem};
use crate::core::gather::{DeferReason, Delivery};
use crate::core::id::{RefusalReason, Time};
use crate::core::seal::custody::{NONCE_BYTES, StorageKey};
use crate::core::seal::keys::TransactionKey;
use crate::core::seal::{BodyError, EnvelopeOpenError, Event, OpenError, ParcelContext, ParcelOpener, envelope_bytes};
use crate::core::split::header::Core;
use crate::node::group::GroupContext;
use crate::store::StoreError;
use crate::store::bodies::{BodyWriter, FinishedBody};
use crate::store::group::{NewBody, NewParcel};

/// What a transaction costs that is whole, in bytes, while its parcel is not: its item, its key, where its body is.
const WHOLE_BYTES: usize = 1024;

/// Why a parcel's bytes came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    Refused(RefusalReason),
    Deferred(DeferReason, String),
    Fatal(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull { .. } | StoreError::Unwritten { .. } => {
                Self::Deferred(DeferReason::Local, error.to_string())
            }
            error => Self::Fatal(error),
        }
    }
}

/// What came of opening some bytes of a parcel.
pub(super) enum Step {
    More(Box<Opening>),
    Whole(Box<NewParcel>, Counted),
    Failed(Fault),
}

/// One parcel that is being opened. Its keys are wiped with it.
pub(super) struct Opening {
    context: Arc<GroupContext>,
    /// When the parcel's first segment came, if that is known.
    first: Option<Time>,
    storage: StorageKey,
    core: Core,
    /// `None` when this node lacks the key that the core names.
    opener: Option<ParcelOpener>,
    envelope: Vec<u8>,
    envelope_bytes: usize,
    bodies: Bodies,
}

/// The bodies of a parcel as its opener gives them.
#[derive(Default)]
struct Bodies {
    current: Option<BodyWriter>,
    whole: Vec<(ManifestItem, TransactionKey, FinishedBody)>,
    failed: Option<StoreError>,
}

impl Bodies {
    fn take(&mut self, context: &GroupContext, event: Event<'_>) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_take(context, event) {
            self.failed = Some(error);
        }
    }

    fn try_take(&mut self, context: &GroupContext, event: Event<'_>) -> Result<(), StoreError> {
        match event {
            Event::Begin { .. } => self.current = Some(context.store.body_writer()),
            Event::Ciphertext { bytes, .. } => {
                if let Some(writer) = &mut self.current {
                    writer.push(bytes)?;
                }
            }
            // Opened to be authenticated; nothing of it is kept.
            Event::Header { .. } | Event::Payload { .. } => {}
            Event::End(transaction) => {
                if let Some(writer) = self.current.take() {
                    let item = ManifestItem::of(&transaction, &context.tag, context.ring.index_secret());
                    // Before its file is made durable, which has nothing to do with it.
                    let (node, destination, id) = (&context.node, &context.destination, item.transaction);
                    tracing::debug!(%node, %destination, transaction = %id, "opened: whole and genuine");
                    self.whole.push((item, transaction.key.clone(), writer.finish()?));
                }
            }
        }
        Ok(())
    }
}

impl Opening {
    pub(super) fn new(context: &Arc<GroupContext>, storage: StorageKey, core: &Core, first: Option<Time>) -> Self {
        let parcel = ParcelContext {
            ctx: core.context(),
            suite: core.suite,
            destinations: core.destinations.iter().map(|destination| (destination.tag, destination.key)).collect(),
        };
        let envelope_bytes = envelope_bytes(core.suite, core.destinations.len());
        let secret = core.destination(&context.tag).and_then(|own| context.ring.secret(&own.key)).cloned();
        Self {
            context: Arc::clone(context),
            first,
            storage,
            core: core.clone(),
            opener: secret.map(|secret| ParcelOpener::new(parcel, context.tag, secret)),
            envelope: Vec::new(),
            envelope_bytes,
            bodies: Bodies::default(),
        }
    }

    /// What it may come to hold in memory between its steps, in bytes, beside buffers and an open file; small bodies have a
    /// bound of their own.
    pub(super) fn held_bytes(&self) -> usize {
        let expanding = self.opener.as_ref().map_or(0, ParcelOpener::expanding_bytes);
        self.envelope.len() + self.bodies.whole.len() * WHOLE_BYTES + expanding
    }

    /// Opens one stripe. Blocks.
    pub(super) fn step(mut self: Box<Self>, delivery: &Delivery) -> Step {
        match self.open(delivery) {
            Ok(()) if !delivery.header.last => Step::More(self),
            Ok(()) => match self.finish(delivery) {
                Ok((parcel, counted)) => Step::Whole(Box::new(parcel), counted),
                Err(fault) => Step::Failed(fault),
            },
            Err(fault) => Step::Failed(fault),
        }
    }

    fn open(&mut self, delivery: &Delivery) -> Result<(), Fault> {
        let Some(opener) = &mut self.opener else {
            let cause = "this node's key ring lacks the key that the parcel is sealed to: give it the newest key ring";
            return Err(Fault::Deferred(DeferReason::KeyMissing, cause.to_owned()));
        };
        let missing = self.envelope_bytes.saturating_sub(self.envelope.len());
        self.envelope.extend_from_slice(delivery.sealed.get(..missing).unwrap_or(&delivery.sealed));
        let (context, bodies) = (&self.context, &mut self.bodies);
        let pushed = opener.push(&delivery.sealed, &mut |event| bodies.take(context, event));
        Self::outcome(&mut self.bodies, pushed.map_err(|error| fault_of(&error)))
    }

    /// A fault of the store comes before what the bytes deserve: it is local, and may be why they look wrong.
    fn outcome<T>(bodies: &mut Bodies, opened: Result<T, Fault>) -> Result<T, Fault> {
        match bodies.failed.take() {
            Some(error) => Err(error.into()),
            None => opened,
        }
    }

    fn finish(self: Box<Self>, delivery: &Delivery) -> Result<(NewParcel, Counted), Fault> {
        let Self { context, first, storage, core, opener, envelope, mut bodies, .. } = *self;
        let local = |cause: String| Fault::Deferred(DeferReason::Local, cause);
        let opener = opener.ok_or_else(|| local("the parcel was not opened".to_owned()))?;
        let finished = opener.finish(&mut |event| bodies.take(&context, event)).map_err(|error| fault_of(&error));
        Self::outcome(&mut bodies, finished)?;
        // The expiry is what the directory in force bounds: a later deadline would let a transaction wait for ever (R7).
        if bodies.whole.iter().any(|(item, ..)| item.deadline > core.expiry) {
            return Err(Fault::Refused(RefusalReason::Malformed));
        }
        let directory = context.in_force.borrow().clone();
        let Some(sender) = directory.sender_by_key(&core.sender) else {
            let cause = "the directory does not list the sender any more".to_owned();
            return Err(Fault::Deferred(DeferReason::UnknownSender, cause));
        };
        let digest = delivery.digest;
        let (mut items, mut new_bodies) = (Vec::new(), Vec::new());
        // Drawn at once: each draw is a system call.
        let mut nonces = vec![0; NONCE_BYTES * bodies.whole.len()];
        context.seams.randomness.fill(&mut nonces).map_err(|error| local(error.to_string()))?;
        for ((item, key, body), nonce) in bodies.whole.into_iter().zip(nonces.as_chunks::<NONCE_BYTES>().0) {
            let wrapped = storage.wrap(&context.node, &digest, &item.transaction, &key, nonce);
            new_bodies.push(NewBody { index: item.index, body, wrapped_key: wrapped.to_vec() });
            items.push(item);
        }
        let manifest = Manifest {
            parcel: core.parcel,
            digest,
            sender: sender.name.clone(),
            epoch: core.epoch,
            expiry: core.expiry,
            items,
        };
        // Counted before it is looked at, so that of several that are looked at together each sees the others.
        let (counted, coming) = context.on_the_way.add(&sender.name, manifest.items.len());
        if let Some(cause) = too_many(&context, &manifest, coming)? {
            return Err(Fault::Deferred(DeferReason::Undecided, cause));
        }
        let staged = context.seams.clock.now();
        let parcel = NewParcel { manifest, first, staged, envelope: Bytes::from(envelope), bodies: new_bodies };
        Ok((parcel, counted))
    }
}

fn fault_of(error: &OpenError) -> Fault {
    if let Some(reason) = error.refusal() {
        return Fault::Refused(reason);
    }
    let reason = match error {
        OpenError::Envelope(EnvelopeOpenError::OtherKey { .. } | EnvelopeOpenError::NotAddressed(_)) => {
            DeferReason::KeyMissing
        }
        OpenError::Transaction { cause: BodyError::Compression(_), .. } => DeferReason::Local,
        _ => DeferReason::UnknownVersion,
    };
    Fault::Deferred(reason, error.to_string())
}

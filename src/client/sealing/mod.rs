//! From transactions to signed stripes: keys, envelope, private headers, compression, splitting, and the rows that the outbox
//! keeps beside them. Blocking work; must not wait for anything.

mod renew;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use chacha20poly1305::{AeadInOut as _, KeyInit as _, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::bundle::Prepared;
use super::counting::Directories;
use super::error::ClientError;
use super::notices::Positions;
use super::stream::{READ, frame};
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, Digest, Epoch, ParcelId, PayloadTag, Position, Suite, Time, TransactionId};
use crate::core::seal::compress::Compressor;
use crate::core::seal::keys::{PayloadTagger, TransactionKey};
use crate::core::seal::suite::HpkePublic;
use crate::core::seal::transaction::{
    Compression, ExpectedVersion, Order, Padding, Payload, Predecessor, PrivateHeader,
};
use crate::core::seal::{ParcelSealer, SealedTransaction, WrapTarget, envelope_bytes};
use crate::core::sign::SecretKey;
use crate::core::split::header::{Core, CoreDestination, Profile};
use crate::core::split::stripe::{Splitter, Stripe};
use crate::core::wire::label;
use crate::seams::Seams;
use crate::store::outbox::{self, Bodies, NewBody, Outbox, OutcomeRow, ParcelRow, TransactionRow};
use crate::telemetry::logs::parcel_span;
use crate::telemetry::{Meter, names};
use crate::transport::publisher::Layout;

/// Domains that are assumed while the brokers cannot be asked.
const USUAL_DOMAINS: usize = 3;

/// Who seals, and how.
pub struct Identity {
    /// The sender's signing key.
    pub key: SecretKey,
    /// The suite.
    pub suite: Suite,
}

/// How a destination's topic is laid out, where that is known.
pub type LayoutOf = Box<dyn Fn(&DestinationName) -> Option<Layout> + Send + Sync>;

/// Makes parcels. One for each start of a client: the epoch is its own.
pub struct Sealer {
    identity: Identity,
    outbox_key: Zeroizing<[u8; 32]>,
    epoch: Epoch,
    directories: Arc<Directories>,
    layout_of: LayoutOf,
    positions: Positions,
    sequences: Mutex<BTreeMap<DestinationName, u64>>,
    seams: Seams,
    meter: Meter,
}

/// A parcel that was sealed in one piece.
pub struct Sealed {
    /// Its row.
    pub row: ParcelRow,
    /// Its bytes, durable already if they are a file.
    pub body: NewBody,
    /// Its transactions' rows.
    pub transactions: Vec<TransactionRow>,
    /// Its stripes, to publish.
    pub stripes: Vec<Stripe>,
}

fn seal_error(error: impl std::fmt::Display) -> ClientError {
    ClientError::Seal { cause: error.to_string() }
}

struct Begun {
    row: ParcelRow,
    directory: Arc<Directory>,
    sealer: ParcelSealer,
    splitter: Splitter,
    /// The envelope's bytes.
    head: Vec<u8>,
}

impl Sealer {
    /// Draws the epoch. Errors: [`ClientError::Randomness`].
    pub fn new(
        identity: Identity,
        directories: Arc<Directories>,
        layout_of: LayoutOf,
        positions: Positions,
        seams: Seams,
        meter: Meter,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            outbox_key: identity.key.derive(label::OUTBOX),
            epoch: Epoch(seams.randomness.array()?),
            identity,
            directories,
            layout_of,
            positions,
            sequences: Mutex::default(),
            seams,
            meter,
        })
    }

    /// The epoch of this start.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The most bytes that a transaction can take in the outbox: header, chunk tags, padding, frame.
    pub fn most_bytes(prepared: &Prepared) -> u64 {
        Self::most_bytes_with(prepared, prepared.transaction.payload.len() as u64)
    }

    /// The same for a payload of `payload` bytes that comes by itself.
    fn most_bytes_with(prepared: &Prepared, payload: u64) -> u64 {
        let transaction = &prepared.transaction;
        let headers: usize = transaction.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let rest = 2048 + headers + 64 * prepared.destinations.len();
        // Padmé adds up to an eighth, zstd a 256th and a frame to what it cannot compress.
        let grown = if transaction.pad { (payload + headers as u64) / 8 } else { 0 }
            + if transaction.compress { payload / 256 + 1024 } else { 0 };
        payload + grown + payload / 4096 + rest as u64
    }

    /// The most bytes that a parcel takes beside its transactions: envelope, a header.
    pub fn most_bytes_of_parcel(destinations: usize) -> u64 {
        (envelope_bytes(Suite::XWing, destinations) + 2 * crate::core::split::header::header_bytes(destinations)) as u64
    }

    fn profile(&self, destinations: &[DestinationName], sealed_bytes: Option<u64>) -> Profile {
        let layouts: Vec<Layout> = destinations
            .iter()
            .map(|name| (self.layout_of)(name).unwrap_or(Layout { domains: USUAL_DOMAINS, replicated: false }))
            .collect();
        if layouts.iter().all(|layout| layout.replicated) {
            return Profile::replicated();
        }
        let domains = layouts.iter().map(|layout| layout.domains).min().unwrap_or(USUAL_DOMAINS);
        match sealed_bytes {
            Some(bytes) if bytes <= Profile::small().stripe_bytes() as u64 => Profile::small(),
            Some(bytes) => Profile::fitting(domains, bytes),
            None => Profile::coded(domains),
        }
    }

    /// Starts a parcel of this many transactions; `sealed_bytes`, where it is known, is at least its length.
    fn begin(
        &self,
        destinations: &[DestinationName],
        expiry: Time,
        transactions: u32,
        sealed_bytes: Option<u64>,
    ) -> Result<Begun, ClientError> {
        let directory = self.directories.current();
        let suite = self.identity.suite;
        let mut targets = Vec::new();
        for name in destinations {
            let entry = directory
                .destinations
                .get(name)
                .ok_or_else(|| ClientError::NoDestination { destination: name.clone() })?;
            let key =
                entry.current_key(suite).ok_or_else(|| ClientError::Suite { destination: name.clone(), suite })?;
            let public = HpkePublic::from_bytes(suite, &key.public).map_err(seal_error)?;
            targets.push((name.clone(), WrapTarget { tag: entry.tag, public }, key.id));
        }
        targets.sort_by_key(|(_, target, _)| target.tag);
        let core = {
            let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
            let mut next = |name: &DestinationName| {
                let sequence = sequences.entry(name.clone()).or_insert(0);
                let taken = *sequence;
                *sequence += 1;
                taken
            };
            Core {
                suite,
                profile: self.profile(destinations, sealed_bytes),
                environment: directory.environment,
                sender: self.identity.key.public().bytes(),
                epoch: self.epoch,
                parcel: ParcelId::from_parts(self.seams.clock.now(), self.seams.randomness.array()?),
                expiry,
                destinations: targets
                    .iter()
                    .map(|(name, target, key)| CoreDestination { tag: target.tag, key: *key, sequence: next(name) })
                    .collect(),
            }
        };
        let row = ParcelRow {
            parcel: core.parcel,
            destinations: targets.iter().map(|(name, _, _)| name.clone()).collect(),
            expiry,
            digest: Digest([0; 32]),
            stripes: 0,
            sealed_bytes: 0,
            frame_bytes: 0,
            bodies: Bodies::Row,
            notices_from: self.positions.all(),
        };
        let ctx = core.context();
        let k = Zeroizing::new(self.seams.randomness.array::<32>()?);
        let mut encapsulations = Zeroizing::new(Vec::new());
        for _ in &targets {
            encapsulations.push(self.seams.randomness.array::<64>()?);
        }
        let targets: Vec<WrapTarget> = targets.into_iter().map(|(_, target, _)| target).collect();
        let splitter = Splitter::new(core, self.identity.key.clone()).map_err(seal_error)?;
        let mut head = Vec::new();
        let sealer =
            ParcelSealer::new(&ctx, &targets, transactions, &k, &encapsulations, &mut head).map_err(seal_error)?;
        self.meter.count(names::CLIENT_PARCELS_SEALED, 1);
        Ok(Begun { row, directory, sealer, splitter, head })
    }

    fn header(&self, prepared: &Prepared, directory: &Directory, payload: Option<Payload>) -> PrivateHeader {
        let transaction = &prepared.transaction;
        let destinations = prepared.destinations.iter().filter_map(|name| {
            let entry = directory.destinations.get(name)?;
            let predecessor = prepared
                .predecessors
                .get(name)
                .map(|ticket| Predecessor { transaction: ticket.transaction, deadline: ticket.deadline });
            let expected_version = match transaction.expects(name) {
                None => ExpectedVersion::Any,
                Some(position) if position == Position::default() => ExpectedVersion::Absent,
                Some(position) => ExpectedVersion::At(position),
            };
            let order = Order {
                predecessor,
                on_predecessor: transaction.on_predecessor,
                release: transaction.release,
                expected_version,
            };
            Some((entry.tag, order))
        });
        let mut header = PrivateHeader::new(prepared.id, prepared.deadline, payload, []);
        header.destinations = destinations.collect();
        header.compression = if transaction.compress { Compression::Zstd } else { Compression::None };
        header.padding = if transaction.pad { Padding::Padme } else { Padding::None };
        header.ordering_key = transaction.ordering_key.as_ref().map(|key| key.to_vec());
        header.idempotency_key = transaction.idempotency_key.as_ref().map(|key| key.to_vec());
        header.content_type.clone_from(&transaction.content_type);
        header.trace.clone_from(&transaction.trace);
        header.headers = transaction.headers.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
        header
    }

    /// Wraps K_tx for the outbox: nonce, then XChaCha20-Poly1305 bound to the transaction.
    fn wrap(&self, id: TransactionId, key: &TransactionKey) -> Result<Vec<u8>, ClientError> {
        let nonce: [u8; 24] = self.seams.randomness.array()?;
        let mut sealed = Zeroizing::new(*key.bytes());
        let tag = XChaCha20Poly1305::new((&*self.outbox_key).into())
            .encrypt_inout_detached(&XNonce::from(nonce), &id.to_bytes(), sealed.as_mut_slice().into())
            .map_err(seal_error)?;
        Ok([nonce.as_slice(), sealed.as_slice(), tag.as_slice()].concat())
    }

    fn transaction_row(
        &self,
        prepared: &Prepared,
        parcel: ParcelId,
        sealed: &SealedTransaction,
    ) -> Result<TransactionRow, ClientError> {
        Ok(TransactionRow {
            id: prepared.id,
            deadline: prepared.deadline,
            submitted: prepared.submitted,
            number: prepared.number,
            parcel,
            index: sealed.index,
            payload_bytes: sealed.payload.bytes,
            payload_tag: sealed.payload.tag,
            wrapped_key: self.wrap(prepared.id, &sealed.key)?,
            ordering_key: prepared.transaction.ordering_key.as_ref().map(|key| key.to_vec()),
            outcomes: prepared
                .destinations
                .iter()
                .map(|name| OutcomeRow::submitted(name.clone(), prepared.submitted))
                .collect(),
        })
    }

    /// What receipts name a payload by.
    pub fn tag(&self, payload: &[u8]) -> PayloadTag {
        PayloadTagger::whole(&self.identity.key, payload)
    }

    /// Starts to find out what a header says of a payload that is read piece by piece. Errors: [`ClientError::Seal`].
    pub fn measure(&self, compress: bool) -> Result<Measure, ClientError> {
        let compressor = if compress { Some(Compressor::new().map_err(seal_error)?) } else { None };
        Ok(Measure { tagger: PayloadTagger::new(&self.identity.key), compressor, bytes: 0, carried: 0 })
    }

    /// Seals transactions for the same destinations into one parcel. What does not fit a row becomes a file, durable when
    /// this returns. Blocks. Errors: [`ClientError`].
    pub fn seal<'a>(
        &self,
        prepared: impl Iterator<Item = &'a Prepared> + Clone,
        outbox: &Outbox,
    ) -> Result<Sealed, ClientError> {
        let Some(first) = prepared.clone().next() else { return Err(seal_error("nothing to seal")) };
        let count = prepared.clone().count() as u32;
        let expiry = prepared.clone().map(|one| one.deadline).max().unwrap_or(first.deadline);
        let most = Self::most_bytes_of_parcel(first.destinations.len());
        let most = prepared.clone().map(Self::most_bytes).sum::<u64>() + most;
        let mut begun = self.begin(&first.destinations, expiry, count, Some(most))?;
        let _in = parcel_span("seal", begun.row.parcel).entered();
        tracing::debug!(transactions = count, "sealing");
        let mut stripes = begun.splitter.push(&begun.head).map_err(seal_error)?;
        let mut transactions = Vec::new();
        let mut out = Vec::new();
        for one in prepared {
            let plain = &one.transaction.payload;
            let compressed = match one.transaction.compress {
                true => Some(Compressor::whole(plain).map_err(seal_error)?),
                false => None,
            };
            let carried = compressed.as_deref().unwrap_or(plain);
            let payload = Payload { bytes: plain.len() as u64, carried: carried.len() as u64, tag: self.tag(plain) };
            let header = self.header(one, &begun.directory, Some(payload));
            out.clear();
            out.reserve(carried.len() + carried.len() / 4096 + 1024);
            let sealed = begun.sealer.seal(header, carried, &mut out).map_err(seal_error)?;
            transactions.push(self.transaction_row(one, begun.row.parcel, &sealed)?);
            stripes.extend(begun.splitter.push(&out).map_err(seal_error)?);
        }
        begun.sealer.finish().map_err(seal_error)?;
        let last = begun.splitter.finish().map_err(seal_error)?;
        begun.row.digest = last.digest;
        stripes.push(last);
        let frames: Vec<_> = stripes.iter().map(frame).collect();
        let bytes: usize = frames.iter().map(outbox::StripeFrame::length).sum();
        let body = if bytes <= outbox::ROW_BYTES {
            NewBody::Frames(frames)
        } else {
            let mut file = outbox.start_file(begun.row.parcel)?;
            outbox.append(&mut file, &frames)?;
            NewBody::File(file)
        };
        Ok(Sealed { row: begun.row, body, transactions, stripes })
    }

    /// Starts a parcel whose one transaction is pushed piece by piece. Its lengths and tag come in its trailer, unless they
    /// are known: the payload is at hand, or was read once before. `length`, where it is known, is the payload's. Blocks.
    /// Errors: [`ClientError`].
    pub fn start(&self, prepared: &Prepared, length: Option<u64>) -> Result<(ParcelRow, StreamSealer), ClientError> {
        let most = length.map(|length| {
            Self::most_bytes_with(prepared, length) + Self::most_bytes_of_parcel(prepared.destinations.len())
        });
        let mut begun = self.begin(&prepared.destinations, prepared.deadline, 1, most)?;
        let _in = parcel_span("seal", begun.row.parcel).entered();
        tracing::debug!(transaction = %prepared.id, "sealing as it is read");
        let transaction = &prepared.transaction;
        let plain = &transaction.payload;
        // A large payload is read through a cursor over these bytes; they are empty when it comes from elsewhere.
        let payload = match (transaction.compress, transaction.pad) {
            _ if plain.is_empty() => prepared.measured,
            (false, _) => Some(Payload::plain(plain.len() as u64, self.tag(plain))),
            (true, true) => {
                let mut measure = self.measure(true)?;
                plain.chunks(READ).try_for_each(|chunk| measure.push(chunk))?;
                Some(measure.finish()?)
            }
            (true, false) => None,
        };
        let header = self.header(prepared, &begun.directory, payload);
        let mut out = std::mem::take(&mut begun.head);
        begun.sealer.begin(header, &mut out).map_err(seal_error)?;
        let stream = StreamSealer {
            sealer: begun.sealer,
            splitter: begun.splitter,
            compressor: if transaction.compress { Some(Compressor::new().map_err(seal_error)?) } else { None },
            // Bytes at hand do not change while they are sealed; what is read a second time may have.
            tagger: (payload.is_none() || plain.is_empty()).then(|| PayloadTagger::new(&self.identity.key)),
            promised: payload,
            out,
            bytes: 0,
            carried: 0,
            parcel: begun.row.parcel,
        };
        Ok((begun.row, stream))
    }

    /// Ends what [`Sealer::start`] started: the last stripes, D, and the transaction's row.
    pub fn end(
        &self,
        prepared: &Prepared,
        mut stream: StreamSealer,
    ) -> Result<(Vec<Stripe>, Digest, TransactionRow), ClientError> {
        if let Some(compressor) = stream.compressor.take() {
            let mut carried = Vec::new();
            compressor.finish(&mut carried).map_err(seal_error)?;
            stream.carries(carried.len())?;
            stream.sealer.push(&carried, &mut stream.out).map_err(seal_error)?;
        }
        let (bytes, carried) = (stream.bytes, stream.carried);
        let found = stream.tagger.take().map(|tagger| Payload { bytes, carried, tag: tagger.finish() });
        let trailer = match (stream.promised, found) {
            (Some(promised), Some(found)) if promised != found => return Err(ClientError::Changed),
            (Some(_), _) => None,
            (None, found) => found,
        };
        let sealed = stream.sealer.end(trailer, &mut stream.out).map_err(seal_error)?;
        stream.sealer.finish().map_err(seal_error)?;
        let mut stripes = stream.splitter.push(&stream.out).map_err(seal_error)?;
        let last = stream.splitter.finish().map_err(seal_error)?;
        let digest = last.digest;
        stripes.push(last);
        Ok((stripes, digest, self.transaction_row(prepared, stream.parcel, &sealed)?))
    }
}

/// Finds out the lengths and the tag of a payload. Compression gives as many bytes again if it is given the same pieces.
pub struct Measure {
    tagger: PayloadTagger,
    compressor: Option<Compressor>,
    bytes: u64,
    carried: u64,
}

impl Measure {
    /// More of the payload. Blocks. Errors: [`ClientError::Seal`].
    pub fn push(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        self.bytes += payload.len() as u64;
        self.tagger.update(payload);
        let mut carried = Vec::new();
        match &mut self.compressor {
            Some(compressor) => {
                compressor.push(payload, &mut carried).map_err(seal_error)?;
                self.carried += carried.len() as u64;
            }
            None => self.carried += payload.len() as u64,
        }
        Ok(())
    }

    /// Its end. Errors: [`ClientError::Seal`].
    pub fn finish(mut self) -> Result<Payload, ClientError> {
        if let Some(compressor) = self.compressor.take() {
            let mut carried = Vec::new();
            compressor.finish(&mut carried).map_err(seal_error)?;
            self.carried += carried.len() as u64;
        }
        Ok(Payload { bytes: self.bytes, carried: self.carried, tag: self.tagger.finish() })
    }
}

/// A parcel of one transaction that is sealed as it is read.
pub struct StreamSealer {
    sealer: ParcelSealer,
    splitter: Splitter,
    compressor: Option<Compressor>,
    /// `None` when the payload's tag needs not be found out.
    tagger: Option<PayloadTagger>,
    /// What the header says already.
    promised: Option<Payload>,
    out: Vec<u8>,
    bytes: u64,
    carried: u64,
    parcel: ParcelId,
}

impl StreamSealer {
    fn carries(&mut self, bytes: usize) -> Result<(), ClientError> {
        self.carried += bytes as u64;
        let too_many = self.promised.is_some_and(|promised| self.carried > promised.carried);
        if too_many { Err(ClientError::Changed) } else { Ok(()) }
    }

    /// More of the payload; gives the stripes that are full. Blocks. Errors: [`ClientError::Seal`], [`ClientError::Changed`].
    pub fn push(&mut self, payload: &[u8]) -> Result<Vec<Stripe>, ClientError> {
        self.bytes += payload.len() as u64;
        if let Some(tagger) = &mut self.tagger {
            tagger.update(payload);
        }
        match &mut self.compressor {
            Some(compressor) => {
                let mut carried = Vec::new();
                compressor.push(payload, &mut carried).map_err(seal_error)?;
                self.carries(carried.len())?;
                self.sealer.push(&carried, &mut self.out).map_err(seal_error)?;
            }
            None => {
                self.carries(payload.len())?;
                self.sealer.push(payload, &mut self.out).map_err(seal_error)?;
            }
        }
        let stripes = self.splitter.push(&self.out).map_err(seal_error)?;
        self.out.clear();
        Ok(stripes)
    }
}

//! What a holder of a destination's keys can see: the transactions in the records that came.
//!
//! Owns gathering and opening for the eye, and the files that payloads go to. Must not judge fates.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tempfile::NamedTempFile;

use super::record::Seen;
use crate::cli::CliError;
use crate::core::directory::{Directory, destination_tag, write_time};
use crate::core::gather::{Action, Address, Caps, DeferReason, Delivery, Gate, ParcelKey, Reassembler};
use crate::core::id::{DestinationTag, Time};
use crate::core::seal::transaction::PrivateHeader;
use crate::core::seal::{Event, ParcelContext, ParcelOpener, SealedTransaction};
use crate::keys::KeyRing;

/// Opens what records bring, for one destination.
pub(super) struct Holder {
    directory: Arc<Directory>,
    ring: KeyRing,
    tag: DestinationTag,
    gate: Gate,
    reassembler: Reassembler,
    opening: BTreeMap<ParcelKey, Opening>,
    /// Where payloads go, if they are asked for.
    payloads: Option<PathBuf>,
    /// Records that could not be gathered, by why.
    put_off: BTreeMap<String, usize>,
}

/// A parcel that is being opened.
struct Opening {
    opener: ParcelOpener,
    sink: Sink,
}

/// What comes out of a parcel, until it is whole.
#[derive(Default)]
struct Sink {
    folder: Option<PathBuf>,
    header: Option<PrivateHeader>,
    file: Option<NamedTempFile>,
    whole: Vec<(Box<SealedTransaction>, Option<NamedTempFile>)>,
    failed: Option<std::io::Error>,
}

impl Sink {
    fn take(&mut self, event: Event<'_>) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_take(event) {
            self.failed = Some(error);
        }
    }

    fn try_take(&mut self, event: Event<'_>) -> std::io::Result<()> {
        match event {
            Event::Begin { .. } => self.file = self.folder.as_ref().map(NamedTempFile::new_in).transpose()?,
            Event::Ciphertext { .. } => {}
            Event::Header { header, .. } => self.header = Some(header.clone()),
            Event::Payload { bytes, .. } => {
                if let Some(file) = &mut self.file {
                    file.write_all(bytes)?;
                }
            }
            Event::End(transaction) => self.whole.push((transaction, self.file.take())),
        }
        Ok(())
    }
}

impl Holder {
    /// Errors: a destination that the directory does not list, a folder that cannot be made.
    pub fn new(directory: Arc<Directory>, ring: KeyRing, payloads: Option<PathBuf>) -> Result<Self, CliError> {
        let tag = destination_tag(ring.environment(), ring.destination(), 0);
        if ring.environment() != directory.environment || directory.destination_by_tag(&tag).is_none() {
            let (name, environment) = (ring.destination(), ring.environment());
            return Err(CliError::usage(format!(
                "-i: these are keys of destination {name} in environment {environment}, which the directory does not list"
            )));
        }
        if let Some(folder) = &payloads {
            std::fs::create_dir_all(folder).map_err(|error| CliError::file(folder, &error))?;
        }
        let gate = Gate::new(directory.clone(), tag);
        let reassembler = Reassembler::new(directory.clone(), tag, Caps::default());
        let (opening, put_off) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { directory, ring, tag, gate, reassembler, opening, payloads, put_off })
    }

    /// Takes a record; gives the transactions that it completes, and parcels that do not open. `now` measures waiting.
    pub fn take(&mut self, record: &Bytes, at: Address, now: Time) -> Result<Vec<Seen>, CliError> {
        // Nothing is expired for the eye: group time stands still.
        let checked = self.gate.check(record, Time::default());
        let mut actions: VecDeque<_> = self.reassembler.take(checked, at, now).into();
        let mut seen = Vec::new();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Recover(job) => actions.extend(self.reassembler.recovered(job.run(), now)),
                Action::Deliver(delivery) => {
                    let ended = delivery.header.last;
                    let opened = self.deliver(&delivery, &mut seen)?;
                    if ended || !opened {
                        self.opening.remove(&delivery.parcel);
                        let expiry = delivery.header.core.expiry;
                        actions.extend(self.reassembler.end(&delivery.parcel, delivery.digest, expiry, now));
                    }
                }
                Action::Refuse(refused) => {
                    let check = format!("refused({})", refused.reason.word());
                    seen.push(self.unopened(&refused.parcel, check));
                }
                Action::Abandon { parcel, .. } => {
                    self.opening.remove(&parcel);
                }
                Action::Defer { addresses, reason } => {
                    *self.put_off.entry(reason.word().to_owned()).or_default() += addresses.iter().count();
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    /// What was not gathered, or not to its end.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let open = self.reassembler.open_parcels();
        if open > 0 {
            left.push(format!("{open} parcels are not whole in the records that were read"));
        }
        for (reason, count) in &self.put_off {
            left.push(format!("{count} records were not gathered: {reason}{}", mend(reason)));
        }
        left
    }

    fn by(&self, key: &ParcelKey) -> String {
        let listed = self.directory.sender_by_key(&key.sender);
        listed.map_or_else(|| key.sender.to_string(), |entry| entry.name.to_string())
    }

    fn unopened(&self, key: &ParcelKey, check: String) -> Seen {
        let about = format!("parcel {} does not open", key.parcel);
        let fields = json!({"parcel": key.parcel.to_string(), "destination": self.ring.destination()});
        Seen { by: Some(self.by(key)), ..Seen::of("parcel", check, about, fields) }
    }

    /// Opens a stripe. Gives whether the parcel can go on.
    fn deliver(&mut self, delivery: &Delivery, seen: &mut Vec<Seen>) -> Result<bool, CliError> {
        let core = &delivery.header.core;
        if !self.opening.contains_key(&delivery.parcel) {
            let secret = core.destination(&self.tag).and_then(|own| self.ring.secret(&own.key)).cloned();
            let Some(secret) = secret else {
                seen.push(self.unopened(&delivery.parcel, "these keys lack the one that it is sealed to".to_owned()));
                return Ok(false);
            };
            let context = ParcelContext {
                ctx: core.context(),
                suite: core.suite,
                destinations: core.destinations.iter().map(|one| (one.tag, one.key)).collect(),
            };
            let sink = Sink { folder: self.payloads.clone(), ..Sink::default() };
            let opener = ParcelOpener::new(context, self.tag, secret);
            self.opening.insert(delivery.parcel, Opening { opener, sink });
        }
        let Some(mut opening) = self.opening.remove(&delivery.parcel) else { return Ok(false) };
        let Opening { opener, sink } = &mut opening;
        let mut opened = opener.push(&delivery.sealed, &mut |event| sink.take(event));
        if opened.is_ok() && delivery.header.last {
            let Opening { opener, mut sink } = opening;
            opened = opener.finish(&mut |event| sink.take(event)).map(|_| ());
            self.written(&sink)?;
            if opened.is_ok() {
                // Only now is any of it more than a claim.
                for (transaction, file) in sink.whole {
                    seen.push(self.transaction(delivery, &transaction, file)?);
                }
            }
        } else {
            self.written(&opening.sink)?;
            self.opening.insert(delivery.parcel, opening);
        }
        match opened {
            Ok(()) => Ok(true),
            Err(error) => {
                seen.push(self.unopened(&delivery.parcel, error.to_string()));
                Ok(false)
            }
        }
    }

    fn written(&self, sink: &Sink) -> Result<(), CliError> {
        match (&sink.failed, &self.payloads) {
            (Some(error), Some(folder)) => Err(CliError::file(folder, error)),
            _ => Ok(()),
        }
    }

    fn transaction(
        &self,
        delivery: &Delivery,
        transaction: &SealedTransaction,
        file: Option<NamedTempFile>,
    ) -> Result<Seen, CliError> {
        let header = &transaction.header;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let saved = match (file, &self.payloads) {
            (Some(file), Some(folder)) => Some(keep(file, &folder.join(header.id.to_string()))?),
            _ => None,
        };
        let order = header.destinations.get(&self.tag).copied().unwrap_or_default();
        let mut about = format!("{}, deadline {}", header.id, write_time(header.deadline));
        if let Some(key) = &header.ordering_key {
            about.push_str(&format!(", key {}", text(key)));
        }
        if let Some(content_type) = &header.content_type {
            about.push_str(&format!(", {content_type}"));
        }
        for (name, value) in &header.headers {
            about.push_str(&format!(", {name}={}", text(value)));
        }
        let headers: Vec<_> = header.headers.iter().map(|(name, value)| json!([name, text(value)])).collect();
        let fields = json!({
            "transaction": header.id.to_string(), "destination": self.ring.destination(),
            "parcel": delivery.parcel.parcel.to_string(), "d": delivery.digest.to_string(),
            "deadline": write_time(header.deadline), "payload_length": transaction.payload.bytes,
            "carried_length": transaction.payload.carried, "compression": header.compression.word(),
            "padding": header.padding.word(), "ordering_key": header.ordering_key.as_deref().map(text),
            "idempotency_key": header.idempotency_key.as_deref().map(text), "content_type": header.content_type,
            "trace_context": header.trace, "headers": headers,
            "predecessor": order.predecessor.map(|before| before.transaction.to_string()),
            "ciphertext_digest": transaction.ciphertext_digest.to_string(),
            "ciphertext_bytes": transaction.ciphertext_bytes, "file": saved,
        });
        let seen = Seen::of("transaction", "valid".to_owned(), about, fields);
        Ok(Seen { bytes: transaction.payload.bytes, by: Some(self.by(&delivery.parcel)), ..seen })
    }
}

/// What to do about records that were not gathered; nothing where there is nothing to do.
fn mend(reason: &str) -> &'static str {
    match DeferReason::from_word(reason) {
        Some(DeferReason::UnknownSender) => {
            ": the directory of this configuration does not list who sent them; was a sender added or removed since? Name a \
             configuration whose directory is newer, or copy the operator's newest there"
        }
        Some(DeferReason::UnknownVersion) => ": a later version of sealcast wrote them: inspect them with that",
        Some(DeferReason::DirectoryEnded) => {
            ": the directory of this configuration is no longer valid: name one whose directory is newer"
        }
        _ => "",
    }
}

/// Keeps a payload under its name, which must not be there yet.
fn keep(file: NamedTempFile, path: &Path) -> Result<String, CliError> {
    file.persist_noclobber(path).map_err(|error| CliError::file(path, &error.error))?;
    Ok(path.display().to_string())
}

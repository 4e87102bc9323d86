//! The same transactions in another parcel: opened with the keys that the outbox kept, sealed under the keys that the
//! directory lists now. In one pass over the kept stripes, whatever their number.

use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{Begun, Sealer, seal_error};
use crate::client::error::ClientError;
use crate::client::stream::frame;
use crate::core::id::TransactionId;
use crate::core::seal::keys::TransactionKey;
use crate::core::seal::transaction::{Compression, Payload, PrivateHeader};
use crate::core::seal::{BodyEvent, BodyOpener, envelope_bytes};
use crate::core::split::header::StripeHeader;
use crate::core::split::stripe::Stripe;
use crate::core::wire::Reader;
use crate::store::outbox::{
    NewBody, NewParcel, Outbox, ParcelFile, ParcelRow, Reservation, StripeFrame, TransactionRow,
};

/// What one piece of opened ciphertext gave.
#[derive(Default)]
struct Piece {
    header: Option<PrivateHeader>,
    payload: Zeroizing<Vec<u8>>,
}

struct Copying<'a> {
    sealer: &'a Sealer,
    outbox: &'a Outbox,
    begun: Begun,
    file: ParcelFile,
    reservation: Reservation,
    out: Vec<u8>,
    transactions: Vec<TransactionRow>,
}

impl Copying<'_> {
    fn keep(&mut self, stripes: &[Stripe]) -> Result<(), ClientError> {
        let frames: Vec<StripeFrame> = stripes.iter().map(frame).collect();
        if frames.is_empty() {
            return Ok(());
        }
        let bytes = frames.iter().map(|frame| frame.length() as u64).sum();
        self.reservation.join(self.outbox.reserve(bytes)?);
        Ok(self.outbox.append(&mut self.file, &frames)?)
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let stripes = self.begun.splitter.push(&self.out).map_err(seal_error)?;
        self.out.clear();
        self.keep(&stripes)
    }

    fn piece(&mut self, piece: Piece) -> Result<(), ClientError> {
        if let Some(mut header) = piece.header {
            // Carried as it is: what it compresses to is not known before its header.
            header.compression = Compression::None;
            header.payload = header.payload.map(|payload| Payload { carried: payload.bytes, ..payload });
            self.begun.sealer.begin(header, &mut self.out).map_err(seal_error)?;
        }
        if !piece.payload.is_empty() {
            self.begun.sealer.push(&piece.payload, &mut self.out).map_err(seal_error)?;
        }
        self.flush()
    }

    fn end(&mut self, old: &TransactionRow, told_in_trailer: bool) -> Result<(), ClientError> {
        let trailer = told_in_trailer.then(|| Payload::plain(old.payload_bytes, old.payload_tag));
        let sealed = self.begun.sealer.end(trailer, &mut self.out).map_err(seal_error)?;
        self.transactions.push(TransactionRow {
            parcel: self.begun.row.parcel,
            index: sealed.index,
            wrapped_key: self.sealer.wrap(old.id, &sealed.key)?,
            ..old.clone()
        });
        self.flush()
    }
}

impl Sealer {
    /// Opens what [`Sealer::wrap`] made.
    fn unwrap(&self, id: TransactionId, wrapped: &[u8]) -> Result<TransactionKey, ClientError> {
        let mut reader = Reader::new(wrapped);
        let nonce = XNonce::from(reader.array::<24>("nonce").map_err(seal_error)?);
        let mut key = Zeroizing::new(reader.array::<32>("key").map_err(seal_error)?);
        let tag = Tag::from(reader.array::<16>("tag").map_err(seal_error)?);
        XChaCha20Poly1305::new((&*self.outbox_key).into())
            .decrypt_inout_detached(&nonce, &id.to_bytes(), key.as_mut_slice().into(), &tag)
            .map_err(|_| seal_error("the outbox's key of a transaction does not open"))?;
        Ok(TransactionKey::new(*key))
    }

    /// Seals a kept parcel's transactions anew, under the keys of the newest directory; durable as a file when this returns,
    /// to be added to the outbox. Blocks. Errors: [`ClientError`].
    pub fn renew(&self, old: &ParcelRow, rows: &[TransactionRow], outbox: &Outbox) -> Result<NewParcel, ClientError> {
        let gone = || seal_error("the outbox does not hold the parcel any more");
        let expiry = old.expiry;
        let begun = self.begin(&old.destinations, expiry, rows.len() as u32, None)?;
        let file = outbox.start_file(begun.row.parcel)?;
        let reservation = outbox.reserve(0)?;
        let mut copying =
            Copying { sealer: self, outbox, begun, file, reservation, out: Vec::new(), transactions: Vec::new() };
        copying.out = std::mem::take(&mut copying.begun.head);
        copying.flush()?;

        let mut waiting = rows.iter();
        let mut current: Option<(&TransactionRow, BodyOpener)> = None;
        let mut skip = 0;
        for index in 0..old.stripes {
            let frame = outbox.stripe(old, index)?.ok_or_else(gone)?;
            if index == 0 {
                let header = StripeHeader::decode(&frame.header).map_err(seal_error)?;
                skip = envelope_bytes(header.core.suite, header.core.destinations.len());
            }
            let mut sealed = frame.sealed.as_ref();
            let taken = skip.min(sealed.len());
            (skip, sealed) = (skip - taken, sealed.get(taken..).unwrap_or_default());
            while !sealed.is_empty() {
                let (row, mut opener) = match current.take() {
                    Some(current) => current,
                    None => {
                        let row = waiting.next().ok_or_else(gone)?;
                        (row, BodyOpener::new(&self.unwrap(row.id, &row.wrapped_key)?))
                    }
                };
                let mut piece = Piece::default();
                let taken = opener.push(sealed, &mut |event| take(&mut piece, &event)).map_err(seal_error)?;
                copying.piece(piece)?;
                sealed = sealed.get(taken..).unwrap_or_default();
                if opener.is_done() {
                    finish(&mut copying, row, opener)?;
                } else {
                    current = Some((row, opener));
                }
            }
        }
        if let Some((row, opener)) = current {
            finish(&mut copying, row, opener)?;
        }
        let Copying { begun: Begun { mut row, sealer, splitter, .. }, mut file, mut reservation, transactions, .. } =
            copying;
        sealer.finish().map_err(seal_error)?;
        let last = splitter.finish().map_err(seal_error)?;
        row.digest = last.digest;
        let frames = [frame(&last)];
        let bytes = frames.iter().map(|frame| frame.length() as u64).sum();
        reservation.join(outbox.reserve(bytes)?);
        outbox.append(&mut file, &frames)?;
        // Something may be said of these transactions since the old parcel went out.
        row.notices_from.clone_from(&old.notices_from);
        Ok(NewParcel { row, body: NewBody::File(file), transactions, reservation })
    }
}

fn take(piece: &mut Piece, event: &BodyEvent<'_>) {
    match event {
        BodyEvent::Header(header) => piece.header = Some((*header).clone()),
        BodyEvent::Payload(bytes) => piece.payload.extend_from_slice(bytes),
        BodyEvent::Length(_) => {}
    }
}

fn finish(copying: &mut Copying<'_>, row: &TransactionRow, opener: BodyOpener) -> Result<(), ClientError> {
    let mut piece = Piece::default();
    let opened = opener.finish(&mut |event| take(&mut piece, &event)).map_err(seal_error)?;
    copying.piece(piece)?;
    copying.end(row, opened.header.payload.is_none())
}

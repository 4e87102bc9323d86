//! Payloads that come piece by piece, from a reader or a file, and are never held in memory; and the place in the order of
//! submissions that every large transaction waits for.
//!
//! Owns which of them are read whole all the same. Must not seal, keep or publish (that is `stream`).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt, SeekFrom};
use tokio::sync::oneshot;

use super::bundle::{Prepared, Submission};
use super::error::ClientError;
use super::handle::{Handle, in_order};
use super::service::Client;
use super::stream::{OnHold, too_long};
use super::transaction::Transaction;
use crate::core::id::DestinationName;
use crate::core::limits::PAYLOAD_BYTES;

/// A reader's payload up to this length is read whole and bundled like any other.
const SMALL: u64 = 256 * 1024;

impl Client {
    /// Submits a transaction whose payload is read, sealed and published piece by piece and never held in memory; the
    /// payload inside `transaction` is not used. `length`, where it is known, is checked. When this returns, all of it is
    /// durable in the outbox. Dropping the future before the payload has been read and sealed to its end abandons it; after
    /// that it is submitted all the same. Errors: [`ClientError`].
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    ///
    /// let upload = tokio::net::TcpStream::connect("camera:9000").await?;
    /// let film = Transaction::new("").content_type("video/mp4").compress();
    /// let handle = client.submit_reader("films", film, upload, None).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_reader(
        &self,
        destination: &str,
        transaction: Transaction,
        payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Handle, ClientError> {
        let handles =
            self.submit_reader_to(&[DestinationName::new(destination)?], transaction, payload, length).await?;
        handles.into_iter().next().ok_or(ClientError::Closed)
    }

    /// The same to several destinations. Errors: [`ClientError`].
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    /// use sealcast::core::id::DestinationName;
    ///
    /// let both = [DestinationName::new("films")?, DestinationName::new("archive")?];
    /// let upload = tokio::net::TcpStream::connect("camera:9000").await?;
    /// let handles = client.submit_reader_to(&both, Transaction::new(""), upload, None).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_reader_to(
        &self,
        destinations: &[DestinationName],
        mut transaction: Transaction,
        mut payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Vec<Handle>, ClientError> {
        if let Some(said) = length.filter(|length| *length <= SMALL) {
            let mut whole = Vec::with_capacity(said as usize);
            (&mut payload).take(said + 1).read_to_end(&mut whole).await.map_err(ClientError::Read)?;
            if whole.len() as u64 != said {
                return Err(ClientError::Length { said, given: whole.len() as u64 });
            }
            transaction.payload = whole.into();
            return Ok(self.submit_to(destinations, transaction).await?);
        }
        let transaction = self.intercepted_alone(destinations, transaction);
        if transaction.pad {
            let problem =
                "a payload that is read once cannot be padded: its header, which comes first, says its length and \
                           tag. Submit a file, which is read twice, or its bytes"
                    .to_owned();
            return Err(ClientError::Transaction { field: "padding", problem });
        }
        let prepared = self.prepare(destinations, transaction)?;
        self.submit_read(destinations, prepared, payload, length).await
    }

    /// Submits what a file, or anything else that can be read twice, holds from where it stands to its end, and never holds
    /// it in memory. It is read once; a padded one ([`Transaction::pad`]) twice, because its header says its true length and
    /// tag. Everything else as [`Client::submit_reader`]. Errors: [`ClientError`], [`ClientError::Changed`] among them when
    /// somebody writes to it meanwhile.
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    ///
    /// let film = tokio::fs::File::open("film.mp4").await?;
    /// let handle = client.submit_file("films", Transaction::new("").pad(), film).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_file(
        &self,
        destination: &str,
        transaction: Transaction,
        file: impl AsyncRead + AsyncSeek + Unpin + Send,
    ) -> Result<Handle, ClientError> {
        let handles = self.submit_file_to(&[DestinationName::new(destination)?], transaction, file).await?;
        handles.into_iter().next().ok_or(ClientError::Closed)
    }

    /// The same to several destinations. Errors: as [`Client::submit_file`].
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    /// use sealcast::core::id::DestinationName;
    ///
    /// let both = [DestinationName::new("films")?, DestinationName::new("archive")?];
    /// let film = tokio::fs::File::open("film.mp4").await?;
    /// let handles = client.submit_file_to(&both, Transaction::new(""), film).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_file_to(
        &self,
        destinations: &[DestinationName],
        transaction: Transaction,
        mut file: impl AsyncRead + AsyncSeek + Unpin + Send,
    ) -> Result<Vec<Handle>, ClientError> {
        let from = file.stream_position().await.map_err(ClientError::Read)?;
        let length = file.seek(SeekFrom::End(0)).await.map_err(ClientError::Read)?.saturating_sub(from);
        file.seek(SeekFrom::Start(from)).await.map_err(ClientError::Read)?;
        if length <= SMALL {
            return self.submit_reader_to(destinations, transaction, file, Some(length)).await;
        }
        let transaction = self.intercepted_alone(destinations, transaction);
        let (pad, compress) = (transaction.pad, transaction.compress);
        let mut prepared = self.prepare(destinations, transaction)?;
        if pad {
            prepared.measured = Some(self.inner.streaming.measure(&mut file, Some(length), compress).await?);
            file.seek(SeekFrom::Start(from)).await.map_err(ClientError::Read)?;
        }
        self.submit_read(destinations, prepared, file, Some(length)).await
    }

    /// The same for a payload that comes by itself: what is inside the transaction is not used, whoever put it there.
    fn intercepted_alone(&self, destinations: &[DestinationName], mut transaction: Transaction) -> Transaction {
        transaction.payload = bytes::Bytes::new();
        let mut transaction = self.intercepted(destinations, transaction);
        transaction.payload = bytes::Bytes::new();
        transaction
    }

    async fn submit_read(
        &self,
        destinations: &[DestinationName],
        prepared: Prepared,
        payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Vec<Handle>, ClientError> {
        if length.is_some_and(|length| length > PAYLOAD_BYTES) {
            return Err(too_long());
        }
        let submitted = match self.inner.window.take(length.unwrap_or(0)) {
            Ok(place) => match self.hold(prepared) {
                Ok(held) => self.inner.streaming.submit(held, place, payload, length).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let handles = submitted.inspect_err(|error| self.inner.tracker.given_back(error))?;
        Ok(in_order(destinations, handles))
    }

    /// Takes a large transaction's place in the order of submissions.
    pub(super) fn hold(&self, prepared: Prepared) -> Result<OnHold, ClientError> {
        let (answer, held) = oneshot::channel();
        let submission = Submission::Hold { prepared: Box::new(prepared), answer };
        self.inner.queue.send(submission).map_err(|_| ClientError::Closed)?;
        Ok(held)
    }
}

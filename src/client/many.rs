//! Many submissions, one after the other and yet together: while the first is made durable, those behind it gather, and
//! small ones share parcels and fsyncs.
//!
//! Owns the order of a stream's submissions. Must not know what becomes of one: that is [`Client::submit_to`].

use std::task::Poll;

use futures_util::future::{Either, ready};
use futures_util::{Stream, StreamExt};

use super::{Client, ClientError, Handle, SubmitError, Transaction};
use crate::core::id::DestinationName;

/// Submissions that may wait for the outbox at once.
const AT_ONCE: usize = 256;

/// A submission that has its place in the order and is still to end.
struct Begun<F>(F);

impl Client {
    /// Submits a stream of transactions in its order, each to all of `destinations`, and gives their handles in the same
    /// order, each once its transaction is durable in the outbox. A full window holds the stream up until there is room;
    /// up to 256 transactions wait for the outbox at once, so that small ones share parcels.
    ///
    /// Errors stand in the place of their transaction, which they give back; the stream goes on after them. Whoever needs
    /// the later ones to wait for it stops there: what was taken from `transactions` before is submitted all the same.
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use futures_util::{StreamExt, stream};
    /// use sealcast::client::Transaction;
    /// use sealcast::core::id::DestinationName;
    ///
    /// let orders = [DestinationName::new("orders")?];
    /// let lines = stream::iter(["ten nails", "a hammer"]).map(|line| Transaction::new(line).key("customer-42"));
    /// let mut submitted = std::pin::pin!(client.submit_all(&orders, lines));
    /// while let Some(handles) = submitted.next().await {
    ///     println!("{}", handles?[0].ticket());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_all<'a>(
        &'a self,
        destinations: &'a [DestinationName],
        transactions: impl Stream<Item = Transaction> + 'a,
    ) -> impl Stream<Item = Result<Vec<Handle>, SubmitError>> + 'a {
        let begin = move |transaction| async move {
            let mut transaction: Transaction = transaction;
            loop {
                self.ready(transaction.payload().len() as u64).await;
                let mut submitting = Box::pin(self.submit_to(destinations, transaction));
                // Its first step takes its place in the order; the rest only waits.
                match futures_util::poll!(&mut submitting) {
                    Poll::Pending => return Begun(Either::Right(submitting)),
                    Poll::Ready(Err(refused)) if matches!(refused.error, ClientError::WindowFull { .. }) => {
                        transaction = *refused.transaction;
                    }
                    Poll::Ready(ended) => return Begun(Either::Left(ready(ended))),
                }
            }
        };
        transactions.then(begin).map(|begun| begun.0).buffered(AT_ONCE)
    }
}

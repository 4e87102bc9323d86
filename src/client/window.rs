//! The window: how many transactions, and how many of their bytes, may be undecided at once. It is the client's
//! backpressure. Must not know what a transaction is.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::error::ClientError;

#[derive(Debug, Default)]
struct Used {
    transactions: usize,
    bytes: u64,
}

/// The window. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Window {
    used: Arc<Mutex<Used>>,
    freed: Arc<Notify>,
    transactions: usize,
    bytes: u64,
}

/// A transaction's place in the window, given back when dropped: when it has its fate, or was not submitted after all.
#[derive(Debug)]
pub struct WindowPlace {
    window: Window,
    bytes: u64,
}

impl Window {
    /// A window of this many undecided transactions and payload bytes.
    pub fn new(transactions: usize, bytes: u64) -> Self {
        Self { used: Arc::default(), freed: Arc::default(), transactions, bytes }
    }

    /// A place for a payload of this many bytes. One larger than the whole window gets a place when it is alone.
    /// Errors: [`ClientError::WindowFull`].
    pub fn take(&self, bytes: u64) -> Result<WindowPlace, ClientError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.fits(&used, bytes) {
            return Err(ClientError::WindowFull { transactions: used.transactions, bytes: used.bytes });
        }
        used.transactions += 1;
        used.bytes += bytes;
        Ok(WindowPlace { window: self.clone(), bytes })
    }

    /// A place taken in any case: for what a former run of the outbox left undecided.
    pub fn occupy(&self, bytes: u64) -> WindowPlace {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.transactions += 1;
        used.bytes += bytes;
        WindowPlace { window: self.clone(), bytes }
    }

    fn fits(&self, used: &Used, bytes: u64) -> bool {
        used.transactions == 0
            || (used.transactions < self.transactions && used.bytes.saturating_add(bytes) <= self.bytes)
    }

    /// Waits until a payload of this many bytes would get a place. Another submission may take it first.
    pub async fn ready(&self, bytes: u64) {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if self.fits(&self.used.lock().unwrap_or_else(PoisonError::into_inner), bytes) {
                return;
            }
            freed.await;
        }
    }

    /// Waits until a place is given back, from when this was called.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Undecided transactions and their payload bytes.
    pub fn used(&self) -> (usize, u64) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        (used.transactions, used.bytes)
    }
}

impl Drop for WindowPlace {
    fn drop(&mut self) {
        {
            let mut used = self.window.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.transactions = used.transactions.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(self.bytes);
        }
        self.window.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_fills_and_frees() {
        let window = Window::new(2, 100);
        let large = window.take(1000).expect("alone it gets a place");
        assert!(matches!(window.take(0), Err(ClientError::WindowFull { transactions: 1, bytes: 1000 })));
        let waiting = tokio::spawn({
            let window = window.clone();
            async move { window.ready(60).await }
        });
        tokio::task::yield_now().await;
        drop(large);
        waiting.await.expect("ready");
        let (_one, _two) = (window.take(60).expect("fits"), window.take(40).expect("fits"));
        assert!(window.take(0).is_err(), "two at most");
        assert_eq!(window.used(), (2, 100));
    }
}

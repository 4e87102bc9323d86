//! Connections within one process: what listens has an address and no port of the machine.
//!
//! Owns who listens. Must not look at what is sent.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::seams::{BoxFuture, Connection, Listener, Network};

/// Bytes on their way in each direction.
const PIPE_BYTES: usize = 256 << 10;
/// Connections that are not accepted yet.
const BACKLOG: usize = 64;

type Listening = Arc<Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>>;

/// A network of its own. Addresses have the form `IP:PORT` and mean nothing outside of it.
#[derive(Clone, Default)]
pub(super) struct MemoryNetwork {
    listening: Listening,
}

impl Network for MemoryNetwork {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let there = self.listening.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let there = there.ok_or(io::ErrorKind::ConnectionRefused)?;
            there.send(theirs).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(ours) as Box<dyn Connection>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let place: SocketAddr = address.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
            if listening.get(address).is_some_and(|there| !there.is_closed()) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let (connect, connected) = mpsc::channel(BACKLOG);
            listening.insert(address.to_owned(), connect);
            Ok(Box::new(MemoryListener { place, connected }) as Box<dyn Listener>)
        })
    }
}

struct MemoryListener {
    place: SocketAddr,
    connected: mpsc::Receiver<DuplexStream>,
}

impl Listener for MemoryListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Connection>, SocketAddr)>> {
        Box::pin(async {
            // The network keeps a sender as long as it is there itself.
            let stream = self.connected.recv().await.ok_or(io::ErrorKind::NotConnected)?;
            Ok((Box::new(stream) as Box<dyn Connection>, self.place))
        })
    }

    fn address(&self) -> io::Result<SocketAddr> {
        Ok(self.place)
    }
}

//! A TCP proxy that makes whoever is behind it slow or silent without stopping it: every byte is let go of later than it
//! came, which adds delay and takes no throughput; or it is kept until it may go on. Runs on a thread of its own, and ends
//! with its value.
//!
//! It knows nothing of what it passes on. For a slow Kafka broker, have the broker advertise the proxy's port.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Chunks that may wait in one direction of a connection, of 64 KiB each at most; then the sender is told to wait, as by any
/// slow peer.
const CHUNKS: usize = 1024;
const CHUNK: usize = 64 << 10;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// They go on so much after they came, in both directions.
    After(Duration),
    /// They are kept until this is changed. Connections stand, and new ones are taken.
    Never,
}

/// A proxy that runs.
pub struct Proxy {
    port: u16,
    pass: watch::Sender<Pass>,
    _end: oneshot::Sender<()>,
}

impl Proxy {
    /// Listens on this port of the loopback interface, any free one for 0, and passes everything on to `to` at once.
    pub fn start(port: u16, to: u16) -> Self {
        let listener = bind(port);
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let (pass, told) = watch::channel(Pass::After(Duration::ZERO));
        let (end, ended) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = serve(listener, SocketAddr::from((Ipv4Addr::LOCALHOST, to)), told) => {}
                    _ = ended => {}
                }
            });
        };
        std::thread::Builder::new().name(format!("proxy-{port}")).spawn(run).expect("a thread");
        Self { port, pass, _end: end }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on bytes go on so, those that wait already too.
    pub fn set(&self, pass: Pass) {
        self.pass.send_replace(pass);
    }
}

/// A proxy that had the port before may still be ending.
fn bind(port: u16) -> std::net::TcpListener {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return listener,
            Err(error) => assert!(std::time::Instant::now() < end, "the proxy's port {port} is not free: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, pass: watch::Receiver<Pass>) {
    while let Ok((from, _)) = listener.accept().await {
        let pass = pass.clone();
        tokio::spawn(async move {
            // Nobody behind it: the connection ends, as it would without a proxy.
            let Ok(there) = TcpStream::connect(to).await else { return };
            if from.set_nodelay(true).and(there.set_nodelay(true)).is_err() {
                return;
            }
            let (from_read, from_write) = from.into_split();
            let (there_read, there_write) = there.into_split();
            // When one side ends, what was on its way to the other still arrives.
            tokio::join!(direction(from_read, there_write, pass.clone()), direction(there_read, from_write, pass));
        });
    }
}

async fn direction(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut pass: watch::Receiver<Pass>) {
    let (came, mut goes) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        loop {
            let mut chunk = vec![0; CHUNK];
            match from.read(&mut chunk).await {
                Ok(count @ 1..) => {
                    chunk.truncate(count);
                    if came.send((Instant::now(), chunk)).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = goes.recv().await {
            loop {
                let how = *pass.borrow_and_update();
                let changed = pass.changed();
                match how {
                    Pass::After(delay) => tokio::select! {
                        () = tokio::time::sleep_until(at + delay) => break,
                        changed = changed => if changed.is_err() { return },
                    },
                    Pass::Never => {
                        if changed.await.is_err() {
                            return;
                        }
                    }
                }
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other side is told only that no more comes.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

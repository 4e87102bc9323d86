//! The pages that monitoring asks for: `/metrics`, `/livez`, `/readyz`. Plain HTTP, nothing that needs protection;
//! meant for an address that only monitoring reaches.

use std::collections::BTreeMap;
use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::recorder::Recorded;

/// What a process waits for before it can do its work: by what, why. Ready when there is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Readiness {
    /// What is not ready (for example `orders`), and why (for example `no leader is known`).
    pub waiting: BTreeMap<String, String>,
}

impl Readiness {
    /// Not ready, for this reason.
    pub fn waits(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { waiting: BTreeMap::from([(what.into(), why.into())]) }
    }

    /// Whether nothing is waited for.
    pub fn ready(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[derive(Clone)]
struct Pages {
    recorded: Recorded,
    readiness: watch::Receiver<Readiness>,
}

/// The pages. `/livez` answers 200 as long as the process turns. `/readyz` answers 200 or 503 with the reasons as JSON;
/// also 503 once whoever says so is gone.
pub fn pages(recorded: Recorded, readiness: watch::Receiver<Readiness>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Pages { recorded, readiness })
}

/// Serves the pages until `stop`. Errors: the listener's.
pub async fn serve<L>(listener: L, pages: Router, stop: CancellationToken) -> io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    axum::serve(listener, pages).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], pages.recorded.text())
}

async fn readyz(State(pages): State<Pages>) -> impl IntoResponse {
    let readiness = match pages.readiness.has_changed() {
        Ok(_) => pages.readiness.borrow().clone(),
        Err(_) => Readiness::waits("process", "is stopping"),
    };
    let status = if readiness.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": readiness.ready(), "waiting": readiness.waiting });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn page(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_says_why_and_the_server_stops() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (set, readiness) = watch::channel(Readiness::waits("orders", "no leader is known"));
        let stop = CancellationToken::new();
        let pages = pages(crate::telemetry::recorder::install().unwrap(), readiness);
        let server = tokio::spawn(serve(listener, pages, stop.clone()));

        assert!(page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let waiting = page(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
        assert!(waiting.contains(r#""waiting":{"orders":"no leader is known"}"#), "{waiting}");
        set.send_replace(Readiness::default());
        assert!(page(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(page(address, "/metrics").await.contains("text/plain; version=0.0.4"));
        drop(set);
        assert!(page(address, "/readyz").await.contains("is stopping"));
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}

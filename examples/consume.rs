//! A consuming application: follows a destination's committed transactions in the order of the log and prints each once.
//! Its cursor is a file beside its own state, moved only when a transaction has had its effect, so it goes on where it
//! stopped, at whichever node answers.
//!
//! ```text
//! cargo run --example consume -- client.toml orders cursor.txt        follows until it is stopped
//! cargo run --example consume -- client.toml orders cursor.txt 10     ends after ten
//! ```
//!
//! Printing and moving the cursor are two steps here: a crash in between prints a transaction again. An application with a
//! database keeps the cursor in the same database transaction as the effect, and then nothing happens twice.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sealcast::client::reader::{Cursor, Feed, From, ReadError, Reader, Subscription};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::DestinationName;
use sealcast::seams::Seams;

/// Larger payloads are for `Feed::next`, which gives them piece by piece.
const LARGEST: usize = 16 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(config), Some(destination), Some(cursor)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: consume CLIENT.TOML DESTINATION CURSOR-FILE [COUNT]".into());
    };
    let mut left = arguments.next().map(|count| count.parse::<u64>()).transpose()?;
    let destination = DestinationName::new(&destination)?;
    let path = Path::new(&cursor);
    let config = ClientConfig::load(&Sources::file(&config).with_process_environment())?;
    let reader = Reader::from_config(&config, &Seams::real())?;

    let mut feed = begin(&reader, &destination, load(path)?).await?;
    while left != Some(0) {
        // When its node ends, the feed goes on at another by itself; what comes here is that none can be reached.
        let (committed, payload) = match feed.transaction(LARGEST).await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(error) if error.retryable() => {
                again(&error).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let key = committed.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        println!("{} {} {key} {}", committed.position, committed.sender, String::from_utf8_lossy(&payload));
        if let Some(cursor) = feed.cursor()
            && let Err(error) = save(path, cursor)
        {
            eprintln!("{}: {error}: going on, but a restart would repeat what follows", path.display());
        }
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// Begins where the last run stopped. `Subscription::key` and `Subscription::header` would choose some transactions alone.
async fn begin(reader: &Reader, destination: &DestinationName, cursor: Option<Cursor>) -> Result<Feed, ReadError> {
    let subscription = Subscription::new(cursor.map_or(From::Start, From::Cursor));
    loop {
        match reader.subscribe(destination, subscription.clone()).await {
            Err(error) if error.retryable() => again(&error).await,
            other => return other,
        }
    }
}

async fn again(error: &ReadError) {
    eprintln!("{error}; trying again");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// None where there is no file yet; a file that is no cursor is no reason to begin anew.
fn load(path: &Path) -> Result<Option<Cursor>, Box<dyn Error>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().parse()?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Written beside it and renamed, so that a crash leaves the old cursor or the new one.
fn save(path: &Path, cursor: Cursor) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, cursor.to_string())?;
    fs::rename(beside, path)
}

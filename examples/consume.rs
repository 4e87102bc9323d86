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

use sealcast::client::reader::{Feed, From, ReadError, Reader};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{DestinationName, Position};
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
    let cursor = Path::new(&cursor);
    let config = ClientConfig::load(&Sources::file(&config).with_process_environment())?;
    let reader = Reader::from_config(&config, &Seams::real())?;
    while left != Some(0) {
        match follow(&reader, &destination, cursor, &mut left).await {
            Err(error) if error.retryable() => {
                eprintln!("{error}; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Follows one node's feed until it ends or breaks off, or enough have come.
async fn follow(
    reader: &Reader,
    destination: &DestinationName,
    cursor: &Path,
    left: &mut Option<u64>,
) -> Result<(), ReadError> {
    let from = load(cursor).map_or(From::Start, From::After);
    let mut feed: Feed = reader.subscribe(destination, from, true).await?;
    while *left != Some(0) {
        let Some((committed, payload)) = feed.transaction(LARGEST).await? else { return Ok(()) };
        let key = committed.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        println!("{} {} {key} {}", committed.position, committed.sender, String::from_utf8_lossy(&payload));
        if let Err(error) = save(cursor, committed.position) {
            eprintln!("{}: {error}: going on, but a restart would repeat what follows", cursor.display());
        }
        *left = left.map(|left| left - 1);
    }
    Ok(())
}

fn load(cursor: &Path) -> Option<Position> {
    fs::read_to_string(cursor).ok()?.trim().parse().ok()
}

/// Written beside it and renamed, so that a crash leaves the old cursor or the new one.
fn save(cursor: &Path, position: Position) -> std::io::Result<()> {
    let beside = cursor.with_extension("new");
    fs::write(&beside, position.to_string())?;
    fs::rename(beside, cursor)
}

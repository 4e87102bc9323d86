//! Compare-and-set: two workers count one number up, and no step of either is lost. Each reads the key's last value and
//! where it was committed, and submits the next one on the condition that nobody was faster; who lost reads again.
//!
//! ```text
//! cargo run --example compare_and_set -- sender/client.toml reader/client.toml orders stock-of-nails 5
//! ```
//!
//! The condition is checked by consensus, so it holds among all senders of the destination, on all machines.

use std::error::Error;

use sealcast::client::reader::{Freshness, ReadError, Reader};
use sealcast::client::{Client, Transaction, WaitError};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{DestinationName, OnPredecessor, Position, Rejection};
use sealcast::seams::Seams;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A number that several count up.
struct Counter {
    client: Client,
    reader: Reader,
    destination: DestinationName,
    key: String,
}

impl Counter {
    /// The last value and its version: the position where it was committed, 0.0 before the first.
    async fn read(&self) -> Outcome<(u64, Position)> {
        // Else a node that lags behind might give an older one, and the attempt would be in vain.
        let freshness = Freshness { linearizable: true, ..Freshness::default() };
        let latest = self.reader.get_by_key(&self.destination, self.key.as_bytes(), false, freshness).await;
        let found = match latest {
            Ok(mut feed) => feed.transaction(64).await?,
            Err(ReadError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        match found {
            Some((committed, payload)) => Ok((std::str::from_utf8(&payload)?.parse()?, committed.position)),
            None => Ok((0, Position::default())),
        }
    }

    /// One more; gives the value and where it was committed.
    async fn count(&self) -> Outcome<(u64, Position)> {
        loop {
            let (value, version) = self.read().await?;
            let next = Transaction::new((value + 1).to_string())
                .key(self.key.clone())
                .expected_version(version)
                // What the other worker lost shall not be held against this one.
                .on_predecessor(OnPredecessor::GoOn);
            let handle = self.client.submit(self.destination.as_str(), next).await?;
            match handle.committed().await {
                Ok(receipt) => return Ok((value + 1, receipt.position.unwrap_or_default())),
                Err(WaitError::Rejected(Rejection::Conflict)) => {}
                Err(other) => return Err(other.into()),
            }
        }
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sender, reader, destination, key, times] = arguments.as_slice() else {
        return Err("usage: compare_and_set CLIENT.TOML READER.TOML DESTINATION KEY TIMES".into());
    };
    let times: u64 = times.parse()?;
    let reading = ClientConfig::load(&Sources::file(reader).with_process_environment())?;
    let counter = Counter {
        client: Client::connect(sender).await?,
        reader: Reader::from_config(&reading, &Seams::real())?,
        destination: DestinationName::new(destination)?,
        key: key.clone(),
    };
    let worker = async |number: u32| {
        for _ in 0..times {
            let (value, position) = counter.count().await?;
            println!("{value} at {position}, by worker {number}");
        }
        Outcome::Ok(())
    };
    tokio::try_join!(worker(1), worker(2))?;
    counter.client.close().await;
    Ok(())
}

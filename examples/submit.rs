//! A submitting service: reads lines `KEY VALUE` from standard input and submits each as a transaction, in order for each
//! key, with a bounded window; prints every fate as it becomes certain.
//!
//! ```text
//! printf 'customer-1 ten nails\ncustomer-2 a hammer\ncustomer-1 five more nails\n' |
//!     cargo run --example submit -- client.toml orders
//! ```
//!
//! What has no fate when the service ends is still in its outbox: started again, it goes on with it.

use std::error::Error;
use std::time::Duration;

use sealcast::client::{Client, Handle, Stage, SubmitError, Transaction, Waited};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(config), Some(destination)) = (arguments.next(), arguments.next()) else {
        return Err("usage: submit CLIENT.TOML DESTINATION".into());
    };
    let client = Client::connect(&config).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut waiting = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        let (key, value) = line.split_once(' ').unwrap_or(("", &line));
        let mut transaction = Transaction::new(value.to_owned()).content_type("text/plain");
        if !key.is_empty() {
            transaction = transaction.key(key.to_owned());
        }
        let handle = submit(&client, &destination, transaction).await?;
        println!("submitted {}", handle.ticket());
        waiting.spawn(follow(handle));
        // What is done by now.
        while let Some(done) = waiting.try_join_next() {
            println!("{}", done?);
        }
    }
    while let Some(done) = waiting.join_next().await {
        println!("{}", done?);
    }
    client.close().await;
    Ok(())
}

/// Submits, and waits whenever the window or the outbox is full: the transaction comes back unharmed.
async fn submit(client: &Client, destination: &str, mut transaction: Transaction) -> Result<Handle, SubmitError> {
    loop {
        match client.submit(destination, transaction).await {
            Err(error) if error.retryable() => {
                transaction = *error.transaction;
                client.ready(transaction.payload().len() as u64).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}

/// Waits until the fate is certain, at most a minute. Unknown is not failed: the ticket can be attached again later.
async fn follow(handle: Handle) -> String {
    let ticket = handle.ticket().clone();
    match handle.wait(Stage::Committed, Duration::from_secs(60)).await {
        Ok(Waited::Reached) => match handle.receipt() {
            Some(receipt) => {
                let position = receipt.position.map(|position| position.to_string()).unwrap_or_default();
                let signers: Vec<&str> = receipt.signers.iter().map(|name| name.as_str()).collect();
                format!("committed {ticket} at {position}, signed by {}", signers.join(" and "))
            }
            None => format!("committed {ticket}"),
        },
        Ok(Waited::Rejected(reason)) => format!("rejected({}) {ticket}", reason.word()),
        Ok(Waited::Expired) => format!("expired {ticket}"),
        Ok(Waited::Unknown) => format!("unknown {ticket}"),
        Err(error) => format!("unknown {ticket}: {error}"),
    }
}

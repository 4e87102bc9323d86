//! `sealcast inspect`: what a broker can see of a topic, a record, a key file or a directory, and what a holder of a
//! destination's keys can.
//!
//! - [`record`] shows one record, [`open`] what is in parcels for whoever has the keys.
//!
//! Owns what is looked at, and how much of it. Must not print a secret, nor a payload.

mod open;
mod record;

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use zeroize::Zeroizing;

use super::config::{Either, load};
use super::init::property;
use super::session::block_on;
use super::{CliError, Context, Exit};
use crate::config::{EnvironmentSection, TransportSettings};
use crate::core::directory::{Directory, FIRST_LINE, Span};
use crate::core::gather::Address;
use crate::core::id::{DestinationName, Time};
use crate::core::limits;
use crate::core::receipt::{NOTICE_MAGIC, is_query};
use crate::core::sign::PublicKey;
use crate::core::split::segment::is_segment;
use crate::keys::{KeyRing, Kind, PublicKeys, SecretFile};
use crate::transport::admin;
use crate::transport::{AnyTransport, Batch, Offset, Partition, ReadError, Topic, Transport};
use open::Holder;
use record::{Seen, Viewer, printable};

/// How long a topic's partitions may take to be known.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// How long a partition that cannot be reached is asked again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first line of a key ring that is sealed to a node begins so.
const KEY_RING: &str = "# sealcast key ring";

/// Shows what a broker can see of a topic, a record, a key or a directory; and with a key, what its holder can
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A topic is named by a destination of the configuration's directory, by `notices`, or in full. Of a segment a broker sees \
the header and sizes; with -i and a destination's key file, transactions are gathered and opened too: their ids, keys, \
headers and sizes. Payloads are never printed: -o writes them to files. CHECK says whether signature, proof and UUID are \
right, by the configuration's directory.

Examples:
  sealcast inspect operator/directory
  sealcast inspect senders/web/sender.key
  sealcast inspect orders -e --config nodes/a/node.toml
  sealcast inspect notices --from -5 -e --config nodes/a/node.toml
  sealcast inspect orders -e -i operator/destinations/orders.key --config nodes/a/node.toml
  sealcast inspect orders --at 0/0 --config nodes/a/node.toml -b localhost:9092 --format json")]
pub(super) struct Inspect {
    /// A file (a key, a key ring, a directory, one record), a destination, notices, or a topic's full name
    #[arg(value_name = "FILE|TOPIC")]
    what: String,

    /// The node.toml or client.toml that names the directory and the cluster; files need it for signatures alone
    #[arg(long, value_name = "FILE", env = "SEALCAST_CONFIG")]
    config: Option<PathBuf>,

    /// Bootstrap brokers, instead of the configuration's
    #[arg(short, long, value_delimiter = ',', value_name = "HOST:PORT,..")]
    brokers: Vec<String>,

    /// A librdkafka property; repeat for more
    #[arg(short = 'X', value_name = "PROP=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,

    /// Only this partition
    #[arg(short, long, value_name = "N")]
    partition: Option<i32>,

    /// Where to start, in each partition: start, end, -N (the last N), an offset, or @TIME (that long ago)
    #[arg(long, default_value = "start", value_name = "start|end|-N|OFFSET|@TIME", allow_hyphen_values = true,
          value_parser = start)]
    from: Start,

    /// One record, with all its fields
    #[arg(long, value_name = "PARTITION/OFFSET", value_parser = address, conflicts_with_all = ["partition", "from", "count"])]
    at: Option<(i32, i64)>,

    /// Stop at the end, rather than wait for more
    #[arg(short = 'e', long)]
    exit: bool,

    /// Stop after so many records
    #[arg(short, long, value_name = "N", default_value_t = 100)]
    count: u64,

    /// Open what is for this destination: its key file
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// A folder for payloads: each in a file of its transaction's id
    #[arg(short, long, value_name = "DIR", requires = "identity")]
    output: Option<PathBuf>,
}

/// Where reading starts in a partition.
#[derive(Debug, Clone, Copy)]
enum Start {
    Beginning,
    End,
    Last(i64),
    At(Offset),
    Ago(Duration),
}

fn start(text: &str) -> Result<Start, String> {
    let wrong = || "expected start, end, -N, an offset or @TIME, for example -10 or @2h".to_owned();
    Ok(match text {
        "start" => Start::Beginning,
        "end" => Start::End,
        _ => match (text.strip_prefix('-'), text.strip_prefix('@')) {
            (Some(count), _) => Start::Last(count.parse().ok().filter(|count| *count >= 0).ok_or_else(wrong)?),
            (_, Some(ago)) => Start::Ago(ago.parse::<Span>().map_err(|error| error.to_string())?.0),
            _ => Start::At(text.parse().ok().filter(|offset| *offset >= 0).ok_or_else(wrong)?),
        },
    })
}

fn address(text: &str) -> Result<(i32, i64), String> {
    let parts =
        text.split_once('/').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    let wrong = || "expected PARTITION/OFFSET, for example 0/17".to_owned();
    parts.filter(|(partition, offset)| *partition >= 0 && *offset >= 0).ok_or_else(wrong)
}

/// What a configuration tells.
struct Configured {
    environment: EnvironmentSection,
    transport: Option<TransportSettings>,
}

impl Inspect {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let configured = self.configured()?;
        let file = Path::new(&self.what);
        if file.is_file() {
            return self.file(file, configured.as_ref(), context);
        }
        let Some(configured) = configured else {
            let what = &self.what;
            return Err(CliError::usage(format!(
                "{what}: there is no such file; for a topic name the cluster with --config node.toml or client.toml"
            )));
        };
        block_on(self.topic(&configured, context))
    }

    fn configured(&self) -> Result<Option<Configured>, CliError> {
        let Some(file) = &self.config else { return Ok(None) };
        let (environment, transport) = match load(file.clone())? {
            Either::Node(config) => (config.environment.clone(), Some(config.transport()?)),
            Either::Client(config) => (config.environment.clone(), config.transport()?),
        };
        let transport = match (transport, self.brokers.is_empty()) {
            (Some(TransportSettings::Kafka { brokers, mut properties }), own) => {
                properties.extend(self.properties.iter().cloned());
                Some(TransportSettings::Kafka { brokers: if own { brokers } else { self.brokers.clone() }, properties })
            }
            (_, false) => {
                let properties = self.properties.iter().cloned().collect();
                Some(TransportSettings::Kafka { brokers: self.brokers.clone(), properties })
            }
            (other, true) => other,
        };
        Ok(Some(Configured { environment, transport }))
    }

    /// A key file, a key ring, a directory or a record.
    fn file(&self, file: &Path, configured: Option<&Configured>, context: &Context) -> Result<Exit, CliError> {
        let bytes = read(file)?;
        let is_secret = std::str::from_utf8(&bytes).is_ok_and(|text| Kind::of(text).is_some());
        if is_secret {
            // Read again: only a file that nobody else can read is used.
            drop(bytes);
            shortened(&super::keys::read_public(file)?, context)?;
            return Ok(Exit::Done);
        }
        if is_segment(&bytes) || bytes.starts_with(&NOTICE_MAGIC) || is_query(&bytes) {
            let viewer = Viewer::new(configured.map(Configured::known).transpose()?);
            let seen = viewer.record(&[], &Bytes::copy_from_slice(&bytes));
            whole(&seen, context)?;
            return Ok(Exit::Done);
        }
        let neither =
            || CliError::usage(format!("{}: is neither a key, a directory nor a record of Sealcast", file.display()));
        let text = std::str::from_utf8(&bytes).map_err(|_| neither())?;
        if text.starts_with(KEY_RING) {
            let about: Vec<_> = text.lines().take_while(|line| line.starts_with('#')).map(printable).collect();
            let about = about.join("\n");
            return match context.output.is_json() {
                true => Ok(context.output.object(&json!({"kind": "key-ring", "about": about}))?),
                false => Ok(context.output.line(&about)?),
            }
            .map(|()| Exit::Done);
        }
        let table = toml::from_str::<toml::Table>(text).unwrap_or_default();
        if table.get("environment").is_some_and(toml::Value::is_table) {
            let shown = file.display();
            return Err(CliError::usage(format!(
                "{shown}: is a configuration: `sealcast config check {shown}` says what is in it, and --config uses it"
            )));
        }
        let is_public = table.contains_key("kind");
        let is_draft = !is_public && table.contains_key("environment");
        if text.starts_with(FIRST_LINE) || is_draft {
            let signature = match configured {
                _ if is_draft => "none: this is a draft".to_owned(),
                None => "not checked: name a configuration, which has the operator's key, with --config".to_owned(),
                Some(configured) => match Directory::verify(&bytes, &configured.environment.operator_key()?, 1) {
                    Ok(_) => format!("valid, of operator {}", configured.environment.operator),
                    Err(error) => error.to_string(),
                },
            };
            super::directory::show(file, Some(signature), context)?;
            return Ok(Exit::Done);
        }
        if !is_public {
            return Err(neither());
        }
        shortened(&PublicKeys::from_toml(text, &file.display().to_string())?, context)?;
        Ok(Exit::Done)
    }

    async fn topic(&self, configured: &Configured, context: &Context) -> Result<Exit, CliError> {
        let (directory, operator) = configured.known()?;
        let topic = topic(&self.what, &directory)?;
        let settings = configured.transport.clone();
        let settings = settings
            .ok_or_else(|| CliError::usage("the configuration has no [transport]: name the cluster with -b"))?;
        let holder = match &self.identity {
            None => None,
            Some(file) => Some(Holder::new(directory.clone(), KeyRing::read(file)?, self.output.clone())?),
        };
        let transport = AnyTransport::open_or_attach(settings, &context.seams).await?;
        let partitions = transport.known(&topic, KNOWN_WITHIN, &context.seams).await;
        let wanted = self.at.map(|(partition, _)| partition).or(self.partition);
        let chosen: Vec<_> =
            partitions.iter().filter(|one| wanted.is_none_or(|number| one.id.number == number)).collect();
        if chosen.is_empty() {
            if partitions.is_empty() {
                // A cluster that does not answer says so itself.
                admin::cluster(&transport).await?;
            }
            return Err(match (partitions.is_empty(), wanted) {
                (false, Some(number)) => CliError::usage(format!("{topic}: has no partition {number}")),
                _ => CliError::with(
                    Exit::Unavailable,
                    format!("{topic}: no broker knows it: make it with `sealcast topic init`"),
                ),
            });
        }
        let mut look = Look { inspect: self, context, transport: &transport, holder, shown: 0, heads: false };
        look.partitions(&chosen, &Viewer::new(Some((directory, operator)))).await
    }
}

impl Configured {
    /// The directory, and the key that signs it.
    fn known(&self) -> Result<(Arc<Directory>, PublicKey), CliError> {
        Ok((Arc::new(self.environment.load_directory()?), self.environment.operator_key()?))
    }
}

/// The longest run of hexadecimal digits that people are shown, and how much of a longer one.
const DIGITS_WHOLE: usize = 64;
const DIGITS_SHOWN: usize = 32;

/// Prints a public part: whole for programs, without the length of its keys for people.
fn shortened(public: &PublicKeys, context: &Context) -> Result<(), CliError> {
    if context.output.is_json() {
        return super::keys::show(public, context);
    }
    let mut text = String::new();
    for line in public.to_toml()?.lines() {
        match line.split_once(" = \"").map(|(name, value)| (name, value.trim_end_matches('"'))) {
            Some((name, digits)) if digits.len() > DIGITS_WHOLE => {
                let (first, bytes) = (digits.get(..DIGITS_SHOWN).unwrap_or_default(), digits.len() / 2);
                text.push_str(&format!("{name} = {first}.. ({bytes} bytes: `sealcast keys show` prints all)\n"));
            }
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    context.output.raw(text.as_bytes())?;
    Ok(())
}

/// A small file as a whole. It may turn out to hold a secret.
fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let failed = |error| CliError::usage(format!("{}: {error}", file.display()));
    let most = limits::SEGMENT_BYTES.max(limits::DIRECTORY_BYTES) as u64;
    let opened = std::fs::File::open(file).map_err(failed)?;
    let length = opened.metadata().map_err(failed)?.len().min(most);
    // One byte more than it needs, so that reading to the end does not move (and leave behind) what was read.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    opened.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(CliError::usage(format!("{}: more than {most} bytes: no file of Sealcast", file.display())));
    }
    Ok(bytes)
}

fn topic(named: &str, directory: &Directory) -> Result<Topic, CliError> {
    if named == "notices" {
        return Ok(Topic::notices(&directory.name));
    }
    if let Some(entry) = DestinationName::new(named).ok().and_then(|name| directory.destinations.get(&name)) {
        return Ok(Topic::segments(&directory.name, &entry.name));
    }
    if named.contains('.') && !named.contains('/') {
        return Ok(Topic::named(named));
    }
    let names: Vec<_> = directory.destinations.keys().map(ToString::to_string).collect();
    Err(CliError::usage(format!(
        "{named}: there is no such file, and the directory has no such destination: it has {}",
        names.join(", ")
    )))
}

/// Reading partitions side by side, and what was shown so far.
struct Look<'a> {
    inspect: &'a Inspect,
    context: &'a Context,
    transport: &'a AnyTransport,
    holder: Option<Holder>,
    shown: u64,
    heads: bool,
}

/// A partition that is read.
struct Reading<'a> {
    partition: &'a Partition,
    next: Offset,
    since: Option<Time>,
    /// Where it ended when it was first looked at.
    end: Offset,
}

impl Look<'_> {
    async fn partitions(&mut self, chosen: &[&Partition], viewer: &Viewer) -> Result<Exit, CliError> {
        let mut readings = VecDeque::new();
        for partition in chosen {
            readings.push_back(self.begin(partition).await?);
        }
        let most = if self.inspect.at.is_some() { 1 } else { self.inspect.count };
        let stops = self.inspect.exit || self.inspect.at.is_some();
        while let Some(mut reading) = readings.pop_front() {
            if self.shown >= most {
                break;
            }
            if stops && reading.next >= reading.end {
                continue;
            }
            let batch = self.read(&reading.partition.clone(), reading.next).await?;
            let mut rows = Vec::new();
            let mut passed = batch.next;
            for record in &batch.records {
                if self.shown >= most || (stops && record.offset >= reading.end) {
                    passed = record.offset;
                    break;
                }
                if reading.since.is_some_and(|since| record.time < since) {
                    continue;
                }
                self.shown += 1;
                let number = reading.partition.id.number;
                let value = record.value.clone().unwrap_or_default();
                rows.push(viewer.record(&record.key, &value).at(number, record.offset, record.time));
                if let Some(holder) = &mut self.holder {
                    let (at, now) =
                        (Address { partition: number, offset: record.offset }, self.context.seams.clock.now());
                    let opened = holder.take(&value, at, now)?;
                    rows.extend(opened.into_iter().map(|seen| seen.at(number, record.offset, record.time)));
                }
            }
            reading.next = passed;
            self.print(&rows)?;
            // An end that nothing follows: what offsets skip there would be waited for in vain.
            let done = stops && batch.records.is_empty() && batch.next >= batch.end;
            if !done {
                readings.push_back(reading);
            }
        }
        if let (Some((partition, offset)), 0) = (self.inspect.at, self.shown) {
            return Err(CliError::usage(format!("{partition}/{offset}: there is no such record")));
        }
        for left in self.holder.iter().flat_map(Holder::left) {
            self.context.output.note(&left);
        }
        if stops && self.shown >= most && self.inspect.at.is_none() && readings.iter().any(|one| one.next < one.end) {
            self.context.output.note(&format!("{most} records are shown, and there are more: -c N shows more"));
        }
        Ok(Exit::Done)
    }

    /// Where to start in a partition.
    async fn begin<'p>(&self, partition: &'p Partition) -> Result<Reading<'p>, CliError> {
        let (low, end) = self.bounds(partition).await?;
        let ago = |ago: Duration| {
            let millis = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            Time(self.context.seams.clock.now().0.saturating_sub(millis))
        };
        let (next, since) = match (self.inspect.at, self.inspect.from) {
            (Some((_, offset)), _) => (offset, None),
            (None, Start::Beginning) => (low, None),
            (None, Start::End) => (end, None),
            (None, Start::Last(count)) => (end.saturating_sub(count).max(low), None),
            (None, Start::At(offset)) => (offset, None),
            (None, Start::Ago(span)) => (low, Some(ago(span))),
        };
        if !(low..=end).contains(&next) {
            let number = partition.id.number;
            return Err(CliError::usage(format!("partition {number} has offsets {low} to {end}, not {next}")));
        }
        Ok(Reading { partition, next, since, end })
    }

    /// The first offset that a partition has, and its end.
    async fn bounds(&self, partition: &Partition) -> Result<(Offset, Offset), CliError> {
        match self.read_once(partition, 0).await {
            Ok(batch) => Ok((batch.low, batch.end)),
            Err(ReadError::OutOfRange { low, end, .. }) => Ok((low, end)),
            Err(error) => Err(refused(&error)),
        }
    }

    async fn read(&self, partition: &Partition, at: Offset) -> Result<Batch, CliError> {
        self.read_once(partition, at).await.map_err(|error| refused(&error))
    }

    /// Reads, and again while the partition is away, for a while.
    async fn read_once(&self, partition: &Partition, at: Offset) -> Result<Batch, ReadError> {
        let clock = &self.context.seams.clock;
        let began = clock.monotonic();
        loop {
            match self.transport.read(partition.id.clone(), at).await {
                Err(error) if error.retryable() && clock.monotonic().saturating_sub(began) < PATIENCE => {
                    clock.sleep(Duration::from_millis(200)).await;
                }
                other => return other,
            }
        }
    }

    fn print(&mut self, rows: &[Seen]) -> Result<(), CliError> {
        if self.inspect.at.is_some() {
            return rows.iter().try_for_each(|seen| whole(seen, self.context));
        }
        if !rows.is_empty() {
            self.context.output.more_rows(rows, !self.heads)?;
            self.heads = true;
        }
        Ok(())
    }
}

fn refused(error: &ReadError) -> CliError {
    CliError::with(if error.retryable() { Exit::Unavailable } else { Exit::Failed }, error.to_string())
}

/// One record with all its fields: below each other, or as JSON.
fn whole(seen: &Seen, context: &Context) -> Result<(), CliError> {
    if context.output.is_json() {
        context.output.object(seen)?;
        return Ok(());
    }
    let head = [("check", Some(&seen.check)), ("by", seen.by.as_ref()), ("time", seen.time.as_ref())];
    let mut text = format!("{}: {}, {} bytes\n", seen.kind, printable(&seen.about), seen.bytes);
    for (name, value) in head {
        if let Some(value) = value {
            text.push_str(&format!("{name}: {}\n", printable(value)));
        }
    }
    for (name, value) in seen.fields.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("{name}: {}\n", printable(&value)));
    }
    context.output.raw(text.as_bytes())?;
    Ok(())
}

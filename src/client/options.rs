//! What a client is made of: from a configuration file, or put together by hand. Must not start anything.

use std::sync::Arc;
use std::time::Duration;

use super::error::ClientError;
use super::transaction::Transaction;
use crate::config::{BundleSection, ClientConfig, WindowSection};
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, Suite};
use crate::core::sign::{PublicKey, SecretKey};
use crate::seams::Seams;
use crate::store::outbox::OutboxOptions;

/// Sees every transaction that is submitted, with its destinations, before it is checked, and gives the one that is submitted
/// in its place: for what all transactions of a service have in common, such as headers, and for tests. Of one whose payload is
/// read piece by piece the payload inside is not used; whether to pad and compress it is. Must not block.
pub type Interceptor = Arc<dyn Fn(&[DestinationName], Transaction) -> Transaction + Send + Sync>;

/// What a client is made of, when it does not come from a configuration file, or not all of it does.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use sealcast::client::{Client, Options};
/// use sealcast::config::{ClientConfig, Sources};
/// use sealcast::seams::Seams;
/// use sealcast::transport::{AnyTransport, TransportOptions};
///
/// let config = ClientConfig::load(&Sources::file("client.toml"))?;
/// let seams = Seams::real();
/// let mut options = Options::from_config(&config, seams.clone())?;
/// options.bundle_wait = Duration::from_millis(20);
/// let settings = config.transport()?.ok_or("no [transport]")?;
/// let transport = AnyTransport::open(&TransportOptions::for_clients(settings), &seams)?;
/// let client = Client::start(Arc::new(transport), options).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Options {
    /// The sender's signing key; the directory knows its name.
    pub key: SecretKey,
    /// The operator, whose signature makes a directory.
    pub operator: PublicKey,
    /// The directory to begin with. Newer ones are taken from notices and from the outbox.
    pub directory: Arc<Directory>,
    /// Directories of a lower version are refused.
    pub minimum_version: u64,
    /// The suite to seal with.
    pub suite: Suite,
    /// Where the outbox is and how much it holds.
    pub outbox: OutboxOptions,
    /// Most undecided transactions.
    pub window_transactions: usize,
    /// Most undecided payload bytes.
    pub window_bytes: u64,
    /// A parcel of several transactions is closed when its payloads have this many bytes: 1 to 4 MiB.
    pub bundle_bytes: usize,
    /// Parcels of small transactions are begun at least this far apart, unless enough bytes have come: what comes in between
    /// shares the next one. What is submitted after such a pause goes at once, unless more than as many are without a fate: then
    /// as many are waited for, four times as long as the last parcels took until they were durable, at most 100 ms. Zero never waits.
    pub bundle_wait: Duration,
    /// Most bytes of segments in memory, per destination, that the brokers have not accepted; less where the sender has so many
    /// destinations that all of them together would take more than four times this.
    pub publish_bytes: usize,
    /// Sees every transaction first; none without a word.
    pub interceptor: Option<Interceptor>,
    /// The machine.
    pub seams: Seams,
}

impl Options {
    /// With suite 2 (X-Wing), an outbox in memory (not durable), the default window and bundles, and the real machine.
    pub fn new(key: SecretKey, operator: PublicKey, directory: Arc<Directory>) -> Self {
        let (window, bundle) = (WindowSection::default(), BundleSection::default());
        Self {
            key,
            operator,
            directory,
            minimum_version: 1,
            suite: Suite::XWing,
            outbox: OutboxOptions { folder: None, bytes: 4 << 30 },
            window_transactions: window.transactions,
            window_bytes: window.bytes,
            bundle_bytes: bundle.bytes,
            bundle_wait: bundle.wait.0,
            publish_bytes: 16 << 20,
            interceptor: None,
            seams: Seams::real(),
        }
    }

    /// Those of a configuration. Errors: [`ClientError::Config`], [`ClientError::Setting`] when it names no sender.
    pub fn from_config(config: &ClientConfig, seams: Seams) -> Result<Self, ClientError> {
        let needed = |setting| ClientError::Setting { setting, problem: "a sender needs it".to_owned() };
        let directory = config.environment.load_directory()?;
        let (_, key) = config.sender(&directory)?.ok_or_else(|| needed("[sender]"))?;
        let outbox = config.outbox.as_ref().ok_or_else(|| needed("[outbox]"))?;
        let suite = config.sender.as_ref().map_or(Suite::XWing, |sender| sender.suite);
        Ok(Self {
            minimum_version: config.environment.minimum_version,
            suite,
            outbox: OutboxOptions { folder: outbox.path.clone(), bytes: outbox.bytes },
            window_transactions: config.window.transactions,
            window_bytes: config.window.bytes,
            bundle_bytes: config.bundle.bytes,
            bundle_wait: config.bundle.wait.0,
            seams,
            ..Self::new(key.signing().clone(), config.environment.operator_key()?, Arc::new(directory))
        })
    }
}

//! `sealcast keys`: making keys, showing their public part, sealing key rings to nodes.

use std::path::{Path, PathBuf};

use super::{CliError, Context, Exit};
use crate::core::directory::{Directory, Draft, FIRST_LINE};
use crate::core::id::{DestinationName, EnvironmentId, NodeName, Suite, VerifyingKeyBytes};
use crate::core::sign::PublicKey;
use crate::keys::{KeyRing, NodeKeys, OperatorKey, PublicKeys, ReaderKey, SecretFile, SenderKey, read_secret_text};

/// Makes keys, shows their public part, seals key rings to nodes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sealcast keys generate sender -o web.key")]
pub(super) struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Makes a secret key file, and beside it a .pub file for the operator
    #[command(after_help = "\
Examples:
  sealcast keys generate sender -o web.key
  sealcast keys generate destination -o orders.key --name orders \\
      --environment 5f0c6a1e9b3d47f2a8c05d7e4b61f390")]
    Generate(Generate),
    /// Prints the public part of a key file, secret or .pub
    #[command(after_help = "Example:\n  sealcast keys show web.key")]
    Show {
        /// The key file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Seals a destination's keys to a node of the directory: the node's key ring file
    #[command(after_help = "\
Example:
  sealcast keys seal orders.key --directory directory.toml --node d -o orders.keyring")]
    Seal {
        /// The destination's key file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The draft directory, which has the node's public key
        #[arg(short, long, value_name = "FILE", default_value = "directory.toml")]
        directory: PathBuf,
        /// The node
        #[arg(long, value_name = "NAME")]
        node: NodeName,
        /// Where to write the key ring; on the node it belongs into the folder of key rings as DESTINATION.keyring
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Generate {
    /// Whose key
    #[arg(value_enum)]
    kind: Holder,
    /// The secret key's file, which must not exist yet; default KIND.key
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Destination only: its name
    #[arg(long, required_if_eq("kind", "destination"), value_name = "NAME")]
    name: Option<DestinationName>,
    /// Destination only: the environment's id, which `sealcast directory show` prints
    #[arg(long, required_if_eq("kind", "destination"), value_name = "ID")]
    environment: Option<EnvironmentId>,
    /// Destination only: the suites to make a key of
    #[arg(long, value_delimiter = ',', default_values_t = [Suite::X25519, Suite::XWing])]
    suites: Vec<Suite>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Holder {
    Sender,
    Destination,
    Node,
    Operator,
    Reader,
}

impl Keys {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        match self.action {
            Action::Generate(command) => command.run(context)?,
            Action::Show { file } => {
                let public = read_public(&file)?;
                show(&public, context)?;
            }
            Action::Seal { file, directory, node, output } => {
                let ring = KeyRing::read(&file)?;
                let draft = read_draft(&directory)?;
                if draft.environment != ring.environment() {
                    let (of, given) = (draft.environment, ring.environment());
                    let shown = file.display();
                    return Err(CliError::usage(format!("{shown}: is of environment {given}, the directory of {of}")));
                }
                let entry = draft.nodes.get(&node).ok_or_else(|| {
                    CliError::usage(format!("{}: there is no node {node}: add it first", directory.display()))
                })?;
                ring.write_sealed(&output, entry, &*context.seams.randomness, &*context.seams.disk)?;
                let made = serde_json::json!({
                    "file": output.display().to_string(), "destination": ring.destination(), "node": node,
                });
                if context.output.is_json() {
                    context.output.object(&made)?;
                } else {
                    context.output.line(&format!(
                        "{}: the keys of {}, sealed to node {node}",
                        output.display(),
                        ring.destination()
                    ))?;
                }
            }
        }
        Ok(Exit::Done)
    }
}

impl Generate {
    fn run(self, context: &Context) -> Result<(), CliError> {
        let randomness = &*context.seams.randomness;
        let destination = matches!(self.kind, Holder::Destination);
        if !destination && (self.name.is_some() || self.environment.is_some()) {
            return Err(CliError::usage("--name and --environment are for a destination's keys alone: remove them"));
        }
        let path = |word: &str| self.output.clone().unwrap_or_else(|| PathBuf::from(format!("{word}.key")));
        match (self.kind, &self.name, self.environment) {
            (Holder::Operator, ..) => save(&OperatorKey::generate(randomness)?, &path("operator"), context),
            (Holder::Sender, ..) => save(&SenderKey::generate(randomness)?, &path("sender"), context),
            (Holder::Reader, ..) => save(&ReaderKey::generate(randomness)?, &path("reader"), context),
            (Holder::Node, ..) => save(&NodeKeys::generate(randomness)?, &path("node"), context),
            (Holder::Destination, Some(name), Some(environment)) => {
                let mut suites = self.suites.clone();
                suites.sort();
                suites.dedup();
                let ring = KeyRing::generate(environment, name.clone(), &suites, randomness)?;
                save(&ring, &path(name.as_str()), context)
            }
            (Holder::Destination, ..) => Err(CliError::usage("a destination's keys need --name and --environment")),
        }
    }
}

/// Writes the secret and, beside it, the public file.
fn save<K: SecretFile>(key: &K, path: &Path, context: &Context) -> Result<(), CliError>
where
    for<'a> PublicKeys: From<&'a K>,
{
    let public = PublicKeys::from(key);
    let public_path = path.with_extension("pub");
    if public_path == path {
        return Err(CliError::usage("-o: .pub is for the public part: name the secret's file .key"));
    }
    for there in [path, &public_path] {
        if there.exists() {
            let shown = there.display();
            return Err(CliError::failed(format!("{shown}: is there already, and keys are never overwritten: use -o")));
        }
    }
    key.write(path, context.seams.clock.now(), &*context.seams.disk)?;
    let mut file = std::fs::File::create_new(&public_path).map_err(|error| CliError::file(&public_path, &error))?;
    std::io::Write::write_all(&mut file, public.to_toml()?.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| CliError::file(&public_path, &error))?;
    if context.output.is_json() {
        let made = serde_json::json!({
            "file": path.display().to_string(), "public_file": public_path.display().to_string(), "public": public,
        });
        context.output.object(&made)?;
    } else {
        let text = format!(
            "{}: the secret, for its holder alone\n{}: the public part, for the operator",
            path.display(),
            public_path.display()
        );
        context.output.line(&text)?;
    }
    Ok(())
}

/// Prints a public part.
pub(super) fn show(public: &PublicKeys, context: &Context) -> Result<(), CliError> {
    if context.output.is_json() {
        context.output.object(public)?;
    } else {
        context.output.raw(public.to_toml()?.as_bytes())?;
    }
    Ok(())
}

/// The public part of a key file of either sort. A secret file must be closed to others, a public one need not.
pub(super) fn read_public(file: &Path) -> Result<PublicKeys, CliError> {
    let origin = file.display().to_string();
    if file.extension().is_some_and(|extension| extension == "pub") {
        let text = std::fs::read_to_string(file).map_err(|error| CliError::usage(format!("{origin}: {error}")))?;
        return Ok(PublicKeys::from_toml(&text, &origin)?);
    }
    Ok(PublicKeys::of_secret(&read_secret_text(file)?, &origin)?)
}

/// An operator's public key: 64 hexadecimal digits, or a key file of either sort.
pub(super) fn operator_key(given: &str) -> Result<PublicKey, CliError> {
    let bytes: VerifyingKeyBytes = match given.parse() {
        Ok(bytes) => bytes,
        Err(_) => match read_public(Path::new(given))? {
            PublicKeys::Operator { signing } => signing,
            other => {
                let whose = other.kind().with_article();
                return Err(CliError::usage(format!("{given}: this is {whose} key, an operator's is needed")));
            }
        },
    };
    PublicKey::check(&bytes).map_err(|error| CliError::usage(format!("{given}: {error}")))
}

/// Reads a draft; a signed directory is told from it and refused with the mend.
pub(super) fn read_draft(file: &Path) -> Result<Draft, CliError> {
    let text =
        std::fs::read_to_string(file).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    if text.starts_with(FIRST_LINE) {
        let shown = file.display();
        return Err(CliError::usage(format!("{shown}: is a signed directory: name the draft (directory.toml)")));
    }
    Draft::from_toml(&text).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))
}

/// Reads and verifies a signed directory.
pub(super) fn read_directory(file: &Path, operator: &PublicKey, minimum: u64) -> Result<Directory, CliError> {
    let bytes = std::fs::read(file).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    Directory::verify(&bytes, operator, minimum)
        .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))
}

//! A destination's secrets: its index secret and one HPKE secret for each epoch and suite. Which of them is current says
//! the directory alone.
//!
//! The operator keeps a ring as a key file. A node gets it only sealed to its HPKE key: the file
//! `destinations/NAME.keyring` is a comment and, as armour, version 1, the encapsulation and the ciphertext, each behind
//! its u16 length; HPKE's info is L("key-ring"), environment, and destination and node names behind their u8 length; its
//! aad is empty.
//!
//! Owns the ring, its two files and their checks. Must not open parcels.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::holders::{new_hpke, random, read_hpke};
use super::{KeyError, Kind, NodeKeys, SecretFile, file};
use crate::core::directory::{DestinationEntry, DestinationKey, KeyState, NodeEntry, key_id};
use crate::core::id::{DestinationName, EnvironmentId, KeyId, NodeName, Suite};
use crate::core::limits;
use crate::core::seal::suite::{HpkePublic, HpkeSecret, SuiteError, unwrap, wrap};
use crate::core::wire::{Reader, Writer, label};
use crate::seams::{Disk, Randomness};

const BEGIN: &str = "-----BEGIN SEALCAST KEY RING-----";
const END: &str = "-----END SEALCAST KEY RING-----";
const SEALED_VERSION: u8 = 1;
const ARMOUR_COLUMNS: usize = 64;

/// What a destination's nodes, and nobody else, know.
#[derive(Clone)]
pub struct KeyRing {
    environment: EnvironmentId,
    destination: DestinationName,
    index: Zeroizing<[u8; 32]>,
    secrets: BTreeMap<KeyId, HpkeSecret>,
}

impl KeyRing {
    /// Makes an index secret and the first epoch's secrets, one for each suite. Errors: [`KeyError::Randomness`].
    pub fn generate(
        environment: EnvironmentId,
        destination: DestinationName,
        suites: &[Suite],
        randomness: &dyn Randomness,
    ) -> Result<Self, KeyError> {
        let mut ring = Self { environment, destination, index: random(randomness)?, secrets: BTreeMap::new() };
        for &suite in suites {
            ring.add_epoch(suite, randomness)?;
        }
        Ok(ring)
    }

    /// Adds a secret of this suite; gives its public key. Errors: [`KeyError::Randomness`], and [`KeyError::Text`] when the
    /// ring is full.
    pub fn add_epoch(&mut self, suite: Suite, randomness: &dyn Randomness) -> Result<DestinationKey, KeyError> {
        if self.secrets.len() >= limits::KEYS_PER_DESTINATION {
            let problem = format!("{} keys are the most a destination may have", limits::KEYS_PER_DESTINATION);
            return Err(KeyError::text(&self.origin(), problem));
        }
        let secret = new_hpke(suite, randomness)?;
        let key = public_key(&secret);
        self.secrets.insert(key.id, secret);
        Ok(key)
    }

    /// The environment that it belongs to.
    pub fn environment(&self) -> EnvironmentId {
        self.environment
    }

    /// The destination that it belongs to.
    pub fn destination(&self) -> &DestinationName {
        &self.destination
    }

    /// The never-rotated secret of key tags and idempotency tags.
    pub fn index_secret(&self) -> &[u8; 32] {
        &self.index
    }

    /// The secret of this key.
    pub fn secret(&self, id: &KeyId) -> Option<&HpkeSecret> {
        self.secrets.get(id)
    }

    /// The ids of its keys, ascending.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.secrets.keys()
    }

    /// Its public keys, all as current, by suite and id.
    pub fn public_keys(&self) -> Vec<DestinationKey> {
        let mut keys: Vec<_> = self.secrets.values().map(public_key).collect();
        keys.sort_by_key(|key| (key.suite, key.id));
        keys
    }

    /// Whether it is this destination's and holds the secret of each key that the directory lists as current. Errors:
    /// [`KeyError::Text`].
    pub fn check_covers(&self, entry: &DestinationEntry) -> Result<(), KeyError> {
        let current = |key: &&DestinationKey| key.state == KeyState::Current;
        match entry.keys.iter().filter(current).find(|key| !self.secrets.contains_key(&key.id)) {
            Some(key) => Err(KeyError::text(
                &self.origin(),
                format!("the secret of current key {} is missing: get a newer key ring from the operator", key.id),
            )),
            None => Ok(()),
        }
    }

    /// Seals the ring to a node; gives the text of its `.keyring` file. Errors: [`KeyError::Randomness`],
    /// [`KeyError::Seal`].
    pub fn seal_to(&self, node: &NodeEntry, randomness: &dyn Randomness) -> Result<String, KeyError> {
        let info = info(self.environment, &self.destination, &node.name);
        let drawn = random::<64>(randomness)?;
        let public = HpkePublic::from_bytes(Suite::XWing, &node.hpke).map_err(self.failed())?;
        let (encapsulation, ciphertext) =
            wrap(&public, &info, &[], &self.to_secret_bytes(), &drawn).map_err(self.failed())?;
        let mut sealed = Writer::with_capacity(8 + encapsulation.len() + ciphertext.len());
        sealed.u8(SEALED_VERSION).short_bytes(&encapsulation).short_bytes(&ciphertext);
        let mut text =
            format!("# sealcast key ring of destination {}, sealed to node {}\n", self.destination, node.name);
        for key in self.public_keys() {
            text.push_str(&format!("# key: {} {}\n", key.id, key.suite));
        }
        text.push_str(BEGIN);
        for (at, digit) in BASE64.encode(sealed.as_slice()).chars().enumerate() {
            if at % ARMOUR_COLUMNS == 0 {
                text.push('\n');
            }
            text.push(digit);
        }
        text.push('\n');
        text.push_str(END);
        text.push('\n');
        Ok(text)
    }

    /// Seals the ring to a node and writes its `.keyring` file, which must not exist yet. Errors: as [`Self::seal_to`], and
    /// [`KeyError::Io`].
    pub fn write_sealed(
        &self,
        path: &Path,
        node: &NodeEntry,
        randomness: &dyn Randomness,
        disk: &dyn Disk,
    ) -> Result<(), KeyError> {
        file::create(path, self.seal_to(node, randomness)?.as_bytes(), disk)
    }

    /// Opens the text of a `.keyring` file; `origin` goes into errors. Errors: [`KeyError::Text`] when the text is damaged
    /// or another destination's, [`KeyError::Seal`] when it was not sealed to this node.
    pub fn open(
        text: &str,
        origin: &str,
        environment: EnvironmentId,
        destination: &DestinationName,
        node: &NodeName,
        keys: &NodeKeys,
    ) -> Result<Self, KeyError> {
        let damaged = || KeyError::text(origin, "no key ring, or a damaged one: get it again from the operator");
        let body = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).ok_or_else(damaged)?.0;
        let digits: String = body.split_ascii_whitespace().collect();
        let sealed = BASE64.decode(digits.as_bytes()).map_err(|_| damaged())?;
        let mut reader = Reader::new(&sealed);
        let mut parts = || {
            let version = reader.u8("version").ok()?;
            let encapsulation = reader.short_bytes(limits::KEY_FILE_BYTES, "encapsulation").ok()?;
            let ciphertext = reader.short_bytes(limits::KEY_FILE_BYTES, "ciphertext").ok()?;
            (version == SEALED_VERSION && reader.left() == 0).then_some((encapsulation, ciphertext))
        };
        let (encapsulation, ciphertext) = parts().ok_or_else(damaged)?;
        let info = info(environment, destination, node);
        let secret = unwrap(keys.hpke(), &info, &[], encapsulation, ciphertext)
            .map_err(|cause| KeyError::Seal { origin: format!("{origin}: for node {node}"), cause })?;
        let ring = Self::from_secret_bytes(&secret, origin)?;
        if ring.environment != environment || ring.destination != *destination {
            return Err(damaged());
        }
        Ok(ring)
    }

    /// Reads a `.keyring` file. Errors: as for a key file, and [`KeyRing::open`]'s.
    pub fn read_sealed(
        path: &Path,
        environment: EnvironmentId,
        destination: &DestinationName,
        node: &NodeName,
        keys: &NodeKeys,
    ) -> Result<Self, KeyError> {
        let text = file::read_secret_text(path)?;
        Self::open(&text, &path.display().to_string(), environment, destination, node, keys)
    }

    fn origin(&self) -> String {
        format!("key ring of {}", self.destination)
    }

    fn failed(&self) -> impl FnOnce(SuiteError) -> KeyError {
        let origin = self.origin();
        move |cause| KeyError::Seal { origin, cause }
    }
}

impl SecretFile for KeyRing {
    const KIND: Kind = Kind::Destination;

    /// Environment, destination name behind its u8 length, index secret, u16 number of keys, each: u8 suite, secret.
    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Room for all of it, so that no copy is left behind by growing.
        let mut writer = Writer::with_capacity(16 + 64 + 32 + 2 + self.secrets.len() * 33);
        writer.put(&self.environment.0).name(self.destination.as_str()).put(self.index.as_slice());
        // At most KEYS_PER_DESTINATION.
        writer.u16(self.secrets.len() as u16);
        for secret in self.secrets.values() {
            writer.u8(secret.suite().number()).put(secret.bytes().as_slice());
        }
        Zeroizing::new(writer.finish())
    }

    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        let damaged = |error: crate::core::wire::WireError| KeyError::text(origin, error.to_string());
        let mut reader = Reader::new(bytes);
        let environment = EnvironmentId(reader.array("environment").map_err(damaged)?);
        let destination = reader.name("destination").map_err(damaged)?;
        let index = Zeroizing::new(reader.array("index secret").map_err(damaged)?);
        let count = reader.u16("number of keys").map_err(damaged)?;
        let most = limits::KEYS_PER_DESTINATION;
        if usize::from(count) > most {
            return Err(KeyError::text(origin, format!("{count} keys: at most {most} are allowed")));
        }
        let mut secrets = BTreeMap::new();
        for _ in 0..count {
            let number = reader.u8("suite").map_err(damaged)?;
            let suite = Suite::from_number(number)
                .ok_or_else(|| KeyError::text(origin, format!("suite {number} needs a later version of sealcast")))?;
            let secret = read_hpke(suite, &Zeroizing::new(reader.array("secret").map_err(damaged)?), origin)?;
            secrets.insert(secret.public().id(), secret);
        }
        reader.finish("keys").map_err(damaged)?;
        Ok(Self { environment, destination, index, secrets })
    }

    fn public_lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("environment: {}", self.environment), format!("destination: {}", self.destination)];
        lines.extend(self.public_keys().iter().map(|key| format!("key: {} {}", key.id, key.suite)));
        lines
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("destination", &self.destination)
            .field("keys", &self.secrets.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

fn public_key(secret: &HpkeSecret) -> DestinationKey {
    let (suite, public) = (secret.suite(), Bytes::copy_from_slice(secret.public().bytes()));
    DestinationKey { id: key_id(suite, &public), suite, public, state: KeyState::Current }
}

fn info(environment: EnvironmentId, destination: &DestinationName, node: &NodeName) -> Vec<u8> {
    let mut info = Writer::with_capacity(256);
    info.put(label::KEY_RING).put(&environment.0).name(destination.as_str()).name(node.as_str());
    info.finish()
}

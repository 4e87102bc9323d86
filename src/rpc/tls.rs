//! Mutual TLS without authorities: a certificate is only the envelope of an Ed25519 key, and the directory says whose key
//! that is. Names and dates in certificates mean nothing; the handshake's signature is verified as TLS 1.3 wants it
//! (RFC 8446, section 4.4.3).
//!
//! TLS 1.3 alone, X25519MLKEM768 before X25519. No resumption: every connection shows its key to the directory of that
//! moment. Must not decide what a peer may do: that is [`super::access`].

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use zeroize::Zeroizing;

use super::DirectoryWatch;
use super::access::PeerIdentity;
use crate::core::id::{NodeName, VerifyingKeyBytes};
use crate::core::sign::{PublicKey, SecretKey};

/// The protocol that both sides name in the handshake (RFC 7301): HTTP/2, which gRPC needs.
const PROTOCOL: &[u8] = b"h2";

/// What stands before the seed in a private key of Ed25519 (RFC 8410, section 7; PKCS#8 version 1).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What stands before the key in a SubjectPublicKeyInfo of Ed25519 (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// Why TLS cannot be set up. Neither depends on the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The certificate or its key was refused by the library that uses it.
    #[error("the TLS key cannot be used: {cause}")]
    Key {
        /// What the library said.
        cause: String,
    },
    /// The library refuses the settings.
    #[error("TLS cannot be set up: {cause}")]
    Settings {
        /// What the library said.
        cause: String,
    },
}

impl TlsError {
    /// Whether trying again can help: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A holder's key and the certificate that was made for it at start: a node's TLS key, a reader's signing key.
/// Cheap to clone; never shown.
#[derive(Clone)]
pub struct Credentials {
    key: VerifyingKeyBytes,
    resolver: Arc<SingleCertAndKey>,
}

impl Credentials {
    /// Makes the certificate. The same key gives the same certificate. Errors: [`TlsError::Key`].
    pub fn new(key: &SecretKey) -> Result<Self, TlsError> {
        let refused = |cause: &dyn std::fmt::Display| TlsError::Key { cause: cause.to_string() };
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "sealcast");
        let certificate =
            parameters.self_signed(&CertificateKey::new(key)).map_err(|error| refused(&error))?.der().clone();

        let mut pkcs8 = Zeroizing::new([0; 48]);
        for (to, from) in pkcs8.iter_mut().zip(PKCS8_PREFIX.iter().chain(key.seed().iter())) {
            *to = *from;
        }
        let signing = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
            .map_err(|error| refused(&error))?;
        let certified = CertifiedKey::new(vec![certificate], signing);
        certified.keys_match().map_err(|error| refused(&error))?;
        Ok(Self { key: key.public().bytes(), resolver: Arc::new(SingleCertAndKey::from(certified)) })
    }

    /// The public key, as the directory lists it.
    pub fn key(&self) -> VerifyingKeyBytes {
        self.key
    }

    /// The settings of a server whose callers are the nodes and readers of the directory of that moment.
    /// Errors: [`TlsError::Settings`].
    pub fn server(&self, directory: DirectoryWatch) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = Arc::new(KnownCaller { directory });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Settings { cause: error.to_string() })?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.resolver.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The settings of a client that talks to exactly this node, by its TLS key in the directory of that moment.
    /// Errors: [`TlsError::Settings`].
    pub fn client(&self, node: NodeName, directory: DirectoryWatch) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Settings { cause: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ExactNode { node, directory }))
            .with_client_cert_resolver(self.resolver.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials(of {})", self.key)
    }
}

/// The name that a TLS client must give; nobody looks at it.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into())
}

/// Lets the certificate be signed by a key that stays in its zeroizing type.
struct CertificateKey<'a> {
    secret: &'a SecretKey,
    public: PublicKey,
    bytes: [u8; 32],
}

impl<'a> CertificateKey<'a> {
    fn new(secret: &'a SecretKey) -> Self {
        let public = secret.public();
        Self { secret, bytes: public.bytes().0, public }
    }
}

impl rcgen::PublicKeyData for CertificateKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        debug_assert_eq!(self.public.bytes().0, self.bytes);
        &self.bytes
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for CertificateKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // X.509 fixes what is signed; no label can stand before it. No message of ours starts as a certificate does.
        Ok(self.secret.sign(&[], message).to_vec())
    }
}

fn provider() -> Arc<CryptoProvider> {
    let groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() })
}

/// The Ed25519 key of a certificate. Errors: one that TLS reports to the peer.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Result<VerifyingKeyBytes, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let info = parsed.subject_public_key_info();
    info.strip_prefix(&SPKI_PREFIX)
        .and_then(|key| <[u8; 32]>::try_from(key).ok())
        .map(VerifyingKeyBytes)
        .ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn refused() -> rustls::Error {
    // Becomes the alert access_denied: "a valid certificate was received, but access control does not let it in".
    rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
}

const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ED25519];

macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_signature(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            SCHEMES.to_vec()
        }
    };
}

/// Whether a connection failed because whoever answered has a key that was not expected.
pub(super) fn is_stranger(error: &io::Error) -> bool {
    let refusal = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    refusal == Some(&refused())
}

/// Whether whoever answered refused our key.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    let alert = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    alert == Some(&rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied))
}

/// Lets in the nodes and readers of the directory.
#[derive(Debug)]
struct KnownCaller {
    directory: DirectoryWatch,
}

impl ClientCertVerifier for KnownCaller {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let key = key_of(certificate)?;
        match PeerIdentity::of(&self.directory.borrow(), &key) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(refused()),
        }
    }

    handshake_signatures!();
}

/// Accepts one node's key alone.
#[derive(Debug)]
struct ExactNode {
    node: NodeName,
    directory: DirectoryWatch,
}

impl ServerCertVerifier for ExactNode {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = key_of(certificate)?;
        match self.directory.borrow().nodes.get(&self.node) {
            Some(node) if node.tls == key => Ok(ServerCertVerified::assertion()),
            _ => Err(refused()),
        }
    }

    handshake_signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_carries_its_key_and_is_the_same_each_time() {
        let secret = SecretKey::from_seed(&[5; 32]);
        let certificate = || {
            let credentials = Credentials::new(&secret).unwrap();
            let mut parameters = rcgen::CertificateParams::default();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            let certificate = parameters.self_signed(&CertificateKey::new(&secret)).unwrap().der().clone();
            (credentials.key(), certificate)
        };
        let (key, first) = certificate();
        assert_eq!(key, secret.public().bytes());
        assert_eq!(key_of(&first), Ok(key));
        assert_eq!(certificate().1, first);
        assert!(key_of(&CertificateDer::from(&b"no certificate"[..])).is_err());
    }

    #[test]
    fn credentials_do_not_show_the_seed() {
        let credentials = Credentials::new(&SecretKey::from_seed(&[0xab; 32])).unwrap();
        assert!(!format!("{credentials:?}").contains("abab"));
    }
}

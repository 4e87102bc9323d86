//! Clients that a careful library would not build.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tokio::io::AsyncReadExt;

use crate::rpc::world::*;

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A certificate with a public key whose secret its maker does not have.
struct Stolen([u8; 32]);

impl rcgen::PublicKeyData for Stolen {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Stolen {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![0; 64])
    }
}

/// Whether the server lets a client in that shows the public key `shown` and signs with `held`; or nothing.
async fn let_in(
    environment: &Environment,
    version: &'static SupportedProtocolVersion,
    certificate: Option<(u8, u8)>,
) -> bool {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((shown, held)) => {
            let stolen = Stolen(secret(shown).public().bytes().0);
            let shown = rcgen::CertificateParams::default().self_signed(&stolen).unwrap().der().clone();
            let mut pkcs8 = data_encoding::HEXLOWER.decode(b"302e020100300506032b657004220420").unwrap();
            pkcs8.extend_from_slice(&[held; 32]);
            let held = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).unwrap();
            let certified = CertifiedKey::new(vec![shown], held);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(&environment.addresses[0]).await.unwrap();
    let server = ServerName::try_from("node").unwrap();
    let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await else {
        return false;
    };
    // In TLS 1.3 the client learns of its refusal afterwards; a server that let it in sends its HTTP/2 settings.
    stream.read_u8().await.is_ok()
}

#[tokio::test]
async fn a_certificate_without_its_key_no_certificate_and_old_tls_are_refused() {
    let environment = environment().await;
    assert!(let_in(&environment, &rustls::version::TLS13, Some((31, 31))).await);
    assert!(!let_in(&environment, &rustls::version::TLS13, Some((31, 77))).await);
    assert!(!let_in(&environment, &rustls::version::TLS13, None).await);
    assert!(!let_in(&environment, &rustls::version::TLS12, Some((31, 31))).await);
}

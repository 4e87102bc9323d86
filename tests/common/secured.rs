//! A Kafka that lets nobody in without credentials and lets nobody do what was not granted: beside the listener of the
//! brokers themselves one for user and password over TLS (PLAIN, SCRAM) and one that asks for a client certificate.
//!
//! Certificates are made here; users have the password that [`Secured::password`] gives. Who may do what is
//! up to the test: nobody may do anything but `admin`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::kafka::{Cluster, Place};

/// Users that log in by PLAIN.
const PLAIN: [&str; 2] = ["admin", "operator"];
/// Users that log in by SCRAM, either kind.
const SCRAM: [&str; 1] = ["web"];

/// Three brokers with secured listeners.
pub struct Secured {
    pub cluster: Cluster,
    authority: Authority,
    passwords: String,
    ports: Vec<[u16; 2]>,
}

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters, key).expect("a certificate"))
    }

    /// A certificate with these names, and its key: what a PEM key store is.
    fn issue(&self, common_name: &str, addresses: &[&str], usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let names: Vec<_> = addresses.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

fn fresh_password() -> String {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).expect("randomness");
    data_encoding::HEXLOWER.encode(&bytes)
}

impl Secured {
    /// Starts the cluster and waits until it serves.
    pub fn start() -> Self {
        let authority = Authority::new("test authority");
        let passwords = fresh_password();
        let server = authority.issue("broker", &["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        let ports: OnceLock<std::sync::Mutex<Vec<[u16; 2]>>> = OnceLock::new();
        let further = |place: &Place<'_>| {
            ports.get_or_init(Default::default).lock().expect("ports").push(place.further_ports);
            fs::write(place.folder.join("broker.pem"), format!("{}{}", server.1, server.0)).expect("a key store");
            fs::write(place.folder.join("authority.pem"), authority.0.pem()).expect("a trust store");
            properties(place, &passwords)
        };
        let user = |name: &str, mechanism: &str| {
            ["--add-scram".to_owned(), format!("{mechanism}=[name={name},password={}]", password(&passwords, name))]
        };
        let scram = SCRAM.iter().flat_map(|name| [user(name, "SCRAM-SHA-256"), user(name, "SCRAM-SHA-512")]);
        let options: Vec<_> = scram.flatten().collect();
        let cluster = Cluster::start_formatted(further, &options);
        let ports = ports.into_inner().expect("ports").into_inner().expect("ports");
        let secured = Self { cluster, authority, passwords, ports };
        secured.admin_properties(&secured.cluster.folder().join("admin.properties"));
        secured
    }

    /// `host:port` of the listeners for user and password.
    pub fn by_password(&self) -> String {
        self.listeners(0)
    }

    /// `host:port` of the listeners that ask for a client certificate.
    pub fn by_certificate(&self) -> String {
        self.listeners(1)
    }

    fn listeners(&self, which: usize) -> String {
        self.ports.iter().map(|ports| format!("127.0.0.1:{}", ports[which])).collect::<Vec<_>>().join(",")
    }

    /// A user's password.
    pub fn password(&self, user: &str) -> String {
        password(&self.passwords, user)
    }

    /// Writes a user's password to a file that only its owner can read.
    pub fn write_password(&self, user: &str, path: &Path) {
        write_private(path, &self.password(user));
    }

    /// Writes the authority's certificate to a file that only its owner can read, as configurations ask of files.
    pub fn write_authority(&self, path: &Path) {
        write_private(path, &self.authority.0.pem());
    }

    /// Writes the certificate of an authority that no broker knows.
    pub fn write_other_authority(&self, path: &Path) {
        write_private(path, &Authority::new("somebody else").0.pem());
    }

    /// Writes a client's certificate and key into a folder: `client.pem`, `client.key`. Its principal is `User:CN=NAME`.
    pub fn write_certificate(&self, name: &str, folder: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.authority.issue(name, &[], ExtendedKeyUsagePurpose::ClientAuth);
        let paths = (folder.join("client.pem"), folder.join("client.key"));
        write_private(&paths.0, &certificate);
        write_private(&paths.1, &key);
        paths
    }

    /// Writes what Kafka's own tools need to log in as the one who may do everything.
    fn admin_properties(&self, path: &Path) {
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let authority = self.cluster.folder().join("authority.pem");
        let text = format!(
            "security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\n\
             sasl.jaas.config={login} username=\"admin\" password=\"{}\";\n\
             ssl.truststore.type=PEM\nssl.truststore.location={}\n",
            self.password("admin"),
            authority.display()
        );
        fs::write(path, text).expect("the tools' properties");
    }

    /// Runs a command line of `kafka-acls` as people are told to type it, but that it goes to the listener that the one who
    /// may do everything logs in at.
    pub fn acls(&self, command: &str) -> String {
        let mut words: Vec<_> = command.split_whitespace().collect();
        assert_eq!(words.remove(0), "kafka-acls", "{command}");
        let at = words.iter().position(|word| *word == "--bootstrap-server").expect("it names brokers") + 1;
        let brokers = self.by_password();
        words[at] = &brokers;
        self.cluster.tool("org.apache.kafka.tools.AclCommand", &words)
    }
}

fn password(all: &str, user: &str) -> String {
    format!("{user}-{all}")
}

fn write_private(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).expect("a file");
    file.write_all(text.as_bytes()).expect("it is written");
}

fn properties(place: &Place<'_>, passwords: &str) -> String {
    let Place { port, further_ports: [by_password, by_certificate], controller_port, folder, .. } = place;
    let users: Vec<_> = PLAIN.iter().map(|name| format!("user_{name}=\"{}\"", password(passwords, name))).collect();
    format!(
        "\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port},\
PASSWORD://127.0.0.1:{by_password},CERTIFICATE://127.0.0.1:{by_certificate}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},\
PASSWORD://127.0.0.1:{by_password},CERTIFICATE://127.0.0.1:{by_certificate}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PASSWORD:SASL_SSL,CERTIFICATE:SSL
ssl.keystore.type=PEM
ssl.keystore.location={keys}
ssl.truststore.type=PEM
ssl.truststore.location={trust}
listener.name.certificate.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.password.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {users};
listener.name.password.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.password.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:admin
",
        keys = folder.join("broker.pem").display(),
        trust = folder.join("authority.pem").display(),
        users = users.join(" "),
    )
}

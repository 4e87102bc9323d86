//! Who we are to a cluster, and what to say when it does not let us in or do something: which right, on what, for whom, and
//! the command that grants it.
//!
//! Owns the words. Must not ask the cluster anything, and must never hold a secret.

use std::collections::BTreeMap;

use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};

use super::KafkaError;

/// What a right lets its holder do, as the brokers' access lists name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Create,
    Alter,
    Describe,
    DescribeConfigs,
}

impl Operation {
    /// As `kafka-acls` takes it.
    fn name(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::Create => "Create",
            Self::Alter => "Alter",
            Self::Describe => "Describe",
            Self::DescribeConfigs => "DescribeConfigs",
        }
    }

    /// As people read it in a broker's log.
    fn shown(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Create => "CREATE",
            Self::Alter => "ALTER",
            Self::Describe => "DESCRIBE",
            Self::DescribeConfigs => "DESCRIBE_CONFIGS",
        }
    }
}

/// What a right is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On<'a> {
    Topic(&'a str),
    Cluster,
}

/// Who we are to a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    brokers: String,
    /// The principal of user and password, or of nobody; that of a certificate is what the brokers make of it.
    principal: Option<String>,
}

/// Something that the cluster is asked to do, for the words of a refusal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub access: &'a Access,
    /// As in "Kafka refuses to ...".
    pub what: &'static str,
    pub operation: Operation,
    pub on: On<'a>,
}

/// Why a connection failed, as far as what librdkafka says of it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// What librdkafka said, and the mend where one is known.
    pub cause: String,
    /// Trying again does not help: the brokers answer and do not let us in, or are not who they should be.
    pub barred: bool,
}

impl Access {
    /// Of these bootstrap brokers and properties; secrets among them are not looked at.
    pub(super) fn new(brokers: &str, properties: &BTreeMap<String, String>) -> Self {
        let has = |name: &str| properties.contains_key(name);
        let protocol = properties.get("security.protocol").map(|value| value.to_lowercase()).unwrap_or_default();
        let certificate =
            ["ssl.certificate.location", "ssl.certificate.pem", "ssl.keystore.location"].iter().any(|name| has(name));
        let principal = match protocol.as_str() {
            "sasl_ssl" | "sasl_plaintext" => properties.get("sasl.username").map(|user| format!("User:{user}")),
            "ssl" if certificate => None,
            _ => Some("User:ANONYMOUS".to_owned()),
        };
        Self { brokers: brokers.to_owned(), principal }
    }

    /// The bootstrap brokers, for people.
    pub(super) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// That a right is missing, and the command that grants it.
    fn missing(&self, operation: Operation, on: On<'_>) -> String {
        let (whose, principal, note) = match &self.principal {
            Some(principal) => (principal.as_str(), principal.as_str(), ""),
            None => {
                let note = "; SUBJECT is that of the certificate, as in CN=a, or what ssl.principal.mapping.rules of the \
                            brokers make of it";
                ("the principal of this client's certificate", "User:SUBJECT", note)
            }
        };
        let (resource, flags) = match on {
            On::Topic(name) => (format!("topic {name}"), format!("--topic {name}")),
            On::Cluster => ("the cluster".to_owned(), "--cluster".to_owned()),
        };
        let also = match (operation, on) {
            (Operation::Describe, _) => " (READ and WRITE include it)",
            (Operation::Create, On::Topic(_)) => " (or on the cluster)",
            _ => "",
        };
        // A subject has blanks and commas.
        let quoted = if principal.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@=".contains(c)) {
            principal.to_owned()
        } else {
            format!("'{}'", principal.replace('\'', r"'\''"))
        };
        format!(
            "the right {} on {resource}{also} is missing for {whose}: grant it with `kafka-acls --bootstrap-server {} \
             --command-config admin.properties --add --allow-principal {quoted} --operation {} {flags}`{note}",
            operation.shown(),
            self.brokers,
            operation.name(),
        )
    }

    /// What to do about an error that trying again does not mend; `None` for all others.
    pub(super) fn mend(&self, code: RDKafkaErrorCode, operation: Operation, on: On<'_>) -> Option<String> {
        let mend = match code {
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                return Some(self.missing(operation, on));
            }
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition => "make it with `sealcast topic init`",
            RDKafkaErrorCode::MessageSizeTooLarge => {
                "raise the topic's max.message.bytes: `sealcast topic check` says how"
            }
            RDKafkaErrorCode::InvalidTopic => "the broker does not take this name",
            RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::Authentication => CREDENTIALS,
            RDKafkaErrorCode::UnsupportedForMessageFormat | RDKafkaErrorCode::InvalidTimestamp => {
                "set the topic's message.timestamp.type to LogAppendTime"
            }
            _ => return None,
        };
        Some(format!("{code}: {mend}"))
    }

    /// That the cluster does not answer, or does not let us in: whichever the latest failed connection tells.
    pub(super) fn unreached(&self, failure: Option<Failure>, otherwise: String) -> KafkaError {
        let Some(Failure { cause, barred }) = failure else {
            return KafkaError::Unavailable { cause: format!("{}: {otherwise}", self.brokers) };
        };
        if barred {
            return KafkaError::Barred { brokers: self.brokers.clone(), cause };
        }
        let named = cause.contains(&self.brokers);
        KafkaError::Unavailable { cause: if named { cause } else { format!("{}: {cause}", self.brokers) } }
    }
}

impl Asked<'_> {
    /// The same as [`Access::mend`].
    pub(super) fn mend(&self, code: RDKafkaErrorCode) -> Option<String> {
        self.access.mend(code, self.operation, self.on)
    }

    /// What an answer's code means.
    pub(super) fn refused(&self, code: RDKafkaErrorCode) -> KafkaError {
        let for_good = [
            RDKafkaErrorCode::PolicyViolation,
            RDKafkaErrorCode::InvalidConfig,
            RDKafkaErrorCode::InvalidTopic,
            RDKafkaErrorCode::InvalidReplicationFactor,
            RDKafkaErrorCode::InvalidReplicaAssignment,
            RDKafkaErrorCode::InvalidPartitions,
            RDKafkaErrorCode::InvalidRequest,
        ];
        let what = self.what;
        match self.mend(code) {
            Some(cause) => KafkaError::Rejected { what, cause },
            None if for_good.contains(&code) => KafkaError::Rejected { what, cause: code.to_string() },
            None => KafkaError::Unavailable { cause: code.to_string() },
        }
    }

    /// What an error of librdkafka means.
    pub(super) fn failed(&self, error: &NativeError) -> KafkaError {
        match error.rdkafka_error_code() {
            Some(code) => self.refused(code),
            None => KafkaError::Client { cause: error.to_string() },
        }
    }
}

const CREDENTIALS: &str = "mend sasl.username, sasl.password and sasl.mechanism";

/// What librdkafka says of a failed connection, the words that tell the cases apart, whether trying again is of no use, and
/// the mend. The first that fits counts.
const FAILURES: &[(&[&str], bool, &str)] = &[
    (&["SASL authentication error", "SaslAuthenticate", "mechanism handshake failed"], true, CREDENTIALS),
    (
        &["certificate verify failed", "Failed to verify broker certificate", "did not provide a certificate"],
        true,
        "the brokers' certificate must come from an authority in ssl.ca.location and name the host that brokers and \
         advertised.listeners name",
    ),
    (
        &["alert bad certificate", "alert certificate", "certificate required", "alert unknown ca"],
        true,
        "the brokers want a client certificate from an authority that they know: set ssl.certificate.location and \
         ssl.key.location",
    ),
    (
        &["connecting to a PLAINTEXT broker listener"],
        false,
        "does this listener speak TLS? It must agree with security.protocol",
    ),
    (
        &["SSL connection closed by peer"],
        false,
        "does this listener speak TLS? It must agree with security.protocol; a broker that is just starting, or wants a client \
         certificate (ssl.certificate.location), closes a connection too",
    ),
    (&["security.protocol"], false, "the listener must agree with security.protocol"),
    (
        &["in state APIVERSION_QUERY"],
        false,
        "the connection was closed at the first question: if the listener speaks TLS, set security.protocol to ssl or sasl_ssl",
    ),
    (&["SSL handshake failed", "SSL routines"], true, "mend the ssl.* properties"),
];

impl Failure {
    /// Of a line of librdkafka's log, or the reason of its error.
    pub(super) fn of(line: &str) -> Self {
        let text = line.rsplit_once("]: ").map_or(line, |(_, text)| text);
        let text = text.split(" (after ").next().unwrap_or(text).trim();
        // librdkafka repeats the broker's name.
        let text = match text.split_once(": ") {
            Some((name, rest)) if rest.starts_with(&format!("{name}: ")) => rest,
            _ => text,
        };
        let known = FAILURES.iter().find(|(words, ..)| words.iter().any(|word| line.contains(word)));
        match known {
            Some((_, barred, mend)) => Self { cause: format!("{text}: {mend}"), barred: *barred },
            None => Self { cause: text.to_owned(), barred: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(properties: &[(&str, &str)]) -> Access {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Access::new("k1:9093", &properties.iter().map(text).collect())
    }

    #[test]
    fn a_missing_right_is_told_with_whose_it_is_on_what_and_how_it_is_granted() {
        let web = access(&[("security.protocol", "SASL_SSL"), ("sasl.username", "web"), ("sasl.password", "hidden")]);
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        let told = web.mend(code, Operation::Write, On::Topic("shop.segments")).unwrap_or_default();
        assert_eq!(
            told,
            "the right WRITE on topic shop.segments is missing for User:web: grant it with `kafka-acls --bootstrap-server \
             k1:9093 --command-config admin.properties --add --allow-principal User:web --operation Write --topic \
             shop.segments`"
        );
        assert!(!format!("{web:?}").contains("hidden"));
        let node = access(&[("security.protocol", "ssl"), ("ssl.certificate.location", "client.pem")]);
        let told = node.mend(RDKafkaErrorCode::ClusterAuthorizationFailed, Operation::DescribeConfigs, On::Cluster);
        let told = told.unwrap_or_default();
        assert!(
            told.contains("DESCRIBE_CONFIGS on the cluster is missing for the principal of this client's certificate")
        );
        assert!(told.contains("--allow-principal User:SUBJECT --operation DescribeConfigs --cluster`; SUBJECT is"));
        let nobody = access(&[("security.protocol", "ssl")]);
        let told = nobody.mend(code, Operation::Read, On::Topic("t")).unwrap_or_default();
        assert!(told.contains("missing for User:ANONYMOUS"));
        let blank = access(&[("security.protocol", "sasl_ssl"), ("sasl.username", "it's me")]);
        let told = blank.mend(code, Operation::Read, On::Topic("t")).unwrap_or_default();
        assert!(told.contains(r"--allow-principal 'User:it'\''s me'"), "{told}");
    }

    #[test]
    fn what_trying_again_mends_has_no_mend() {
        for code in [RDKafkaErrorCode::NotLeaderForPartition, RDKafkaErrorCode::RequestTimedOut] {
            assert_eq!(access(&[]).mend(code, Operation::Read, On::Cluster), None);
        }
    }

    #[test]
    fn a_failed_connection_is_told_apart_by_what_librdkafka_says_of_it() {
        let said = |text: &str| {
            Failure::of(&format!("[thrd:k1:9093/bootstrap]: k1:9093/bootstrap: {text} (after 3ms in state X)"))
        };
        let barred = [
            ("SASL authentication error: Authentication failed", "sasl.password"),
            ("error:0A000086:SSL routines::certificate verify failed", "ssl.ca.location"),
            ("Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate", "ssl.key.location"),
            ("SASL SCRAM-SHA-1 mechanism handshake failed: Broker: Unsupported SASL mechanism", "sasl.mechanism"),
            ("SSL handshake failed: something else", "ssl.*"),
        ];
        for (text, mend) in barred {
            let found = said(text);
            assert!(found.barred && found.cause.contains(text) && found.cause.contains(mend), "{found:?}");
        }
        let plain = said("SSL connection closed by peer");
        assert!(!plain.barred && plain.cause.contains("security.protocol"), "{plain:?}");
        let away = said("Connect to ipv4#127.0.0.1:1 failed: Connection refused");
        let cause = "k1:9093/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused".to_owned();
        assert_eq!(away, Failure { cause, barred: false });
        let other = Failure::of("k1:9093/bootstrap: Disconnected: receive 0 (after 4ms in state APIVERSION_QUERY)");
        assert!(!other.barred && other.cause.contains("security.protocol"), "{other:?}");
    }
}

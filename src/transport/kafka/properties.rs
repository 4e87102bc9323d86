//! librdkafka's properties: ours, the user's on top, and those that nobody may set because a guarantee stands on them.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::KafkaError;

/// Properties that would break a guarantee, each with which one.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "the brokers are named by `brokers`"),
    ("metadata.broker.list", "the brokers are named by `brokers`"),
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("delivery.report.only.error", ACKS),
    ("enable.idempotence", IDEMPOTENCE),
    ("enable.gapless.guarantee", IDEMPOTENCE),
    ("transactional.id", IDEMPOTENCE),
    ("isolation.level", "Sealcast writes no Kafka transactions, and every record must be seen"),
    ("partitioner", PLACED),
    ("sticky.partitioning.linger.ms", PLACED),
    ("allow.auto.create.topics", "topics are made by `sealcast topic init` only, with the settings they need"),
    ("group.id", ASSIGNED),
    ("group.instance.id", ASSIGNED),
    ("group.protocol", ASSIGNED),
    ("group.remote.assignor", ASSIGNED),
    ("partition.assignment.strategy", ASSIGNED),
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("auto.offset.reset", OFFSETS),
    ("enable.partition.eof", OFFSETS),
    ("offset.store.method", OFFSETS),
    ("check.crcs", "a damaged record must be seen as damaged by the broker's checksum"),
    ("statistics.interval.ms", "watermarks come with the statistics"),
    ("log.queue", "lost connections are learned from the log"),
    ("log.connection.close", "lost connections are learned from the log"),
    ("log_level", "lost connections are learned from the log; `log.filter` chooses what is shown"),
];
const ACKS: &str =
    "an acknowledgement must mean that the partition's leader, and every replica in sync, has the record";
const IDEMPOTENCE: &str =
    "duplicates are harmless, and an idempotent producer halts a partition behind one lost record";
const PLACED: &str = "Sealcast itself places every record";
const ASSIGNED: &str = "nodes assign partitions themselves";
const OFFSETS: &str = "nodes keep their offsets in their own store";

/// Bounds of a property that may be set.
const BOUNDED: &[(&str, u64, u64, &str)] = &[
    ("message.timeout.ms", 500, 30_000, "a record without an acknowledgement goes elsewhere soon"),
    ("delivery.timeout.ms", 500, 30_000, "a record without an acknowledgement goes elsewhere soon"),
    ("message.max.bytes", 1_048_588, 16_000_000, "the longest segment must fit, and little more"),
];

/// Checks the user's properties. Errors: [`KafkaError::Property`], by name and with the reason.
pub(super) fn check(properties: &BTreeMap<String, String>) -> Result<(), KafkaError> {
    for (name, value) in properties {
        let refused = |reason: String| Err(KafkaError::Property { name: name.clone(), reason });
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return refused((*reason).to_owned());
        }
        if let Some((_, least, most, reason)) = BOUNDED.iter().find(|(bounded, ..)| bounded == name)
            && !value.parse().is_ok_and(|value: u64| (*least..=*most).contains(&value))
        {
            return refused(format!("must be {least} to {most}: {reason}"));
        }
    }
    let value = |name: &str| properties.get(name).map(|value| value.to_lowercase()).unwrap_or_default();
    if value("security.protocol").starts_with("sasl")
        && value("sasl.mechanism").is_empty()
        && value("sasl.mechanisms").is_empty()
    {
        let reason = "security.protocol asks for user and password: set it to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, as the \
                      listener has it";
        return Err(KafkaError::Property { name: "sasl.mechanism".to_owned(), reason: reason.to_owned() });
    }
    // librdkafka knows its own names and ranges.
    match producer("127.0.0.1:1", properties).create_native_config() {
        Ok(_) => Ok(()),
        Err(rdkafka::error::KafkaError::ClientConfig(_, reason, name, _)) => Err(KafkaError::Property { name, reason }),
        Err(other) => Err(KafkaError::Client { cause: other.to_string() }),
    }
}

fn common(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "sealcast")
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "6000")
        .set("socket.connection.setup.timeout.ms", "2000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("retry.backoff.ms", "50")
        .set("retry.backoff.max.ms", "250")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("topic.metadata.propagation.max.ms", "2000")
        .set("log.connection.close", "true")
        .set_log_level(RDKafkaLogLevel::Info);
    config
}

fn with(mut config: ClientConfig, properties: &BTreeMap<String, String>) -> ClientConfig {
    for (name, value) in properties {
        config.set(name, value);
    }
    config
}

/// Of the producer of one broker. Not idempotent; its own credit bounds what it holds, so librdkafka's queue never does.
pub(super) fn producer(brokers: &str, properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = common(brokers);
    config
        .set("acks", "all")
        .set("enable.idempotence", "false")
        .set("linger.ms", "0")
        .set("message.max.bytes", "1048588")
        .set("message.timeout.ms", "5000")
        .set("request.timeout.ms", "5000")
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "1048576");
    with(config, properties)
}

/// Of a client that asks only: metadata, watermarks, settings.
pub(super) fn asking(brokers: &str, properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = common(brokers);
    config
        .set("allow.auto.create.topics", "false")
        // A hostile broker's answer must not take more memory than this, compressed or not.
        .set("fetch.max.bytes", "4194304")
        .set("receive.message.max.bytes", "16777216");
    with(config, properties)
}

/// Of a reader: partitions are assigned by hand, an offset out of range is an error, the queue of each partition is bounded.
pub(super) fn reader(brokers: &str, properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = asking(brokers, &BTreeMap::new());
    config
        .set("group.id", "sealcast-reader")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100")
        .set("queued.max.messages.kbytes", "2048")
        .set("statistics.interval.ms", "1000");
    with(config, properties)
}

/// Of a client that commits offsets for lag tools.
pub(super) fn committer(brokers: &str, properties: &BTreeMap<String, String>, group: &str) -> ClientConfig {
    let mut config = asking(brokers, properties);
    config.set("group.id", group).set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, value: &str) -> Result<(), KafkaError> {
        check(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn what_would_break_a_guarantee_is_refused_by_name() {
        for (name, reason) in REFUSED {
            let refused = check_one(name, "1").expect_err(name);
            assert_eq!(refused, KafkaError::Property { name: (*name).to_owned(), reason: (*reason).to_owned() });
        }
        assert!(check_one("message.timeout.ms", "300000").is_err());
        assert!(check_one("message.max.bytes", "1000").is_err());
    }

    #[test]
    fn a_user_is_not_sent_by_a_mechanism_that_nobody_chose() {
        let refused = check_one("security.protocol", "SASL_SSL").expect_err("no mechanism");
        assert!(matches!(refused, KafkaError::Property { name, .. } if name == "sasl.mechanism"));
        let properties = [("security.protocol", "sasl_ssl"), ("sasl.mechanisms", "PLAIN"), ("sasl.username", "web")];
        assert_eq!(check(&properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into()), Ok(()));
    }

    #[test]
    fn anything_else_passes_verbatim_if_librdkafka_knows_it() {
        for (name, value) in [("security.protocol", "ssl"), ("linger.ms", "1"), ("message.timeout.ms", "2000")] {
            assert_eq!(check_one(name, value), Ok(()), "{name}");
        }
        assert!(
            matches!(check_one("no.such.property", "1"), Err(KafkaError::Property { name, .. }) if name == "no.such.property")
        );
        assert!(check_one("linger.ms", "soon").is_err());
    }
}

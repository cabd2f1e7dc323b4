//! The parts that all Kafka clients share: settings, creation, sign-in, logging and errors.

pub(super) mod await_topic;
pub(super) mod contexts;
pub(super) mod last_error;
#[cfg(feature = "aws-msk-iam")]
mod msk_iam;
pub mod queues;
pub(super) mod reconnect;
pub(super) mod sasl;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};

use super::error::KafkaError;
use crate::config::{ClientSettings, KafkaSettings};

/// Merges the settings of all clients with the settings of one client, `specific`, which take precedence. The caller
/// adds the settings on which delivery guarantees depend.
pub(super) fn config(kafka: &KafkaSettings, specific: &ClientSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers);
    config.set("client.id", "residuald");
    for (name, value) in kafka.client.iter().chain(specific.iter()) {
        config.set(name, value);
    }
    // The Java client calls this value `none`; librdkafka calls it `error`.
    if config.get("auto.offset.reset") == Some("none") {
        config.set("auto.offset.reset", "error");
    }
    config
}

/// Creates a client. Fails before connecting if its settings cannot work with any broker.
pub(super) fn create<C, T>(config: &ClientConfig, context: C) -> Result<T, KafkaError>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    sasl::check(config)?;
    Ok(config.create_with_context(context)?)
}

//! What librdkafka says of clients that only ask something: the main consumer's or producer's log has the same.

use std::error::Error;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError as ClientError;

use super::sasl;

/// Signs in as the others do and logs at debug. Holds what the client is for.
pub(super) struct Quiet(pub &'static str);

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{}: {message}", self.0);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!("{}: {error}: {reason}", self.0);
    }
}

impl ConsumerContext for Quiet {}

//! Callbacks of the clients that are neither the daemon's consumer nor its producer.

use std::error::Error;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError as ClientError;

use super::last_error::LastError;
use super::sasl;

/// The context of a client that a command-line verb uses. It logs what librdkafka reports, and keeps the last error.
pub(in crate::kafka) struct ReaderContext {
    /// Identifies this client in log messages.
    pub name: &'static str,
    pub last_error: LastError,
}

impl ClientContext for ReaderContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, source: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        sasl::token(source)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.last_error.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.last_error.error(self.name, &error, reason);
    }
}

impl ConsumerContext for ReaderContext {}

/// The context of a helper client of the daemon. It logs at debug level, because the main consumer or producer reports
/// the same problems. The field describes the purpose of the client.
pub(in crate::kafka) struct QuietContext(pub &'static str);

impl ClientContext for QuietContext {
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

impl ConsumerContext for QuietContext {}

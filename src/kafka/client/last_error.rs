//! librdkafka's log and error callbacks. Only their texts explain why a broker cannot be reached; the error codes do
//! not.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::types::RDKafkaErrorCode;

use super::sasl;

/// The last error text of a client, shared between its callbacks and the code that waits for it.
#[derive(Clone, Debug, Default)]
pub(in crate::kafka) struct LastError(Arc<Mutex<Option<String>>>);

impl LastError {
    fn set(&self, text: &str) {
        // librdkafka may report these two consequences before or after their cause, so they never replace another text.
        if text.contains("Send failed") || text.contains(sasl::UNSECURED) {
            return self.set_if_empty(text);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
    }

    fn set_if_empty(&self, text: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get_or_insert_with(|| text.to_owned());
    }

    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Handles librdkafka's error callback. `AllBrokersDown` is not kept, because its cause was reported before it.
    pub fn error(&self, client: &str, error: &ClientError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.set(reason);
        }
        report(client, error, reason);
    }

    /// Handles librdkafka's log callback. Logs librdkafka's errors as warnings, because it recovers from them by
    /// itself.
    pub fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "{message}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                // A broker that closes a new connection is reported only here.
                if facility == "FAIL" {
                    self.set_if_empty(message);
                }
                tracing::info!(facility, "{message}");
            }
            _ => {
                self.set(message);
                tracing::warn!(facility, "{message}");
            }
        }
    }
}

/// Logs an error of librdkafka. Lost connections are logged at debug level, because librdkafka already logs each failed
/// attempt and repeats this callback many times per second.
pub(in crate::kafka) fn report(client: &str, error: &ClientError, reason: &str) {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve) => {
            tracing::debug!("{client}: {error}: {reason}");
        }
        _ => tracing::warn!("{client}: {error}: {reason}"),
    }
}

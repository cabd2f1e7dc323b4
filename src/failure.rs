//! The error that ends a command-line verb, with a message for the user and an exit code for the orchestrator.

use std::io;

use crate::bundle::{BundleError, RateTooFine};
use crate::config::ConfigError;
use crate::dataset;
use crate::dead_letter::BadMarker;
use crate::decode::SetBy;
use crate::kafka::KafkaError;
use crate::kafka::history::HistoryError;
use crate::kafka::replay::ReplayError;
use crate::onnx::generative::DrawError;
use crate::onnx::{LoadError, RuntimeError, ScorerError};
use crate::pipeline::PipelineError;

// Exit codes from sysexits.h.
pub const USAGE: u8 = 64;
const DATA: u8 = 65;
const UNAVAILABLE: u8 = 69;
const INTERNAL: u8 = 70;
pub const CONFIG: u8 = 78;

/// The exit code of a rehearsal that has found a fault.
const NOT_PASSED: u8 = 1;

/// The exit code after Ctrl-C, as in a shell.
const INTERRUPTED: u8 = 130;

/// The exit code if the reader of the output has closed it. The message is empty, because the verb ends quietly.
const UNREAD: u8 = 0;

#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    fn new(code: u8, message: impl ToString) -> Failure {
        Failure {
            code,
            message: message.to_string(),
        }
    }

    pub fn usage(message: impl ToString) -> Failure {
        Failure::new(USAGE, message)
    }

    pub fn data(message: impl ToString) -> Failure {
        Failure::new(DATA, message)
    }

    pub fn unavailable(message: impl ToString) -> Failure {
        Failure::new(UNAVAILABLE, message)
    }

    pub fn internal(message: impl ToString) -> Failure {
        Failure::new(INTERNAL, message)
    }

    /// A stop was requested before any record was taken, so the exit code is 0.
    pub fn stopped(message: impl ToString) -> Failure {
        Failure::new(0, message)
    }

    /// A rehearsal was complete and has found a fault of what it rehearsed.
    pub fn not_passed(message: impl ToString) -> Failure {
        Failure::new(NOT_PASSED, message)
    }

    /// Ctrl-C or SIGTERM ended the work before it was complete.
    pub fn interrupted(message: impl ToString) -> Failure {
        Failure::new(INTERRUPTED, message)
    }

    pub fn config(message: impl ToString) -> Failure {
        Failure::new(CONFIG, message)
    }

    /// The output could not be written. If its reader has closed it, this is not a failure.
    pub fn output(error: impl Into<io::Error>) -> Failure {
        match error.into() {
            e if e.kind() == io::ErrorKind::BrokenPipe => Failure::new(UNREAD, ""),
            e => Failure::data(e),
        }
    }

    pub fn is_unavailable(&self) -> bool {
        self.code == UNAVAILABLE
    }

    pub fn is_unread(&self) -> bool {
        self.code == UNREAD && self.message.is_empty()
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        Failure::config(e)
    }
}

impl From<BundleError> for Failure {
    fn from(e: BundleError) -> Self {
        Failure::data(e)
    }
}

impl From<RateTooFine> for Failure {
    fn from(e: RateTooFine) -> Self {
        Failure::config(e)
    }
}

impl From<DrawError> for Failure {
    fn from(e: DrawError) -> Self {
        match e {
            DrawError::Graph(e) => e.into(),
            DrawError::States(e) => Failure::output(e),
            e => Failure::data(e),
        }
    }
}

impl From<dataset::Error> for Failure {
    /// Only verbs read files, and their flags say how.
    fn from(e: dataset::Error) -> Self {
        Failure::data(SetBy::Flags.named(&e.to_string()))
    }
}

impl From<RuntimeError> for Failure {
    fn from(e: RuntimeError) -> Self {
        Failure::config(e)
    }
}

impl From<ScorerError> for Failure {
    fn from(e: ScorerError) -> Self {
        let code = match e {
            ScorerError::Graph(_) => DATA,
            ScorerError::Provider { .. } => CONFIG,
            ScorerError::Run(_) | ScorerError::Interrupted => INTERNAL,
        };
        Failure::new(code, e)
    }
}

impl From<LoadError> for Failure {
    fn from(e: LoadError) -> Self {
        match e {
            LoadError::Bundle(e) => e.into(),
            LoadError::Runtime(e) => e.into(),
            LoadError::Scorer(e) => e.into(),
        }
    }
}

impl From<KafkaError> for Failure {
    fn from(e: KafkaError) -> Self {
        let code = match e {
            KafkaError::Setting { .. } => CONFIG,
            // A stop was requested before any record was taken.
            KafkaError::Stopped => 0,
            _ => UNAVAILABLE,
        };
        Failure::new(code, e)
    }
}

impl From<HistoryError> for Failure {
    fn from(e: HistoryError) -> Self {
        match e {
            HistoryError::Kafka(e) => e.into(),
            e @ (HistoryError::NoSuchPartition { .. } | HistoryError::Partitions { .. }) => {
                Failure::usage(e)
            }
            e @ HistoryError::Deleted { .. } => Failure::data(e),
            e @ HistoryError::OpenTransaction { .. } => Failure::new(UNAVAILABLE, e),
        }
    }
}

impl From<ReplayError> for Failure {
    fn from(e: ReplayError) -> Self {
        match e {
            ReplayError::Kafka(e) => e.into(),
            e @ ReplayError::Fenced { .. } => Failure::new(UNAVAILABLE, e),
            e @ ReplayError::Refused { .. } => Failure::data(e),
        }
    }
}

impl From<BadMarker> for Failure {
    fn from(e: BadMarker) -> Self {
        Failure::data(e)
    }
}

impl From<PipelineError> for Failure {
    fn from(e: PipelineError) -> Self {
        match e {
            PipelineError::Kafka(e) => e.into(),
            PipelineError::Scorer(e) => e.into(),
            PipelineError::Model {
                name,
                version,
                error,
            } => {
                let failure = Failure::from(error);
                let message = format!("model {name} version {version}: {}", failure.message);
                Failure { message, ..failure }
            }
            e @ (PipelineError::NotDrained { .. } | PipelineError::NotCommitted) => {
                Failure::new(UNAVAILABLE, e)
            }
            e @ PipelineError::Panicked(_) => Failure::internal(e),
        }
    }
}

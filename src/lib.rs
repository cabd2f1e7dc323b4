//! `residuald` scores Kafka records by how badly a diffusion model can reconstruct them.
//!
//! The modules are listed in the order in which a record meets them. See `ARCHITECTURE.md` for the invariants.

// Pure: no tokio, no Kafka, no ONNX Runtime, no metrics.
pub mod bounded;
pub mod clip;
pub mod npy;
pub mod patch;
pub mod record;
pub mod text;

pub mod bundle;
pub mod image;

pub mod decode;

pub mod dead_letter;
pub mod imputation;

pub mod batch;
pub mod verdict;

pub mod message;

pub mod diffusion;
#[cfg(feature = "daemon")]
pub mod prompt;

pub mod dataset;
pub mod evaluation;
pub mod synthetic;

// Edges: HTTP, Kafka, ONNX Runtime and other services.
#[cfg(feature = "daemon")]
pub mod http;
#[cfg(feature = "daemon")]
pub mod kafka;
pub mod onnx;
#[cfg(feature = "daemon")]
pub mod otlp;
#[cfg(feature = "daemon")]
pub mod schema_registry;

// Joins the stages of a running daemon.
#[cfg(feature = "daemon")]
pub mod pipeline;

// The error that ends a process, whichever module fails.
#[cfg(feature = "daemon")]
pub mod failure;

// Starts, runs and reloads the daemon.
#[cfg(feature = "daemon")]
pub mod daemon;

// The command-line verbs.
#[cfg(feature = "daemon")]
pub mod cli;

// Support: settings, memory, metrics, status, logging and shutdown.
pub mod config;
#[cfg(feature = "daemon")]
pub mod http_client;
pub mod memory;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod recent;
#[cfg(feature = "daemon")]
pub mod shutdown;
#[cfg(feature = "daemon")]
pub mod status;
#[cfg(feature = "daemon")]
pub mod telemetry;

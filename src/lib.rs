//! `residuald` scores Kafka records by how badly a diffusion model can reconstruct them.
//!
//! The modules in the order in which a record meets them. See `ARCHITECTURE.md` for the invariants.

// Pure: no tokio, no Kafka, no ONNX Runtime, no metrics.
pub mod clip;
pub mod record;
pub mod text;

pub mod bundle;
pub mod image;

pub mod decode;

pub mod dead_letter;

pub mod batch;
pub mod verdict;

pub mod message;

pub mod dataset;
pub mod evaluation;

// Edges.
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

// What a process ends with, whichever module fails.
#[cfg(feature = "daemon")]
pub mod failure;

// Builds the daemon from its settings, holds it and reloads it.
#[cfg(feature = "daemon")]
pub mod daemon;

// The verbs.
#[cfg(feature = "daemon")]
pub mod cli;

// Support.
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

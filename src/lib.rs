//! `residuald` scores Kafka records by how badly a diffusion model can reconstruct them.
//!
//! The modules are listed in the order in which a record meets them. See `ARCHITECTURE.md` for the invariants.

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

// Edges: HTTP, Kafka, ONNX Runtime and other services.
pub mod http;
pub mod kafka;
pub mod onnx;
pub mod otlp;
pub mod schema_registry;

// Joins the stages of a running daemon.
pub mod pipeline;

// The error that ends a process, whichever module fails.
pub mod failure;

// Starts, runs and reloads the daemon.
pub mod daemon;

// The command-line verbs.
pub mod cli;

// Support: settings, memory, metrics, status, logging and shutdown.
pub mod config;
pub mod http_client;
pub mod memory;
pub mod metrics;
pub mod recent;
pub mod shutdown;
pub mod status;
pub mod telemetry;

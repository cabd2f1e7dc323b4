//! The Kafka consumer and producer. All calls block; they run on the threads of the pipeline's stages.
//!
//! Imports go one way: `consumer` and `producer` import `client`, `topic_admin` and `messages`, which import `error`.
//! From `consumer`, `producer` imports only [`Membership`]. Only the command-line verbs use `follow`,
//! `history` and `probe`.

mod error;
mod client;
mod messages;
mod topic_admin;
pub mod decompression;
mod consumer;
mod producer;
pub mod follow;
pub mod history;
pub mod probe;
pub mod embedded;

pub use client::queues;
pub use consumer::context::{Rebalance, RebalanceKind};
pub use consumer::membership::Membership;
pub use consumer::topics::Topics;
pub use consumer::{Event, Source};
pub use error::KafkaError;
pub use probe::check_settings;
pub use producer::Sink;
pub use producer::context::{Delivery, SendError, Ticket};
pub use producer::limits::Limits;
pub use producer::replay;
pub use producer::transaction::Outcome;

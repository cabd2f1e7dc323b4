//! Code that several verbs need.

pub mod connection;
pub mod feed;
pub mod files;
pub mod images;
pub mod generative;
pub mod new_file;
pub mod output;
pub mod print;
pub mod progress;
pub mod reasons;
pub mod records_file;
pub mod refusals;
pub mod rewrite;
pub mod scoring;
pub mod settings;
pub mod threshold;
pub mod wrapping;

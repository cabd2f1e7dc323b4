//! The tests that can share a process and its Kafka clusters: one binary, since each binary links the whole crate.
//! tests/README.md says what each file proves.

#[path = "../common/mod.rs"]
mod common;

mod backtest;
mod calibrate;
mod clients;
mod connect;
mod dead_letters;
mod determinism;
mod documented;
mod embedded;
mod envelopes;
mod exactly_once;
mod fenced;
mod files;
mod formats;
mod hostile;
mod hostile_bundle;
mod http;
mod imports;
mod outcome;
mod image_segments;
mod image_streams;
mod images;
mod real_kafka;
mod late_requests;
mod reload;
mod score_folder;
mod secrets;
mod security;
mod sign_in;
mod slow_model;
mod topics;
mod traces;
mod verbs;
mod visible;

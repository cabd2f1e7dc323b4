//! Code that several verbs need.

pub mod connection;
pub mod feed;
pub mod files;
pub mod image_job;
pub mod image_to_image;
pub mod images;
pub mod generative;
pub mod latent_editor;
pub mod new_file;
pub mod output;
pub mod png_file;
pub mod print;
pub mod progress;
pub mod reasons;
pub mod records_file;
pub mod refusals;
pub mod rewrite;
pub mod sampling;
pub mod scoring;
pub mod settings;
pub mod text_to_image;
pub mod threshold;
pub mod whole_files;
pub mod wrapping;

//! `[output]`: the topics that residuald writes to, and the content of a verdict.

use std::path::PathBuf;

use super::settings::Settings;
use crate::bundle::generative::MOST_STEPS;
use crate::imputation::MOST_DRAWS;

#[derive(Debug, Clone)]
pub struct OutputSettings {
    pub anomalies_topic: String,
    pub scores_topic: Option<String>,
    /// `None` if records are not filled in.
    pub restored: Option<RestoredSettings>,
    pub dead_letter_topic: String,
    pub include_record: bool,
    /// Maximum number of features or regions in a verdict.
    pub attributions: usize,
    /// Maximum size of the maps that a verdict contains inline, in bytes, in total and before base64.
    pub inline_limit: usize,
    pub media: Option<Media>,
}

impl OutputSettings {
    pub(super) fn parse(s: &mut Settings) -> OutputSettings {
        OutputSettings {
            anomalies_topic: s.text("output.anomalies_topic"),
            scores_topic: s.optional_text("output.scores_topic"),
            restored: RestoredSettings::parse(s),
            dead_letter_topic: s.text("output.dead_letter_topic"),
            include_record: s.boolean("output.include_record"),
            attributions: s.integer("output.attributions", 1, 1000),
            inline_limit: s.integer("output.inline_limit", 0, 1 << 30),
            media: media(s),
        }
    }

    /// Returns the topics that residuald writes to.
    pub fn topics(&self) -> Vec<&str> {
        let mut topics = vec![
            self.anomalies_topic.as_str(),
            self.dead_letter_topic.as_str(),
        ];
        topics.extend(self.scores_topic.as_deref());
        topics.extend(self.restored.as_ref().map(|restored| &*restored.topic));
        if let Some(Media::Topic(topic)) = &self.media {
            topics.push(topic);
        }
        topics
    }
}

/// How records are filled in, and where they are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredSettings {
    pub topic: String,
    /// Number of draws for each record.
    pub draws: usize,
    /// Number of denoising steps. `None`: the bundle's own.
    pub steps: Option<usize>,
    /// Mixed into the seed of every record.
    pub seed: u64,
}

impl RestoredSettings {
    /// Returns `None` if there is no topic.
    fn parse(s: &mut Settings) -> Option<RestoredSettings> {
        let topic = s.optional_text("output.restored_topic");
        let draws = s.integer("output.restored_draws", 1, MOST_DRAWS);
        let steps = s.optional_integer("output.restored_steps", 1, MOST_STEPS);
        let seed = s.integer("output.restored_seed", 0, i64::MAX as usize) as u64;
        Some(RestoredSettings {
            topic: topic?,
            draws,
            steps,
            seed,
        })
    }
}

/// The destination of maps that are too large to be inline (claim check).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    Topic(String),
    Folder(PathBuf),
}

fn media(s: &mut Settings) -> Option<Media> {
    let topic = s.optional_text("output.media_topic");
    let folder = s.optional_text("output.media_dir");
    match (topic, folder) {
        (Some(_), Some(_)) => {
            s.problem(
                "output.media_topic and output.media_dir are both set: set only one of them".into(),
            );
            None
        }
        (Some(topic), None) => Some(Media::Topic(topic)),
        (None, folder) => folder.map(|folder| Media::Folder(folder.into())),
    }
}

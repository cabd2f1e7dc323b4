//! Judges scored batches and builds the messages about their records. Sends nothing.

use std::sync::Arc;

use crate::batch::{Batch, ImageOutcome, Screened, StoredRecord};
use crate::config;
use crate::dead_letter::DeadLetter;
use crate::decode::{Reason, RecordFormat, RowError};
use crate::image::Finding;
use crate::kafka::Topics;
use crate::message::{
    Message, ModelId, OMITTED, dead_letter_message, unreadable, verdict_id, verdict_message,
};
use crate::onnx::{Nearest, ScorerError};
use crate::recent::Anomaly;
use crate::verdict::{Judge, Scored, Severity, Verdict, is_score};

use super::maps::{self, Maps};
use super::restored::Restorer;
use super::tally::{Published, Tally};
use super::traces::Traces;

/// The part of the current model that judges, and the data that its verdicts contain.
pub struct Judging {
    pub judge: Judge,
    pub nearest: Option<Nearest>,
    pub model: ModelId,
    /// The input format, which renders records as JSON.
    pub input: RecordFormat,
    pub output: config::OutputSettings,
    /// Set only if restored records are published.
    pub restorer: Option<Restorer>,
    /// The names of topics, by [`crate::batch::TopicPartition::topic`].
    pub topics: Topics,
    pub traces: Option<Arc<Traces>>,
}

/// The messages and outcomes of a judged batch.
#[derive(Debug, Default)]
pub struct Judged {
    pub tally: Tally,
    /// The messages, each with its topic, in the order in which they are sent.
    pub messages: Vec<(String, Message)>,
}

impl Judged {
    fn add(&mut self, topic: &str, message: Message) {
        self.messages.push((topic.to_owned(), message));
    }
}

/// A scored record for which a verdict is published.
struct Reported {
    record: usize,
    /// The index of the record among the scored records.
    scored: usize,
    severity: Option<Severity>,
}

impl Judging {
    /// Judges a batch. Judging the same batch again gives the same messages.
    ///
    /// # Errors
    /// When the search for the nearest normal record fails.
    pub fn judge(&mut self, batch: &Batch) -> Result<Judged, ScorerError> {
        let mut judged = Judged {
            tally: Tally {
                dead: batch.dead_letters.iter().map(|l| l.error.reason).collect(),
                skipped: batch.skipped,
                oversized: batch.oversized,
                ..Tally::default()
            },
            messages: Vec::new(),
        };
        let (reported, passed) = self.sort_out(batch, &mut judged);
        let nearest = self.nearest(batch, &reported)?;
        for (reported, nearest) in reported.into_iter().zip(nearest) {
            self.report(batch, &reported, nearest, &mut judged);
        }
        for letter in &batch.dead_letters {
            self.dead_letter(letter.clone(), &mut judged);
        }
        if let Some(restorer) = &self.restorer {
            let (messages, tally) = restorer.messages(batch, &passed);
            for message in messages {
                judged.add(restorer.topic(), message);
            }
            judged.tally.restored = tally;
        }
        Ok(judged)
    }

    /// Counts every record of the batch. Returns the records for which a verdict is published, and, if they are restored,
    /// the indices of all records that are not refused. Records that cannot be scored become dead letters.
    fn sort_out(&self, batch: &Batch, judged: &mut Judged) -> (Vec<Reported>, Vec<usize>) {
        let (mut reported, mut passed) = (Vec::new(), Vec::new());
        for (i, record) in batch.records().enumerate() {
            let Some(scored) = batch.score_index(i) else {
                judged.tally.scored += 1;
                passed.extend(self.restorer.is_some().then_some(i));
                continue;
            };
            let dead = match batch.image_outcomes.get(i) {
                Some(ImageOutcome::Dead(error)) => Some(error.clone()),
                _ => flaw(batch, i, scored).map(unscorable),
            };
            if let Some(error) = dead {
                judged.tally.dead.push(error.reason);
                let letter = record.letter(&self.topics[record.from.topic], error);
                self.dead_letter(letter, judged);
                continue;
            }
            judged.tally.scored += 1;
            passed.extend(self.restorer.is_some().then_some(i));
            let severity = self.judge.severity(batch.scores[scored], record.segment);
            judged.tally.anomalies.extend(severity);
            if let (Some(Screened::Audited { cleared, .. }), Some(_)) =
                (batch.screened.get(i), severity)
            {
                judged.tally.audited_anomalies[usize::from(*cleared)] += 1;
            }
            if severity.is_some() || self.output.scores_topic.is_some() {
                reported.push(Reported {
                    record: i,
                    scored,
                    severity,
                });
            }
        }
        (reported, passed)
    }

    /// Returns the number of the most similar normal record for each anomaly of `reported`. The whole batch takes one
    /// call, because most of a call's cost does not depend on the number of rows.
    fn nearest(
        &mut self,
        batch: &Batch,
        reported: &[Reported],
    ) -> Result<Vec<Option<usize>>, ScorerError> {
        let mut found = vec![None; reported.len()];
        let Some(nearest) = &mut self.nearest else {
            return Ok(found);
        };
        let anomalies = || (0..).zip(reported).filter(|(_, r)| r.severity.is_some());
        let rows: Vec<f32> = anomalies()
            .flat_map(|(_, reported)| batch.row(reported.record))
            .copied()
            .collect();
        for ((at, _), number) in anomalies().zip(nearest.ask(&rows)?) {
            found[at] = number;
        }
        Ok(found)
    }

    fn report(
        &self,
        batch: &Batch,
        reported: &Reported,
        nearest: Option<usize>,
        judged: &mut Judged,
    ) {
        let &Reported {
            record: i,
            scored,
            severity,
        } = reported;
        let record = batch.record(i);
        let sighting = batch.image_outcomes.get(i);
        let mut message = match sighting {
            Some(ImageOutcome::Explained(finding)) => {
                self.image_message(record, batch.scores[scored], finding, judged)
            }
            // An image that is not reported was not explained either.
            Some(_) => return,
            None => self.row_message(batch, (i, scored), record, nearest),
        };
        if message.headers.iter().any(|(name, _)| name == OMITTED) {
            *judged.tally.omitted.entry("record").or_default() += 1;
        }
        if let Some(traces) = &self.traces {
            let topic = &self.topics[record.from.topic];
            if traces.hand_on(&mut message, topic, record) {
                judged.tally.published.push(Published {
                    record: i,
                    severity,
                });
            }
        }
        if let Some(severity) = severity {
            judged.tally.shown.push(Anomaly {
                severity,
                judged_ms: jiff::Timestamp::now().as_millisecond(),
                verdict: message.payload.as_slice().into(),
                image: sighting.map(|_| record.payload.into()),
            });
            judged.add(&self.output.anomalies_topic, message.clone());
        }
        if let Some(scores) = &self.output.scores_topic {
            judged.add(scores, message);
        }
    }

    fn row_message(
        &self,
        batch: &Batch,
        (i, score_index): (usize, usize),
        record: StoredRecord<'_>,
        nearest: Option<usize>,
    ) -> Message {
        let verdict = self.judge.judge(
            scored(batch, i, score_index),
            record.segment,
            nearest.and_then(|n| Some(self.nearest.as_ref()?.record(n))),
            self.output.attributions,
        );
        self.message(record, &verdict)
    }

    /// Builds the verdict on an image. If its maps go to a topic, they are sent before the verdict.
    fn image_message(
        &self,
        record: StoredRecord<'_>,
        score: f32,
        finding: &Finding,
        judged: &mut Judged,
    ) -> Message {
        let topic = &self.topics[record.from.topic];
        let Maps { shown, messages } = maps::of(
            &self.output,
            finding,
            &verdict_id(&self.model, topic, record),
            record.source(topic),
            record.timestamp_ms,
        );
        judged.messages.extend(messages);
        let [heatmap, reconstruction] = shown;
        let verdict =
            self.judge
                .judge_image(score, record.segment, finding, heatmap, reconstruction);
        self.message(record, &verdict)
    }

    /// Returns the maps of a batch that are written to `output.media_dir`, each with the id of its verdict.
    pub fn maps_for_folder<'b>(
        &'b self,
        batch: &'b Batch,
    ) -> impl Iterator<Item = (String, &'b Finding)> {
        batch.records().enumerate().filter_map(|(i, record)| {
            let finding = match batch.image_outcomes.get(i) {
                Some(ImageOutcome::Explained(finding))
                    if !maps::are_inline(&self.output, finding) =>
                {
                    finding
                }
                _ => return None,
            };
            let id = verdict_id(&self.model, &self.topics[record.from.topic], record);
            Some((id, &**finding))
        })
    }

    fn message(&self, record: StoredRecord<'_>, verdict: &Verdict<'_>) -> Message {
        let topic = &self.topics[record.from.topic];
        let carried = self.output.include_record;
        let json = carried
            .then(|| self.input.to_json(record.payload))
            .flatten();
        let omitted = match json.as_deref() {
            Some(json) => unreadable(json.get()),
            None if carried && self.input.is_json_or_typed() => {
                Some("it is too long in JSON".to_owned())
            }
            _ => None,
        };
        let json = json.as_deref().filter(|_| omitted.is_none());
        let mut message = verdict_message(&self.model, topic, record, verdict, json);
        if let Some(why) = omitted {
            message.omit(&["record"], &why);
        }
        message
    }

    fn dead_letter(&self, letter: DeadLetter, judged: &mut Judged) {
        judged.add(&self.output.dead_letter_topic, dead_letter_message(letter));
    }
}

fn unscorable(flaw: String) -> RowError {
    RowError {
        reason: Reason::Unscorable,
        detail: flaw.into(),
    }
}

/// Returns the model's outputs for record `i`, which is a row.
fn scored(batch: &Batch, i: usize, score_index: usize) -> Scored<'_> {
    Scored::at(&batch.scores, score_index, batch.row(i))
}

/// Returns why record `i` cannot have a verdict, or `None` if it can.
fn flaw(batch: &Batch, i: usize, score_index: usize) -> Option<String> {
    // `refused` is sorted by score_index.
    if let Ok(at) = batch
        .refused
        .binary_search_by_key(&score_index, |(at, _)| *at)
    {
        return Some(format!(
            "the model failed on this record: {}",
            batch.refused[at].1
        ));
    }
    if batch.image_outcomes.is_empty() {
        return scored(batch, i, score_index).flaw();
    }
    let score = batch.scores[score_index];
    (!is_score(score)).then(|| format!("the model's score is {score}"))
}

#[cfg(test)]
mod tests;

//! Scores normal records from a file, a folder or a topic.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::bounded;
use crate::bundle::segments::LEAST_RECORDS;
use crate::bundle::{Calibration, SegmentBy, SegmentId, Segments};
use crate::config::Config;
use crate::dataset;
use crate::decode::{DecodeError, Decoder, Reason, RecordFormat, SegmentReader, Split};
use crate::image::ImageReader;
use crate::kafka::history::{Ended, History};
use crate::record::{Place, Record};
use crate::shutdown::Shutdown;

use super::Arguments;
use super::flagged::{self, Flagged};
use super::new_value::NewValue;
use super::residuals::Residuals;
use super::trim::Tail;

use crate::cli::shared::connection::Connection;
use crate::cli::shared::connection::empty_range;
use crate::cli::shared::images::warn_of_depth;
use crate::cli::shared::progress::{self, stop_on_ctrl_c};
use crate::cli::shared::refusals::Refusals;
use crate::cli::shared::scoring::key_fits;
use crate::daemon::input;
use crate::daemon::model::Loaded;
use crate::failure::Failure;

use crate::onnx::{CHUNK, IMAGE_CHUNK, ScorerPool};

/// Default name of the topic with verdicts.
const ANOMALIES: &str = "anomalies";

/// Records that could be scored but are not used for the calibration.
#[derive(Debug, Default, Clone, Copy)]
pub struct LeftOut {
    /// Number of labelled anomalies, which are not scored at all.
    pub labelled: usize,
    /// Number of records that a daemon flagged.
    pub flagged: usize,
    /// Number of records whose scores are too high for normal records.
    pub too_high: usize,
}

pub struct Sample {
    pub scored: Scored,
    by: Option<SegmentBy>,
    residuals: Residuals,
    pub refusals: Refusals,
    pub left_out: LeftOut,
    /// Whether the records are labelled.
    labelled: bool,
    /// The share of normal records that the daemon flags.
    flagged_rate: f64,
    decoder: Decoder,
    /// Set if the bundle reads images.
    reader: Option<ImageReader>,
    scoring: ScorerPool,
    /// Rows that are not scored yet, in row-major order.
    rows: Vec<f32>,
    waiting: Vec<Waiting>,
    /// The payloads of the waiting records if they are images.
    images: Vec<Vec<u8>>,
}

/// The scored records, in any order.
#[derive(Default)]
pub struct Scored {
    pub scores: Vec<f32>,
    /// The segment of each record. Empty if the calibration has no segments.
    segments: Vec<Option<SegmentId>>,
    is_segmented: bool,
    /// Indices into `scores` of the records that a daemon flagged.
    flagged: Vec<usize>,
}

impl Scored {
    fn push(&mut self, score: f32, record: &Waiting) {
        if record.flagged {
            self.flagged.push(self.scores.len());
        }
        self.scores.push(score);
        if self.is_segmented {
            self.segments.push(record.segment);
        }
    }
}

/// A decoded record that is not scored yet.
struct Waiting {
    segment: Option<SegmentId>,
    flagged: bool,
}

/// A record to score.
struct Taken<'p> {
    payload: &'p [u8],
    key: Option<&'p [u8]>,
    flagged: bool,
}

/// Returns the topic with a daemon's verdicts, if --exclude-flagged is set.
fn verdicts_topic(arguments: &Arguments, connection: &Connection) -> Option<String> {
    let given = arguments.exclude_flagged.as_ref()?;
    let configured = connection.config.as_ref();
    let configured = configured.map(|config| config.output.anomalies_topic.clone());
    given
        .clone()
        .or(configured)
        .or_else(|| Some(ANOMALIES.into()))
}

/// Returns the reader of images for a bundle that judges images.
fn reader(
    loaded: &Loaded,
    config: Option<&Config>,
    arguments: &Arguments,
) -> Result<Option<ImageReader>, Failure> {
    let settings = config.map(|config| &config.images);
    let input = &loaded.bundle.manifest.input;
    let reader = arguments.images.reader(input, settings)?;
    if reader.is_some() && config.is_some_and(|config| config.translate.is_some()) {
        return Err(Failure::usage(
            "calibrate does not apply translate.bundle of the settings: translate the images with `residuald translate`, and calibrate on what it writes with settings without it",
        ));
    }
    Ok(reader)
}

impl Sample {
    /// Scores a file or a folder of images.
    pub fn of_data(
        loaded: Loaded,
        data: &[PathBuf],
        by: Option<SegmentBy>,
        config: Option<&Config>,
        arguments: &Arguments,
    ) -> Result<Sample, Failure> {
        key_fits(by.as_ref(), arguments.key.as_deref())?;
        let reader = reader(&loaded, config, arguments)?;
        let has_folder = data.iter().any(|path| path.is_dir());
        if reader.is_some()
            && has_folder
            && let Some(by) = &by
        {
            return Err(Failure::usage(format!(
                "a folder of images cannot be calibrated by {by}: files have no such field and no key; give NDJSON with each image in base64 (--data FILE) or a topic (--topic), or pass --no-segments"
            )));
        }
        let format = reader.map_or(RecordFormat::Json, RecordFormat::Images);
        let mut sample = Sample::new(loaded, format, by);
        sample.refusals = Refusals::by_flags();
        match (sample.reader.is_some() && has_folder, data) {
            (false, data) => sample.read_files(data, arguments)?,
            (true, [folder]) => sample.read_folder(folder, arguments)?,
            (true, _) => return Err(Failure::usage("give one folder of images at a time")),
        }
        sample.score()?;
        sample.reader.as_ref().map(warn_of_depth);
        Ok(sample)
    }

    /// Scores the records of a topic.
    pub fn of_topic(
        loaded: Loaded,
        topic: &str,
        by: Option<SegmentBy>,
        connection: &Connection,
        arguments: &Arguments,
    ) -> Result<Sample, Failure> {
        let config = connection.config.as_ref();
        let input = input::of_topic(config, &loaded.bundle)?;
        let reader = reader(&loaded, config, arguments)?;
        let input = reader.map_or(input, RecordFormat::Images);
        let mut sample = Sample::new(loaded, input, by);
        let stop = Shutdown::default();
        stop_on_ctrl_c(&stop)?;
        let range = arguments.range.range();
        let history = History::open(&connection.kafka, topic, &range, &stop)?;
        for note in &history.notes {
            eprintln!("{topic}: {note}");
        }
        let spans = history.spans().clone();
        let flagged = match verdicts_topic(arguments, connection) {
            None => Flagged::default(),
            Some(verdicts) => Flagged::read(connection, &verdicts, topic, &spans, &stop)?,
        };
        if flagged.unreadable > 0 {
            eprintln!(
                "{} records of the anomalies topic are not verdicts and are ignored",
                flagged.unreadable
            );
        }
        sample.flagged_rate = flagged.rate;
        let bar = progress::of_range("scoring", arguments.json);
        bar.set_length(history.total());
        let ended = history.read::<Failure>(&stop, |record, progress| {
            if let Some(payload) = record.payload.filter(|payload| !payload.is_empty()) {
                sample.take_message(record, payload, &flagged, &stop)?;
                bar.set_position(progress.done);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        sample.score()?;
        bar.finish_and_clear();
        sample.reader.as_ref().map(warn_of_depth);
        if ended != Ended::Complete {
            return Err(Failure::usage(
                "stopped before the end of the range, so nothing was written: run the calibration again",
            ));
        }
        match sample.scored.scores.len() as u64 + sample.refusals.count() {
            0 => Err(empty_range(topic, &spans)),
            _ => Ok(sample),
        }
    }

    fn new(loaded: Loaded, input: RecordFormat, by: Option<SegmentBy>) -> Sample {
        let features = loaded.bundle.features();
        let segment = by.clone().map(SegmentReader::learning);
        Sample {
            scored: Scored {
                is_segmented: by.is_some(),
                ..Scored::default()
            },
            by,
            residuals: Residuals::new(features.len()),
            refusals: Refusals::default(),
            left_out: LeftOut::default(),
            labelled: false,
            flagged_rate: 0.0,
            reader: match &input {
                RecordFormat::Images(reader) => Some(reader.clone()),
                _ => None,
            },
            decoder: Decoder::new(features, input, segment),
            scoring: ScorerPool::new(loaded.scorers, features.len()),
            rows: Vec::new(),
            waiting: Vec::new(),
            images: Vec::new(),
        }
    }

    fn take_message(
        &mut self,
        record: &Record<'_>,
        payload: &[u8],
        flagged: &Flagged,
        stop: &Shutdown,
    ) -> Result<(), Failure> {
        let split = self.decoder.split(payload);
        let mut take = |payload: &[u8], index: Option<u32>| {
            let place = Place {
                index,
                ..record.place()
            };
            let taken = Taken {
                payload,
                key: record.key,
                flagged: flagged.contains(place),
            };
            self.take(&taken, stop)
        };
        match split {
            Ok(Split::One) => take(payload, None),
            Ok(Split::Empty) => Ok(()),
            Ok(Split::Many(payloads)) => (0..)
                .zip(&payloads)
                .try_for_each(|(index, payload)| take(payload, Some(index))),
            Err(e) => {
                self.refusals.add(e.reason.as_str(), &e.detail);
                Ok(())
            }
        }
    }

    fn read_files(&mut self, files: &[PathBuf], arguments: &Arguments) -> Result<(), Failure> {
        let mut options = dataset::Options {
            label: arguments.label.clone(),
            key: arguments.key.clone(),
            format: arguments.format.format,
            wrapping: arguments.wrapping.wrapping(),
            ..dataset::Options::default()
        };
        if let Some(normal) = &arguments.normal {
            options.normal.clone_from(normal);
        }
        let mut data = dataset::open_all(files, &options)?;
        let bar = progress::of_file(&data, arguments.json);
        while let Some(next) = data.next() {
            match next {
                Ok(example) if example.label == Some(true) => self.left_out.labelled += 1,
                Ok(example) => self.take(
                    &Taken {
                        payload: &example.payload,
                        key: example.key.as_deref(),
                        flagged: false,
                    },
                    &Shutdown::default(),
                )?,
                Err(e) if e.is_fatal() => return Err(e.into()),
                Err(e) => self.refusals.add("malformed", &e.to_string()),
            }
            bar.set_position(data.progress().done);
        }
        progress::end(&bar, &data);
        self.labelled = arguments.label.is_some();
        Ok(data.check_labels()?)
    }

    fn read_folder(&mut self, folder: &Path, arguments: &Arguments) -> Result<(), Failure> {
        for image in dataset::folder::images(folder, arguments.normal.as_deref(), None)? {
            self.labelled |= image.label.is_some();
            if image.label == Some(true) {
                self.left_out.labelled += 1;
                continue;
            }
            let payload = bounded::read(&image.path, bounded::IMAGE)
                .map_err(|e| Failure::data(format!("{}: {e}", image.path.display())))?;
            let taken = Taken {
                payload: &payload,
                key: None,
                flagged: false,
            };
            self.take(&taken, &Shutdown::default())?;
        }
        Ok(())
    }

    fn take(&mut self, taken: &Taken<'_>, stop: &Shutdown) -> Result<(), Failure> {
        let Taken {
            payload,
            key,
            flagged,
        } = *taken;
        match input::decode(&mut self.decoder, payload, key, &mut self.rows, stop) {
            Ok(segment) => {
                self.waiting.push(Waiting { segment, flagged });
                if self.reader.is_some() {
                    self.images.push(payload.to_vec());
                }
            }
            Err(DecodeError::Row(e)) => self.refusals.add(e.reason.as_str(), &e.detail),
            // A deletion, for example.
            Err(_) => {}
        }
        if self.waiting.len() >= CHUNK || self.images.len() == IMAGE_CHUNK {
            self.score()?;
        }
        Ok(())
    }

    /// Scores the waiting rows or images.
    fn score(&mut self) -> Result<(), Failure> {
        if let Some(reader) = &self.reader {
            let images = std::mem::take(&mut self.images);
            // No heat is above infinity, so no regions are looked for.
            let images: Vec<(&[u8], f32)> = images
                .iter()
                .map(|i| (i.as_slice(), f32::INFINITY))
                .collect();
            let judged = self.scoring.score_images(reader, &images, 1)?;
            for (judged, waiting) in judged.into_iter().zip(std::mem::take(&mut self.waiting)) {
                match judged {
                    Ok((score, _)) => self.scored.push(score, &waiting),
                    Err(e) => self.refusals.add(e.reason.as_str(), &e.detail),
                }
            }
            return Ok(());
        }
        let Sample {
            scored: all,
            residuals,
            refusals,
            waiting,
            ..
        } = self;
        self.scoring.score(&self.rows, |row, scored| {
            if let Some(flaw) = scored.flaw() {
                refusals.add(Reason::Unscorable.as_str(), &flaw);
                return Ok(());
            }
            all.push(scored.score, &waiting[row]);
            residuals.add(scored.score, scored.residual);
            Ok::<_, Failure>(())
        })?;
        self.rows.clear();
        self.waiting.clear();
        Ok(())
    }

    /// Returns the share of scores above `threshold`.
    pub fn flagged_by(&self, threshold: f32) -> f64 {
        let above = self
            .scored
            .scores
            .iter()
            .filter(|score| **score > threshold);
        above.count() as f64 / self.scored.scores.len().max(1) as f64
    }

    /// Leaves out records that are not normal: first those that a daemon flagged, then the share `contamination` with the highest
    /// scores. Without `contamination` and labels, the calibration `before` decides how many.
    ///
    /// # Errors
    /// So many records score too high that they cannot all be anomalies.
    pub fn trim(
        &mut self,
        contamination: Option<f64>,
        before: &Calibration,
    ) -> Result<(), Failure> {
        let flagged =
            flagged::left_out(&self.scored.scores, &self.scored.flagged, self.flagged_rate);
        self.left_out.flagged = flagged.len();
        self.leave_out(flagged);
        let tail = Tail::new(
            &self.scored.scores,
            &self.scored.segments,
            self.by.as_ref(),
            before,
        );
        let too_high = match contamination {
            Some(share) => tail.highest(share),
            None if self.labelled => Vec::new(),
            None => tail.excess()?,
        };
        self.left_out.too_high = too_high.len();
        self.leave_out(too_high);
        Ok(())
    }

    fn leave_out(&mut self, indices: Vec<usize>) {
        let mut indices = indices;
        indices.sort_unstable_by_key(|index| std::cmp::Reverse(*index));
        for index in indices {
            self.residuals
                .leave_out(self.scored.scores.swap_remove(index));
            if self.by.is_some() {
                self.scored.segments.swap_remove(index);
            }
        }
    }

    /// Returns the calibration of the records that were kept.
    ///
    /// # Errors
    /// No record has a score, or no segment has enough records.
    pub fn calibration(&self) -> Result<Calibration, Failure> {
        if self.scored.scores.is_empty() {
            let reasons = match self.refusals.count() {
                0 => String::new(),
                _ => format!(": {}", self.refusals),
            };
            let LeftOut {
                labelled,
                flagged,
                too_high,
            } = self.left_out;
            return Err(Failure::data(format!(
                "no normal record was scored: {} could not be scored, and {} were left out as anomalies{reasons}",
                self.refusals.count(),
                labelled + flagged + too_high
            )));
        }
        let segments = self.by.clone().map(|by| self.by_segment(by)).transpose()?;
        Ok(Calibration::of(
            self.scored.scores.clone(),
            self.residuals.means(),
            segments,
        ))
    }

    fn by_segment(&self, by: SegmentBy) -> Result<Segments, Failure> {
        let names = self.decoder.segments();
        let with_value = self.scored.segments.iter().flatten().count();
        let no_segment = format!(
            "by {by}: a segment requires {LEAST_RECORDS} normal records, but no value has as many: {with_value} of {} records have a value, with {} distinct values in all",
            self.scored.scores.len(),
            names.len()
        );
        let segments = Segments::of(by, &self.scored.scores, &self.scored.segments, names);
        segments.ok_or_else(|| Failure::data(no_segment))
    }

    /// Returns what the segments say about one that is not among them, at this false-alarm rate.
    pub fn new_value(&self, rate: f64) -> Option<NewValue> {
        let Scored {
            scores, segments, ..
        } = &self.scored;
        NewValue::of(scores, segments, &self.decoder.segments(), rate)
    }

    /// Returns the number of distinct segment values in the records.
    pub fn values(&self) -> usize {
        self.decoder.segments().len()
    }
}

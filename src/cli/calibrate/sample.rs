//! The scores of normal records, from a file, a folder or a topic.

use std::ops::ControlFlow;
use std::path::Path;

use crate::bundle::segments::LEAST_RECORDS;
use crate::bundle::{Calibration, Input as Reads, SegmentBy, SegmentId, Segments};
use crate::dataset;
use crate::decode::{Decoder, Input, SegmentReader};
use crate::kafka::history::{Ended, History};
use crate::picture::Reader;
use crate::shutdown::Shutdown;

use super::Arguments;
use crate::cli::backtest::nothing;
use crate::cli::connection::{self, Connection};
use crate::cli::failure::Failure;
use crate::cli::input;
use crate::cli::model::{Loaded, must_read_tables};
use crate::cli::produce::{progress_bar, stop_on_ctrl_c};
use crate::cli::score::key_fits;
use crate::cli::scoring::{CHUNK, PICTURES, Scoring};

pub struct Sample {
    /// Of the records that could be scored, in any order.
    pub scores: Vec<f32>,
    /// And their segments, if they are told apart.
    segments: Vec<Option<SegmentId>>,
    by: Option<SegmentBy>,
    /// Sums over those, [features].
    residuals: Vec<f64>,
    pub refused: usize,
    /// Labelled anomalies.
    pub left_out: usize,
    decoder: Decoder,
    /// Of a bundle that reads pictures.
    reader: Option<Reader>,
    scoring: Scoring,
    /// What waits for its scores: rows, row-major, with their segments, or payloads with pictures.
    rows: Vec<f32>,
    waiting: Vec<Option<SegmentId>>,
    pictures: Vec<Vec<u8>>,
}

impl Sample {
    /// Of a file, or of a folder of pictures.
    pub fn of_data(
        loaded: Loaded,
        data: &Path,
        by: Option<SegmentBy>,
        arguments: &Arguments,
    ) -> Result<Sample, Failure> {
        key_fits(by.as_ref(), arguments.key.as_deref())?;
        let mut sample = Sample::new(loaded, Input::Json, by);
        if data.is_dir() {
            sample.read_folder(data, arguments)?;
        } else {
            sample.read_file(data, arguments)?;
        }
        sample.score()?;
        Ok(sample)
    }

    /// Of what a topic holds.
    pub fn of_topic(
        loaded: Loaded,
        topic: &str,
        by: Option<SegmentBy>,
        connection: &Connection,
        arguments: &Arguments,
    ) -> Result<Sample, Failure> {
        must_read_tables(&loaded.bundle, "calibrate --topic")?;
        let input = input::of_topic(connection.config.as_ref(), &loaded.bundle)?;
        let mut sample = Sample::new(loaded, input, by);
        let stop = Shutdown::default();
        stop_on_ctrl_c(&stop)?;
        let range = arguments.range.range();
        let history = History::open(&connection.kafka, topic, &range, &stop)?;
        for note in &history.notes {
            eprintln!("{topic}: {note}");
        }
        let spans = history.spans().clone();
        let bar = connection::progress_bar("scoring", arguments.json);
        bar.set_length(history.total());
        let ended = history.read::<Failure>(&stop, |record, progress| {
            if let Some(payload) = record.payload.filter(|payload| !payload.is_empty()) {
                sample.take(payload, record.key, &stop)?;
                bar.set_position(progress.done);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        sample.score()?;
        bar.finish_and_clear();
        if ended != Ended::Complete {
            return Err(Failure::usage(
                "stopped before the end of the range: nothing was written",
            ));
        }
        match sample.scores.len() + sample.refused {
            0 => Err(nothing(topic, &spans)),
            _ => Ok(sample),
        }
    }

    fn new(loaded: Loaded, input: Input, by: Option<SegmentBy>) -> Sample {
        let features = loaded.bundle.features();
        let segment = by.clone().map(SegmentReader::learning);
        Sample {
            scores: Vec::new(),
            segments: Vec::new(),
            by,
            residuals: vec![0.0; features.len()],
            refused: 0,
            left_out: 0,
            decoder: Decoder::new(features, input, segment),
            reader: match loaded.bundle.manifest.input {
                Reads::Tabular { .. } => None,
                Reads::Image(pixels) => Some(input::pictures(pixels)),
            },
            scoring: Scoring::new(loaded.scorers, features.len()),
            rows: Vec::new(),
            waiting: Vec::new(),
            pictures: Vec::new(),
        }
    }

    fn read_file(&mut self, file: &Path, arguments: &Arguments) -> Result<(), Failure> {
        let mut options = dataset::Options {
            label: arguments.label.clone(),
            key: arguments.key.clone(),
            ..dataset::Options::default()
        };
        if let Some(normal) = &arguments.normal {
            options.normal.clone_from(normal);
        }
        let mut data = dataset::open(file, &options)?;
        let bar = progress_bar(&data, arguments.json);
        while let Some(next) = data.next() {
            match next {
                Ok(example) if example.label == Some(true) => self.left_out += 1,
                Ok(example) => {
                    let key = example.key.as_deref();
                    self.take(&example.payload, key, &Shutdown::default())?;
                }
                Err(e) if e.is_fatal() => return Err(e.into()),
                Err(_) => self.refused += 1,
            }
            bar.set_position(data.progress().done);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn read_folder(&mut self, folder: &Path, arguments: &Arguments) -> Result<(), Failure> {
        if self.reader.is_none() {
            return Err(Failure::usage(format!(
                "--data {}: a folder is for pictures, and the bundle reads tables: give a file",
                folder.display()
            )));
        }
        for picture in dataset::folder::pictures(folder, arguments.normal.as_deref(), None)? {
            if picture.label == Some(true) {
                self.left_out += 1;
                continue;
            }
            let payload = std::fs::read(&picture.path)
                .map_err(|e| Failure::data(format!("{}: {e}", picture.path.display())))?;
            self.take(&payload, None, &Shutdown::default())?;
        }
        Ok(())
    }

    fn take(&mut self, payload: &[u8], key: Option<&[u8]>, stop: &Shutdown) -> Result<(), Failure> {
        if self.reader.is_some() {
            self.pictures.push(payload.to_vec());
        } else {
            match input::decode(&mut self.decoder, payload, key, &mut self.rows, stop) {
                Ok(segment) => self.waiting.push(segment),
                Err(_) => self.refused += 1,
            }
        }
        let full = self.rows.len() >= CHUNK * self.residuals.len().max(1);
        if full || self.pictures.len() == PICTURES {
            self.score()?;
        }
        Ok(())
    }

    /// Scores what waits.
    fn score(&mut self) -> Result<(), Failure> {
        if let Some(reader) = &self.reader {
            let pictures = std::mem::take(&mut self.pictures);
            let payloads: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
            let judged = self
                .scoring
                .score_pictures(reader, &payloads, f32::INFINITY, 1)?;
            for judged in judged {
                match judged {
                    Ok((score, _)) => self.scores.push(score),
                    Err(_) => self.refused += 1,
                }
            }
            return Ok(());
        }
        let (scores, residuals, refused) =
            (&mut self.scores, &mut self.residuals, &mut self.refused);
        let told_apart = self.by.is_some();
        let (segments, waiting) = (&mut self.segments, &self.waiting);
        self.scoring.score(&self.rows, |row, scored| {
            if scored.flaw().is_some() {
                *refused += 1;
                return Ok(());
            }
            scores.push(scored.score);
            if told_apart {
                segments.push(waiting[row]);
            }
            for (sum, residual) in residuals.iter_mut().zip(scored.residual) {
                *sum += f64::from(*residual);
            }
            Ok(())
        })?;
        self.rows.clear();
        self.waiting.clear();
        Ok(())
    }

    /// # Errors
    /// No record has a score, or no segment enough of them.
    pub fn calibration(&self) -> Result<Calibration, Failure> {
        if self.scores.is_empty() {
            return Err(Failure::data(format!(
                "no normal record could be scored: {} could not, {} are labelled anomalies",
                self.refused, self.left_out
            )));
        }
        let count = self.scores.len() as f64;
        let means = self.residuals.iter().map(|sum| (sum / count) as f32);
        let segments = self.by.clone().map(|by| self.by_segment(by)).transpose()?;
        Ok(Calibration::of(
            self.scores.clone(),
            means.collect(),
            segments,
        ))
    }

    fn by_segment(&self, by: SegmentBy) -> Result<Segments, Failure> {
        let names = self.decoder.segments();
        let told = self.segments.iter().flatten().count();
        let nothing = format!(
            "by {by}: no value has {LEAST_RECORDS} normal records; of {} records {told} have a value, {} different ones",
            self.scores.len(),
            names.len()
        );
        let segments = Segments::of(by, &self.scores, &self.segments, names);
        segments.ok_or_else(|| Failure::data(nothing))
    }

    /// Different values that the records had.
    pub fn values(&self) -> usize {
        self.decoder.segments().len()
    }
}

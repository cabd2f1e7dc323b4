//! The scores of normal records, from a file, a folder or a topic.

use std::ops::ControlFlow;
use std::path::Path;

use crate::bundle::{Calibration, Input as Reads};
use crate::dataset;
use crate::decode::{Decoder, Input};
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
use crate::cli::scoring::{CHUNK, PICTURES, Scoring};

pub struct Sample {
    /// Of the records that could be scored, in any order.
    pub scores: Vec<f32>,
    /// Sums over those, [features].
    residuals: Vec<f64>,
    pub refused: usize,
    /// Labelled anomalies.
    pub left_out: usize,
    decoder: Decoder,
    /// Of a bundle that reads pictures.
    reader: Option<Reader>,
    scoring: Scoring,
    /// What waits for its scores: rows, row-major, or payloads with pictures.
    rows: Vec<f32>,
    pictures: Vec<Vec<u8>>,
}

impl Sample {
    /// Of a file, or of a folder of pictures.
    pub fn of_data(loaded: Loaded, data: &Path, arguments: &Arguments) -> Result<Sample, Failure> {
        let mut sample = Sample::new(loaded, Input::Json);
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
        connection: &Connection,
        arguments: &Arguments,
    ) -> Result<Sample, Failure> {
        must_read_tables(&loaded.bundle, "calibrate --topic")?;
        let input = input::of_topic(connection.config.as_ref(), &loaded.bundle)?;
        let mut sample = Sample::new(loaded, input);
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
                sample.take(payload, &stop)?;
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

    fn new(loaded: Loaded, input: Input) -> Sample {
        let features = loaded.bundle.features();
        Sample {
            scores: Vec::new(),
            residuals: vec![0.0; features.len()],
            refused: 0,
            left_out: 0,
            decoder: Decoder::new(features, input),
            reader: match loaded.bundle.manifest.input {
                Reads::Tabular { .. } => None,
                Reads::Image(pixels) => Some(input::pictures(pixels)),
            },
            scoring: Scoring::new(loaded.scorers, features.len()),
            rows: Vec::new(),
            pictures: Vec::new(),
        }
    }

    fn read_file(&mut self, file: &Path, arguments: &Arguments) -> Result<(), Failure> {
        let mut options = dataset::Options {
            label: arguments.label.clone(),
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
                Ok(example) => self.take(&example.payload, &Shutdown::default())?,
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
            self.take(&payload, &Shutdown::default())?;
        }
        Ok(())
    }

    fn take(&mut self, payload: &[u8], stop: &Shutdown) -> Result<(), Failure> {
        if self.reader.is_some() {
            self.pictures.push(payload.to_vec());
        } else if input::decode(&mut self.decoder, payload, &mut self.rows, stop).is_err() {
            self.refused += 1;
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
        self.scoring.score(&self.rows, |_, scored| {
            if !scored.score.is_finite() {
                *refused += 1;
                return Ok(());
            }
            scores.push(scored.score);
            for (sum, residual) in residuals.iter_mut().zip(scored.residual) {
                *sum += f64::from(*residual);
            }
            Ok(())
        })?;
        self.rows.clear();
        Ok(())
    }

    /// # Errors
    /// No record has a score.
    pub fn calibration(&self) -> Result<Calibration, Failure> {
        if self.scores.is_empty() {
            return Err(Failure::data(format!(
                "no normal record could be scored: {} could not, {} are labelled anomalies",
                self.refused, self.left_out
            )));
        }
        let count = self.scores.len() as f64;
        let means = self.residuals.iter().map(|sum| (sum / count) as f32);
        Ok(Calibration::of(self.scores.clone(), means.collect()))
    }
}

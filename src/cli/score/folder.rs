//! `residuald score FOLDER`: judges images as the daemon would, compares them with masks, and writes a contact sheet.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use crate::bounded;
use crate::dataset;
use crate::dataset::folder::{Image, Truth};
use crate::decode::RowError;
use crate::evaluation::auroc;
use crate::evaluation::contact_sheet::{ContactSheet, Encoded, Entry};
use crate::evaluation::pixels::{Binned, PixelRanking, stretch};
use crate::image::{Finding, ImageError, ImageReader, Limits, Mask, highest, mask};
use crate::onnx::{ImageScores, Scorer, finite, share_out};
use crate::verdict::{Judge, Verdict};

use super::{Arguments, Labelled, REASONS, Summary, labelled, write_line};
use crate::cli::shared::files::shown;
use crate::cli::shared::images::warn_of_depth;
use crate::cli::shared::progress;
use crate::cli::shared::reasons::reasons;
use crate::cli::shared::refusals::Refusals;
use crate::cli::shared::refusals::some_scored;
use crate::cli::shared::scoring::Highest;
use crate::daemon::model::Loaded;
use crate::failure::Failure;

/// Number of images in memory at the same time, per core.
const IMAGES_PER_CORE: usize = 4;
/// Length of the longer side of an original on the contact sheet, in pixels.
const SHOWN: usize = 512;

#[derive(Serialize)]
struct Report<'r> {
    #[serde(flatten)]
    summary: Summary<'r>,
    /// One entry per class of anomalies, sorted by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classes: Vec<Class>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pixels: Option<PixelReport>,
}

/// Measures how well one class of anomalies is separated from the normal images.
#[derive(Serialize)]
struct Class {
    class: String,
    images: usize,
    auroc: Option<f64>,
}

/// Measures how well heat separates anomalous pixels from normal ones.
#[derive(Serialize)]
struct PixelReport {
    images: usize,
    regions: u64,
    auroc: Option<Binned>,
    aupro: Option<Binned>,
}

/// One line of `--out`.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<bool>,
    #[serde(flatten)]
    verdict: &'a Verdict<'a>,
}

/// The result for one image.
struct Judged {
    score: f32,
    finding: Finding,
    /// The heat with its width and height, if the image has a mask.
    heat: Option<(Vec<f32>, (usize, usize))>,
    /// A JPEG thumbnail for the contact sheet.
    shown: Option<Vec<u8>>,
}

pub fn run(
    arguments: &Arguments,
    loaded: Loaded,
    out: Option<Box<dyn Write>>,
    started: Instant,
) -> Result<(), Failure> {
    let reader = arguments
        .images
        .reader(&loaded.bundle.manifest.input, None)?;
    let reader = reader.ok_or_else(|| Failure::internal("a bundle for tables reads no images"))?;
    let [folder] = &arguments.files[..] else {
        return Err(Failure::usage("give one folder of images at a time"));
    };
    if arguments.label.is_some() {
        return Err(Failure::usage(
            "--label: in a folder of images the subfolders are the labels. Give the one with normal images with --normal",
        ));
    }
    if let Some(segments) = &loaded.bundle.calibration.segments {
        eprintln!(
            "the bundle has thresholds by {}, which files in a folder do not have: the overall threshold applies to all of them",
            segments.by
        );
    }
    let images = dataset::folder::images(
        folder,
        arguments.normal.as_deref(),
        arguments.masks.as_deref(),
    )?;
    let sheet = arguments.html.as_deref().map(ContactSheet::create);
    let sheet = sheet.transpose().map_err(|e| sheet_failed(arguments, &e))?;
    let mut run = Run {
        arguments,
        name: format!("{} {}", loaded.model.name, loaded.model.version),
        image_judge: ImageJudge {
            reader,
            threshold: loaded.judge.threshold,
            shown: sheet.is_some(),
        },
        judge: loaded.judge,
        out,
        sheet,
        refusals: Refusals::by_flags(),
        scored: Vec::new(),
        ranking: arguments.masks.is_some().then(PixelRanking::default),
        ranked: 0,
        highest: Highest::new(arguments.top),
    };
    run.all(&images, loaded.scorers)?;
    run.report(&images, started)
}

/// The result for one image, or why it has no score.
type Outcome = Result<Judged, RowError>;

/// State that the scoring threads share.
struct ImageJudge {
    reader: ImageReader,
    threshold: f32,
    /// Whether a contact sheet is written.
    shown: bool,
}

impl ImageJudge {
    /// Scores an image. The outer error ends the run. The inner one is the reason that this image has no score.
    fn score(
        &self,
        image: &Image,
        scorer: &mut Scorer,
        scores: &mut ImageScores,
    ) -> Result<Outcome, Failure> {
        let payload = read(&image.path)?;
        let rows = match self.reader.read(&payload) {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error.into())),
        };
        scores.clear();
        scorer.score_pixels(&rows.rows, scores)?;
        let score = match finite(highest(&scores.scores)) {
            Ok(score) => score,
            Err(error) => return Ok(Err(error)),
        };
        let shown = self
            .shown
            .then(|| self.reader.thumbnail(&payload, SHOWN, |_| ()));
        Ok(shown
            .transpose()
            .map(|shown| Judged {
                score,
                finding: rows.finding(
                    &scores.heat,
                    &scores.reconstruction,
                    self.threshold,
                    REASONS,
                ),
                heat: (image.truth != Truth::Unknown).then(|| {
                    (
                        rows.heat(&scores.heat),
                        (rows.layout.width, rows.layout.height),
                    )
                }),
                shown,
            })
            .map_err(RowError::from))
    }
}

struct Run<'a> {
    arguments: &'a Arguments,
    /// Name and version of the model.
    name: String,
    image_judge: ImageJudge,
    judge: Judge,
    out: Option<Box<dyn Write>>,
    sheet: Option<ContactSheet>,
    refusals: Refusals,
    /// Index and score of each scored image.
    scored: Vec<(usize, f32)>,
    ranking: Option<PixelRanking>,
    /// Number of images in the ranking.
    ranked: usize,
    /// Name and formatted reasons of each of the most anomalous images.
    highest: Highest<(String, String)>,
}

impl Run<'_> {
    fn all(&mut self, images: &[Image], mut scorers: Vec<Scorer>) -> Result<(), Failure> {
        let bar = progress::of_images(images.len(), self.arguments.json);
        let chunk = IMAGES_PER_CORE * scorers.len().max(1);
        for (first, part) in (0..).step_by(chunk).zip(images.chunks(chunk)) {
            let image_judge = &self.image_judge;
            let judged = share_out(&mut scorers, part, |scorer, scores, image| {
                image_judge.score(image, scorer, scores)
            })?;
            for (i, (image, judged)) in part.iter().zip(judged).enumerate() {
                match judged {
                    Ok(judged) => self.take(first + i, image, judged)?,
                    Err(error) => self.refuse(image, &error)?,
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        warn_of_depth(&self.image_judge.reader);
        Ok(())
    }

    fn take(&mut self, at: usize, image: &Image, judged: Judged) -> Result<(), Failure> {
        let Judged {
            score,
            finding,
            heat,
            shown,
        } = judged;
        self.scored.push((at, score));
        let verdict = self.judge.judge_image(score, None, &finding, None, None);
        let line = Line {
            file: &image.name,
            class: image.class.as_deref(),
            label: image.label,
            verdict: &verdict,
        };
        write_line(&mut self.out, &line)?;
        if self.highest.takes(score) {
            let entry = (image.name.clone(), reasons(&verdict));
            self.highest.insert(score, entry);
        }
        if let (Some(ranking), Some((heat, size))) = (&mut self.ranking, heat) {
            let image_size = (finding.width, finding.height);
            let mask = truth(&image.truth, image_size)?;
            let heat = stretch(&heat, size, image_size);
            ranking.add(&heat, &mask.marked, mask.width);
            self.ranked += 1;
        }
        if let (Some(sheet), Some(shown)) = (&mut self.sheet, shown) {
            let png = |bytes| Encoded {
                content_type: "image/png",
                bytes,
            };
            let entry = Entry {
                name: &image.name,
                width: finding.width,
                height: finding.height,
                score,
                p_value: verdict.p_value,
                grade: verdict.anomaly_grade,
                label: image.label,
                class: image.class.as_deref(),
                original: Encoded {
                    content_type: "image/jpeg",
                    bytes: &shown,
                },
                reconstruction: png(&finding.reconstruction.bytes),
                heatmap: png(&finding.heatmap.bytes),
                regions: &finding.regions,
            };
            let added = sheet.add(&entry);
            added.map_err(|e| sheet_failed(self.arguments, &e))?;
        }
        Ok(())
    }

    fn refuse(&mut self, image: &Image, error: &RowError) -> Result<(), Failure> {
        let (reason, detail) = (error.reason.as_str(), &error.detail);
        self.refusals.add(reason, detail);
        let line = json!({"file": image.name, "reason": reason, "error": detail});
        write_line(&mut self.out, &line)?;
        if let Some(sheet) = &mut self.sheet {
            sheet.add_refused(&image.name, &format!("{reason}: {detail}"));
        }
        Ok(())
    }

    fn report(mut self, images: &[Image], started: Instant) -> Result<(), Failure> {
        if let Some(out) = &mut self.out {
            out.flush().map_err(Failure::output)?;
        }
        let threshold = self.judge.threshold;
        let (indices, scores): (Vec<usize>, Vec<f32>) = self.scored.iter().copied().unzip();
        let labels: Vec<_> = indices.iter().map(|at| images[*at].label).collect();
        let flagged = scores.iter().map(|s| self.judge.is_anomaly(*s, None));
        let flagged: Vec<bool> = flagged.collect();
        let anomalies = flagged.iter().filter(|flagged| **flagged).count();
        let report = Report {
            summary: Summary {
                records: images.len(),
                scored: scores.len(),
                dead_letters: self.refusals.count(),
                reasons: self.refusals.all(),
                anomalies,
                alert_rate: anomalies as f64 / scores.len().max(1) as f64,
                threshold,
                seconds: started.elapsed().as_secs_f64(),
                labelled: labelled(&scores, &labels, &flagged),
            },
            classes: classes(images, &self.scored),
            pixels: self.ranking.as_ref().map(|ranking| PixelReport {
                images: self.ranked,
                regions: ranking.regions(),
                auroc: ranking.auroc(),
                aupro: ranking.aupro(),
            }),
        };
        if let Some(sheet) = self.sheet.take() {
            let title = format!("{} scored by {}", shown(&self.arguments.files), self.name);
            let written = sheet.finish(&title, &in_words(&report));
            written.map_err(|e| sheet_failed(self.arguments, &e))?;
        }
        if self.arguments.json {
            println!("{}", json!(report));
            return some_scored(scores.len(), &self.refusals);
        }
        for (name, value) in in_words(&report) {
            println!("{name:<18} {value}");
        }
        if report.summary.dead_letters > 0 {
            println!("{:<18} {}", "reasons", self.refusals);
        }
        for (score, (name, reasons)) in self.highest.iter() {
            println!("{score:>9.3}  {name}  {reasons}");
        }
        some_scored(scores.len(), &self.refusals)
    }
}

/// Compares each class of anomalies with all normal images.
fn classes(images: &[Image], scored: &[(usize, f32)]) -> Vec<Class> {
    let labelled = |label: bool| {
        scored
            .iter()
            .filter(move |(at, _)| images[*at].label == Some(label))
    };
    let normal: Vec<f32> = labelled(false).map(|(_, score)| *score).collect();
    let mut by_class: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for (at, score) in labelled(true) {
        let class = images[*at].class.as_deref().unwrap_or_default();
        by_class.entry(class).or_default().push(*score);
    }
    by_class
        .into_iter()
        .map(|(class, scores)| {
            let all = [scores.as_slice(), &normal].concat();
            let labels: Vec<_> = (0..all.len()).map(|i| i < scores.len()).collect();
            Class {
                class: class.to_owned(),
                images: scores.len(),
                auroc: auroc(&all, &labels),
            }
        })
        .collect()
}

/// Returns the report as pairs of name and value, for the terminal and the contact sheet.
fn in_words(report: &Report<'_>) -> Vec<(String, String)> {
    let summary = &report.summary;
    let shown = |value: Option<f64>| value.map_or("n/a".into(), |v| format!("{v:.4}"));
    let mut words = vec![
        ("images".into(), summary.records.to_string()),
        ("not scored".into(), summary.dead_letters.to_string()),
        ("anomalies".into(), summary.anomalies.to_string()),
        ("threshold".into(), format!("{:.4}", summary.threshold)),
        ("seconds".into(), format!("{:.1}", summary.seconds)),
    ];
    if let Some(Labelled {
        auroc,
        average_precision,
        at_threshold,
        ..
    }) = &summary.labelled
    {
        words.extend([
            ("AUROC".into(), shown(*auroc)),
            ("average precision".into(), shown(*average_precision)),
            ("precision".into(), shown(at_threshold.precision)),
            ("recall".into(), shown(at_threshold.recall)),
        ]);
    }
    for class in &report.classes {
        words.push((format!("AUROC {}", class.class), shown(class.auroc)));
    }
    if let Some(pixels) = &report.pixels {
        let value = |binned: Option<Binned>| shown(binned.map(|b| b.value));
        words.extend([
            ("pixel AUROC".into(), value(pixels.auroc)),
            ("AUPRO to 0.3".into(), value(pixels.aupro)),
        ]);
    }
    words
}

/// Returns the anomalous pixels of an image of `size` (width, height).
fn truth(truth: &Truth, size: (usize, usize)) -> Result<Mask, Failure> {
    let Truth::Mask(path) = truth else {
        return Ok(Mask {
            width: size.0,
            height: size.1,
            marked: vec![false; size.0 * size.1],
        });
    };
    let wrong = |what: String| Failure::data(format!("{}: {what}", path.display()));
    let mask = mask(&read(path)?, Limits::default());
    let mask = mask.map_err(|e: ImageError| wrong(e.to_string()))?;
    if (mask.width, mask.height) != size {
        return Err(wrong(format!(
            "the mask has {} x {} pixels, but its image has {} x {}: both must have the same size",
            mask.width, mask.height, size.0, size.1
        )));
    }
    Ok(mask)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    bounded::read(path, bounded::IMAGE)
        .map_err(|e| Failure::data(format!("{}: {e}", path.display())))
}

fn sheet_failed(arguments: &Arguments, error: &std::io::Error) -> Failure {
    let path = arguments.html.as_deref().unwrap_or(Path::new("--html"));
    Failure::data(format!("{}: {error}", path.display()))
}

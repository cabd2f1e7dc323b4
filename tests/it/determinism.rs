//! One record, one model, one score: the same bits in any batch, place, worker and way in.

use std::collections::HashMap;

use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, scored};
use crate::common::{payments, sample, score_of};
use residuald::batch::Scores;
use residuald::bundle::Bundle;
use residuald::config::InferenceSettings;
use residuald::decode::JsonDecoder;
use residuald::kafka::embedded::EmbeddedBroker;
use residuald::onnx::{self, Scorer};

const BATCHES: [usize; 10] = [1, 2, 7, 16, 17, 63, 64, 255, 256, 1000];
const RECORDS: usize = 1000;

fn load(workers: usize, max_records: usize) -> (Bundle, Vec<Scorer>) {
    let inference = InferenceSettings::on_cpu(workers);
    let loaded = onnx::load(&payments(), &inference, max_records).unwrap();
    assert_eq!(loaded.scorers.len(), workers);
    (loaded.bundle, loaded.scorers)
}

/// The sample as rows, [records, features].
fn rows(bundle: &Bundle, records: &[String]) -> Vec<f32> {
    let mut decoder = JsonDecoder::new(bundle.features());
    let mut rows = Vec::new();
    for record in records {
        decoder.decode(record.as_bytes(), &mut rows).unwrap();
    }
    rows
}

/// Everything that a scorer says of rows, as bits: score, residual, reconstruction of each record.
fn bits(scorer: &mut Scorer, rows: &[f32], width: usize) -> Vec<Vec<u32>> {
    let mut found = Scores::default();
    scorer.score(rows, &mut found).unwrap();
    let Scores {
        scores,
        residuals,
        reconstructions,
    } = found;
    let records = rows.len() / width;
    assert_eq!(scores.len(), records);
    let lengths = (residuals.len(), reconstructions.len());
    assert_eq!(lengths, (rows.len(), rows.len()));
    let record = |i: usize| {
        let columns = i * width..(i + 1) * width;
        let of_record = [
            &scores[i..=i],
            &residuals[columns.clone()],
            &reconstructions[columns],
        ];
        of_record.concat().iter().map(|v| v.to_bits()).collect()
    };
    (0..records).map(record).collect()
}

/// The same, in batches of `size`.
fn in_batches(scorer: &mut Scorer, rows: &[f32], width: usize, size: usize) -> Vec<Vec<u32>> {
    let batches = rows.chunks(size * width);
    batches.flat_map(|part| bits(scorer, part, width)).collect()
}

#[test]
fn any_batch_size_gives_the_same_bits() {
    let (bundle, mut scorers) = load(1, 256);
    let width = bundle.features().len();
    let rows = rows(&bundle, &sample(RECORDS));
    let alone = in_batches(&mut scorers[0], &rows, width, 1);
    for size in BATCHES {
        let together = in_batches(&mut scorers[0], &rows, width, size);
        assert!(together == alone, "batches of {size}");
    }
}

#[test]
fn any_place_in_a_batch_gives_the_same_bits() {
    let (bundle, mut scorers) = load(1, 256);
    let width = bundle.features().len();
    let rows = rows(&bundle, &sample(RECORDS));
    let probe = 3;
    let row = &rows[probe * width..(probe + 1) * width];
    let alone = bits(&mut scorers[0], row, width);
    for size in BATCHES {
        for place in [0, 1, size / 3, size / 2, size.saturating_sub(2), size - 1] {
            let mut batch = rows[..size * width].to_vec();
            let place = place.min(size - 1);
            batch[place * width..(place + 1) * width].copy_from_slice(row);
            let got = bits(&mut scorers[0], &batch, width);
            assert!(got[place] == alone[0], "place {place} of {size}");
        }
    }
    let mut backwards = Vec::new();
    for row in rows.chunks(width).rev() {
        backwards.extend_from_slice(row);
    }
    let mut mirrored = bits(&mut scorers[0], &backwards, width);
    mirrored.reverse();
    assert!(mirrored == bits(&mut scorers[0], &rows, width), "backwards");
}

#[test]
fn any_number_of_scorers_at_once_gives_the_same_bits() {
    let (bundle, mut scorers) = load(1, 256);
    let width = bundle.features().len();
    let rows = rows(&bundle, &sample(RECORDS));
    let one = bits(&mut scorers[0], &rows, width);
    for workers in 1..=4 {
        let (_, mut scorers) = load(workers, 256);
        let share = RECORDS.div_ceil(workers) * width;
        let parts = std::thread::scope(|scope| {
            let parts = scorers.iter_mut().zip(rows.chunks(share));
            let threads: Vec<_> = parts
                .map(|(scorer, part)| scope.spawn(move || in_batches(scorer, part, width, 100)))
                .collect();
            let joined = threads.into_iter().flat_map(|t| t.join().unwrap());
            joined.collect::<Vec<_>>()
        });
        assert!(parts == one, "{workers} scorers");
    }
}

#[test]
fn any_largest_batch_gives_the_same_bits() {
    let (bundle, mut scorers) = load(1, 256);
    let width = bundle.features().len();
    let rows = rows(&bundle, &sample(RECORDS));
    let usual = bits(&mut scorers[0], &rows, width);
    for max_records in [1, 7, 33, 100, 512, 1000, 4096] {
        let (_, mut scorers) = load(1, max_records);
        let got = bits(&mut scorers[0], &rows, width);
        assert!(got == usual, "batch.max_records = {max_records}");
    }
}

#[test]
fn what_else_is_in_the_batch_does_not_matter() {
    let (bundle, mut scorers) = load(1, 256);
    let width = bundle.features().len();
    let rows = rows(&bundle, &sample(16));
    let usual = bits(&mut scorers[0], &rows, width);
    for stranger in [f32::NAN, f32::MAX, f32::MIN, -1e30, 1e-40] {
        let mut batch = rows.clone();
        batch[8 * width..9 * width].fill(stranger);
        let got = bits(&mut scorers[0], &batch, width);
        for place in (0..16).filter(|place| *place != 8) {
            assert!(got[place] == usual[place], "{stranger} beside {place}");
        }
    }
}

#[test]
fn every_golden_record_gets_the_trainers_score() {
    let (bundle, mut scorers) = load(1, 256);
    let mut decoder = JsonDecoder::new(bundle.features());
    assert!(bundle.golden.len() >= 20, "{}", bundle.golden.len());
    for (line, golden) in (1..).zip(&bundle.golden) {
        let mut row = Vec::new();
        let record = golden.record.get();
        decoder.decode(record.as_bytes(), &mut row).unwrap();
        let mut score = Scores::default();
        scorers[0].score(&row, &mut score).unwrap();
        assert!(
            bundle.manifest.golden.accepts(score[0], golden.score),
            "golden record {line}: {} here, {} in training",
            score[0],
            golden.score
        );
    }
}

#[test]
fn the_daemon_and_the_score_verb_agree_to_the_bit() {
    let golden = load(1, 1).0.golden;
    let mut records: Vec<String> = golden.iter().map(|g| g.record.get().to_owned()).collect();
    records.extend(sample(500));

    let from_file: HashMap<u64, f32> = scored(&records, &payments(), &[])
        .iter()
        .map(|verdict| (verdict["record"].as_u64().unwrap(), score_of(verdict)))
        .collect();
    assert_eq!(from_file.len(), records.len());

    let broker =
        EmbeddedBroker::start(&[("in", 1), ("anomalies", 1), ("scores", 1), ("dead", 1)]).unwrap();
    let notes: Vec<Note> = (1..)
        .zip(&records)
        .map(|(number, record): (u64, _)| Note::new(&number.to_string(), record.as_str()))
        .collect();
    produce(&broker.brokers, "in", &notes);
    let settings = ["output.scores_topic=scores", "batch.max_records=37"];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", records.len() as u64);
    daemon.drains();
    let published = read_all(&broker.brokers, "scores");
    assert_eq!(published.len(), records.len());
    for note in published {
        let number: u64 = String::from_utf8(note.key.clone().unwrap())
            .unwrap()
            .parse()
            .unwrap();
        let (daemon, file) = (score_of(&note.json()), from_file[&number]);
        assert_eq!(daemon.to_bits(), file.to_bits(), "record {number}");
    }
}

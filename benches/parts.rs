//! Benchmarks of each stage that a record passes through: `cargo bench`. `residuald bench` measures the whole pipeline.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use residuald::batch::{Batch, Scores, TopicPartition};
use residuald::bundle::{Feature, SegmentBy};
use residuald::config::InferenceSettings;
use residuald::dataset;
use residuald::decode::{
    Decoder, JsonDecoder, RecordFormat, RecordType, SegmentReader, TypeSource,
};
use residuald::message::{ModelId, verdict_message};
use residuald::onnx;
use residuald::record::Record;
use residuald::verdict::{Judge, Scored, ThresholdRule};

#[path = "../tests/common/formats.rs"]
#[allow(dead_code, reason = "only the tests use the rest")]
mod formats;

const BUNDLE: &str = "models/payments";
const RECORDS: usize = 1024;

fn sample() -> Vec<Vec<u8>> {
    let path = Path::new(BUNDLE).join("sample.ndjson.gz");
    let data = dataset::open(&path, &dataset::Options::default()).expect("the sample exists");
    let payloads = data.map(|example| example.expect("the sample is readable").payload);
    payloads.take(RECORDS).collect()
}

fn parts(criterion: &mut Criterion) {
    let inference = InferenceSettings::on_cpu(1);
    let loaded = onnx::load(Path::new(BUNDLE), &inference, RECORDS).expect("the bundle is valid");
    let features = loaded.bundle.features().to_vec();
    let mut scorer = loaded.scorers.into_iter().next().expect("one worker");
    let payloads = sample();

    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(RECORDS as u64));
    let mut decoder = JsonDecoder::new(&features);
    let mut rows = Vec::new();
    group.bench_function("json into rows", |bencher| {
        bencher.iter(|| {
            rows.clear();
            for payload in &payloads {
                decoder
                    .decode(payload, &mut rows)
                    .expect("it matches the schema");
            }
            black_box(&rows);
        });
    });
    let by = SegmentBy::Field("merchant.category".into());
    let mut segmented = JsonDecoder::segmented(&features, Some(SegmentReader::learning(by)));
    let mut same = Vec::new();
    group.bench_function("json into rows, with a segment", |bencher| {
        bencher.iter(|| {
            same.clear();
            for payload in &payloads {
                black_box(
                    segmented
                        .decode(payload, &mut same)
                        .expect("it matches the schema"),
                );
            }
            black_box(&same);
        });
    });
    for (name, mut decoder, payloads) in typed(&payloads, &features) {
        let mut same = Vec::new();
        group.bench_function(format!("{name} into rows"), |bencher| {
            bencher.iter(|| {
                same.clear();
                for payload in &payloads {
                    decoder
                        .decode(payload, None, &mut same)
                        .expect("it matches the schema");
                }
                black_box(&same);
            });
        });
        let bits = |rows: &[f32]| rows.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(&rows),
            bits(&same),
            "{name} gives the same rows as JSON"
        );
    }
    group.bench_function("json into serde_json::Value, for comparison", |bencher| {
        bencher.iter(|| {
            for payload in &payloads {
                let value: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
                black_box(value);
            }
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(RECORDS as u64));
    let from = TopicPartition {
        topic: 0,
        partition: 0,
    };
    let mut batch = Batch::default();
    group.bench_function("keep", |bencher| {
        bencher.iter(|| {
            batch.clear();
            let now = Instant::now();
            for (offset, payload) in (0..).zip(&payloads) {
                batch.keep(&record(payload, offset), from, None, now);
            }
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("score");
    let mut scores = Scores::default();
    for records in [1, 16, 64, 256, 1024] {
        let rows = &rows[..records * features.len()];
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(BenchmarkId::from_parameter(records), |bencher| {
            bencher.iter(|| {
                scores.clear();
                scorer
                    .score(rows, &mut scores)
                    .expect("the batch is scored");
            });
        });
    }
    group.finish();

    let model = ModelId {
        name: "payments".into(),
        version: "1".into(),
        sha256: loaded.bundle.sha256.clone(),
    };
    let rule = ThresholdRule::FalseAlarmRate(0.001);
    let calibration = loaded.bundle.calibration;
    let judge = Judge::new(features.clone(), calibration, rule).expect("the sample supports it");
    criterion.bench_function("verdict and its message", |bencher| {
        let kept = batch.records().next().expect("a record");
        let width = features.len();
        bencher.iter(|| {
            let verdict = judge.judge(
                Scored::at(&scores, 0, &rows[..width]),
                kept.segment,
                None,
                5,
            );
            let json = RecordFormat::Json.to_json(kept.payload);
            let json = json.as_deref();
            black_box(verdict_message(&model, "payments", kept, &verdict, json));
        });
    });
}

/// The same records encoded as Avro and as Protobuf, each with its decoder.
fn typed(payloads: &[Vec<u8>], features: &[Feature]) -> [(&'static str, Decoder, Vec<Vec<u8>>); 2] {
    let json = |payload: &Vec<u8>| String::from_utf8(payload.clone()).expect("JSON is UTF-8");
    let schema = apache_avro::Schema::parse_str(formats::AVRO).expect("a schema");
    let avro = payloads.iter().map(|p| formats::avro(&schema, &json(p)));
    let message = formats::message();
    let protobuf = payloads
        .iter()
        .map(|p| formats::protobuf(&message, &json(p)));
    let decoder = |file: &str, message: Option<&str>| {
        let path = Path::new("tests/schemas").join(file);
        let source = TypeSource::File(RecordType::open(&path, message).expect("a schema"));
        Decoder::new(features, RecordFormat::Typed(source), None)
    };
    [
        ("avro", decoder("payment.avsc", None), avro.collect()),
        (
            "protobuf",
            decoder("payment.proto", Some("shop.Payment")),
            protobuf.collect(),
        ),
    ]
}

fn record(payload: &[u8], offset: i64) -> Record<'_> {
    Record {
        topic: "payments",
        partition: 0,
        offset,
        index: None,
        timestamp_ms: Some(1_767_225_600_000),
        key: Some(b"card-1"),
        headers: Vec::new(),
        payload: Some(payload),
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = parts
}
criterion_main!(benches);

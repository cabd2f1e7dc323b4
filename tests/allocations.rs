//! A record in the steady state costs no allocation of ours: the whole pipeline in this process, with a counting
//! allocator. librdkafka's and ONNX Runtime's own are C and C++ and not seen by it. One is the crate rdkafka's: an `Arc`
//! around each message.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::kafka::{produce, spread};
use common::{payments, sample, wait_for};
use residuald::config::Config;
use residuald::kafka::embedded::EmbeddedBroker;
use residuald::kafka::{Sink, Source};
use residuald::message::ModelId;
use residuald::metrics::Metrics;
use residuald::onnx;
use residuald::pipeline::{self, PendingModel, RunContext, RunParts, Screening, Serving};
use residuald::recent::Recent;
use residuald::shutdown::Shutdown;
use residuald::status::Status;
use residuald::verdict::{Judge, ThresholdRule};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PARTITIONS: i32 = 8;
const RECORDS: u64 = 20_000;
/// By then every buffer has its size.
const WARM: u64 = 8_000;
/// rdkafka's own, and over the 256 records of a batch what a run of a session, a store of offsets and the like take.
const A_RECORD: f64 = 1.25;

/// What a daemon with these settings allocates for a record.
fn allocations_a_record(screen: &str) -> f64 {
    let broker =
        EmbeddedBroker::start(&[("in", PARTITIONS), ("anomalies", 1), ("dead", 1)]).unwrap();
    let records = sample(RECORDS as usize);
    produce(&broker.brokers, "in", &spread(&records, PARTITIONS));
    let settings = [
        format!("kafka.brokers={}", broker.brokers),
        "kafka.topics=in".to_owned(),
        "kafka.consumer.\"fetch.wait.max.ms\"=5".to_owned(),
        "output.dead_letter_topic=dead".to_owned(),
        format!("model.bundle={:?}", payments()),
        format!("screen.mode={screen}"),
        "inference.workers=1".to_owned(),
    ];
    let config = Config::load(None, Vec::new(), &settings).unwrap();
    let loaded = onnx::load(
        &config.model.bundle,
        &config.inference,
        config.batch.max_records,
    );
    let loaded = loaded.unwrap();
    let (bundle, features) = (&loaded.bundle, loaded.bundle.features().to_vec());
    // Nothing is flagged: an anomaly has a message, and that is allocated.
    let nothing = ThresholdRule::Score(1e9);
    let judge = Judge::new(features.clone(), bundle.calibration.clone(), nothing).unwrap();
    let usual = Judge::new(
        features.clone(),
        bundle.calibration.clone(),
        config.threshold,
    )
    .unwrap();
    let bounds = pipeline::bounds(bundle.screen.as_ref().unwrap(), &usual, 0.001).unwrap();
    let screens = loaded.screens.into_iter();
    let screenings = screens.filter_map(|s| Screening::new(s, bounds.clone(), config.screen));

    let (metrics, stop) = (Metrics::new(judge.threshold), Shutdown::default());
    let serving = Serving {
        features: features.clone(),
        segment: None,
        input: residuald::decode::RecordFormat::Json,
        decoding: residuald::memory::Room::of(0),
        scorers: loaded.scorers,
        screenings: screenings.collect(),
        imputers: Vec::new(),
        image_work: Vec::new(),
        slow_unit: Duration::ZERO,
        judge,
        nearest: None,
        model: ModelId {
            name: bundle.manifest.name.clone(),
            version: bundle.manifest.version.clone(),
            sha256: bundle.sha256.clone(),
        },
        asked: "cpu",
    };
    let status = Status::new(serving.in_force(&metrics.score_buckets().0), Instant::now());
    let source =
        Source::connect(&config.kafka, &[], metrics.clone(), status.clone(), &stop).unwrap();
    let sink = Sink::connect(&config.kafka, &["anomalies", "dead"], &stop).unwrap();
    let parts = RunParts {
        source,
        sink,
        serving,
        context: RunContext {
            batch: config.batch,
            output: config.output,
            transaction_window: None,
            drain_timeout: config.kafka.drain_timeout,
            in_flight_share: usize::MAX,
            traces: None,
            metrics: metrics.clone(),
            recent: Recent::default(),
            status,
            pending_model: PendingModel::default(),
        },
    };
    let stopped = stop.clone();
    let pipeline = std::thread::spawn(move || pipeline::run(parts, &stopped));
    let reached = |count: u64| {
        wait_for(&format!("{count} records"), || {
            (metrics.records_scored.get() >= count).then(|| {
                let allocated = COUNT.load(Ordering::Relaxed);
                (metrics.records_scored.get(), allocated)
            })
        })
    };
    let (first, before) = reached(WARM);
    let (last, after) = reached(RECORDS);
    stop.request();
    pipeline.join().unwrap().unwrap();
    (after - before) as f64 / (last - first) as f64
}

/// One test: another at the same time would be counted as well.
#[test]
fn a_record_allocates_nothing() {
    for screen in ["off", "on"] {
        let allocations = allocations_a_record(screen);
        println!("screen {screen}: {allocations:.4} allocations a record");
        assert!(allocations < A_RECORD, "screen {screen}: {allocations}");
    }
}

//! OpenTelemetry traces: what a collector gets, and that nothing waits for one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::Daemon;
use crate::common::{free_port, root, sample, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use residuald::kafka::embedded::EmbeddedBroker;

const SENDER: &str = "b7ad6b7169203331";
const WITH_SCORES: &str = "output.scores_topic=scores";

/// Takes OTLP over HTTP on loopback until the process ends.
struct Collector {
    endpoint: String,
    taken: Arc<Mutex<Vec<ResourceSpans>>>,
}

impl Collector {
    /// One that first answers `refusals` requests with 503.
    fn start(refusals: usize) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let taken = Arc::<Mutex<Vec<ResourceSpans>>>::default();
        let into = taken.clone();
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let request = read(&stream);
                let refused = i < refusals;
                if !refused {
                    into.lock().unwrap().extend(request.resource_spans);
                }
                let status = if refused { 503 } else { 200 };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Whatever\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
        });
        Collector { endpoint, taken }
    }

    fn setting(&self) -> String {
        format!("telemetry.otlp_endpoint={}", self.endpoint)
    }

    /// What has come so far, by trace, then by name.
    fn traces(&self) -> BTreeMap<String, BTreeMap<String, Span>> {
        let mut traces = BTreeMap::<_, BTreeMap<_, _>>::new();
        for resource in self.taken.lock().unwrap().iter() {
            let service = &resource.resource.as_ref().unwrap().attributes;
            assert_eq!(text(service, "service.name").as_deref(), Some("residuald"));
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let trace = traces.entry(hex(&span.trace_id)).or_default();
                let before = trace.insert(span.name.clone(), span.clone());
                assert_eq!(before, None, "twice");
            }
        }
        traces
    }
}

fn read(stream: &TcpStream) -> ExportTraceServiceRequest {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let head = head.to_lowercase();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf\r\n"),
        "{head}"
    );
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    ExportTraceServiceRequest::decode(&body[..]).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(attributes: &[KeyValue], name: &str) -> Option<Value> {
    let found = attributes.iter().find(|a| a.key == name)?;
    let Some(AnyValue { value }) = &found.value else {
        return None;
    };
    value.clone()
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    match value(attributes, name)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn trace_id(number: u32) -> String {
    format!("0af7651916cd43dd8448eb21{number:08x}")
}

fn broker() -> EmbeddedBroker {
    let topics = ["in", "anomalies", "dead", "scores"];
    EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).unwrap()
}

fn note(payload: &str, traceparent: Option<&str>) -> Note {
    let traceparent = traceparent.map(|t| ("traceparent".to_owned(), Some(t.as_bytes().to_vec())));
    Note {
        headers: traceparent.into_iter().collect(),
        ..Note::new("key", payload)
    }
}

fn names(trace: &BTreeMap<String, Span>) -> Vec<&str> {
    trace.keys().map(String::as_str).collect()
}

/// Inside each other, and each in its parent's time.
fn check_steps(trace: &BTreeMap<String, Span>) {
    let consume = &trace["consume"];
    assert_eq!(consume.kind, SpanKind::Consumer as i32);
    for (name, span) in trace {
        assert!(
            span.start_time_unix_nano <= span.end_time_unix_nano,
            "{span:?}"
        );
        if name != "consume" {
            assert_eq!(hex(&span.parent_span_id), hex(&consume.span_id), "{name}");
            assert!(
                span.start_time_unix_nano >= consume.start_time_unix_nano,
                "{span:?}"
            );
            assert!(
                span.end_time_unix_nano <= consume.end_time_unix_nano,
                "{span:?}"
            );
        }
    }
    let order = ["decode", "score", "publish"];
    let there: Vec<_> = order.iter().filter_map(|name| trace.get(*name)).collect();
    for pair in there.windows(2) {
        assert!(
            pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano,
            "{pair:?}"
        );
    }
}

#[test]
fn a_sampled_record_is_four_spans_of_its_trace() {
    let good = sample(5);
    let parents = [
        Some(format!("00-{}-{SENDER}-01", trace_id(0))),
        Some(format!("00-{}-{SENDER}-00", trace_id(1))),
        None,
        Some(format!("00-{}-{SENDER}-01", trace_id(3))),
        Some("nonsense".to_owned()),
    ];
    let notes = parents.iter().enumerate().map(|(i, parent)| {
        let payload = if i == 3 { "not json" } else { &good[i] };
        note(payload, parent.as_deref())
    });
    let notes: Vec<_> = notes.collect();
    // Twice the same: a repeat is the same bytes.
    let rounds = [(); 2].map(|()| {
        let (broker, collector) = (broker(), Collector::start(0));
        produce(&broker.brokers, "in", &notes);
        let settings = [&collector.setting(), WITH_SCORES, "threshold.score=100"];
        let daemon = Daemon::ready(&broker.brokers, &settings);
        daemon.await_count("scored", 4);
        daemon.await_count("dead_letters", 1);
        daemon.is_balanced();
        daemon.drains();
        let traces = collector.traces();
        let scores = read_all(&broker.brokers, "scores");
        let passed_on = |i: usize| scores[i].header("traceparent").map(str::to_owned);
        let passed_on = [0, 1, 2, 3].map(passed_on);
        let letter = read_all(&broker.brokers, "dead").remove(0);
        assert_eq!(
            letter.header("traceparent"),
            parents[3].as_deref(),
            "as it came"
        );
        (traces, passed_on)
    });
    let [(traces, passed_on), (_, passed_on_again)] = rounds;
    assert_eq!(passed_on, passed_on_again);

    assert_eq!(
        traces.keys().cloned().collect::<Vec<_>>(),
        [trace_id(0), trace_id(3)]
    );
    let scored = &traces[&trace_id(0)];
    assert_eq!(names(scored), ["consume", "decode", "publish", "score"]);
    check_steps(scored);
    assert_eq!(hex(&scored["consume"].parent_span_id), SENDER);
    let of = |name: &str| scored[name].attributes.as_slice();
    assert_eq!(
        text(of("consume"), "messaging.destination.name").as_deref(),
        Some("in")
    );
    assert_eq!(
        value(of("consume"), "messaging.kafka.offset"),
        Some(Value::IntValue(0))
    );
    assert!(value(of("score"), "residuald.anomaly_score").is_some());
    assert_eq!(
        text(of("publish"), "messaging.destination.name").as_deref(),
        Some("scores")
    );
    let publish = hex(&scored["publish"].span_id);
    let expected = [
        Some(format!("00-{}-{publish}-01", trace_id(0))),
        parents[1].clone(),
        None,
        parents[4].clone(),
    ];
    assert_eq!(
        passed_on, expected,
        "only a traced verdict names another parent"
    );

    let dead = &traces[&trace_id(3)];
    assert_eq!(names(dead), ["consume", "decode", "publish"]);
    check_steps(dead);
    assert_eq!(dead["decode"].status.as_ref().unwrap().message, "malformed");
    assert_eq!(
        text(&dead["publish"].attributes, "messaging.destination.name").as_deref(),
        Some("dead")
    );
}

#[test]
fn an_anomaly_says_so_and_a_silent_record_is_not_published() {
    let (broker, collector) = (broker(), Collector::start(0));
    let records = sample(600);
    let notes = records
        .iter()
        .zip(0..)
        .map(|(record, i)| note(record, Some(&format!("00-{}-{SENDER}-01", trace_id(i)))));
    produce(&broker.brokers, "in", &notes.collect::<Vec<_>>());
    let daemon = Daemon::ready(
        &broker.brokers,
        &[&collector.setting(), "threshold.quantile=0.9"],
    );
    daemon.await_count("scored", 600);
    daemon.is_balanced();
    assert_eq!(daemon.metric("residuald_trace_spans_lost_total"), 0.0);
    daemon.drains();
    let traces = collector.traces();
    assert_eq!(traces.len(), 600);
    let published: BTreeMap<_, _> = traces
        .values()
        .filter_map(|trace| {
            check_steps(trace);
            let span = trace.get("publish")?;
            Some((
                hex(&span.span_id),
                text(&span.attributes, "residuald.severity"),
            ))
        })
        .collect();
    let anomalies = read_all(&broker.brokers, "anomalies");
    assert!((10..300).contains(&anomalies.len()), "{}", anomalies.len());
    assert_eq!(published.len(), anomalies.len());
    for anomaly in anomalies {
        let parent = anomaly.header("traceparent").unwrap();
        let severity = anomaly.json()["severity"].as_str().map(str::to_owned);
        assert_eq!(published[&parent[36..52]], severity);
    }
}

#[test]
fn records_without_a_trace_get_one_by_the_ratio() {
    let (broker, collector) = (broker(), Collector::start(0));
    let records = sample(400);
    let notes = records.iter().map(|record| note(record, None));
    produce(&broker.brokers, "in", &notes.collect::<Vec<_>>());
    let ratio = "telemetry.trace_sample_ratio=0.25";
    let daemon = Daemon::ready(&broker.brokers, &[&collector.setting(), ratio, WITH_SCORES]);
    daemon.await_count("scored", 400);
    daemon.drains();
    let traces = collector.traces();
    assert!((60..140).contains(&traces.len()), "{} of 400", traces.len());
    let scores = read_all(&broker.brokers, "scores");
    let named: Vec<_> = scores
        .iter()
        .filter_map(|s| s.header("traceparent"))
        .collect();
    assert_eq!(named.len(), traces.len());
    for parent in named {
        let trace = &traces[&parent[3..35]];
        check_steps(trace);
        assert_eq!(trace["consume"].parent_span_id, [0; 0], "it begins here");
        assert_eq!(
            parent,
            format!(
                "00-{}-{}-01",
                &parent[3..35],
                hex(&trace["publish"].span_id)
            )
        );
    }
}

#[test]
fn an_image_has_its_four_spans() {
    let broker = EmbeddedBroker::start(&["in", "anomalies", "dead", "scores"].map(|t| (t, 1)));
    let (broker, collector) = (broker.unwrap(), Collector::start(0));
    let surface = root().join("models/surface");
    let file = std::fs::File::open(surface.join("sample.ndjson.gz")).unwrap();
    let mut lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    let parent = format!("00-{}-{SENDER}-01", trace_id(7));
    let image = lines.next().unwrap().unwrap();
    produce(
        &broker.brokers,
        "in",
        &[
            note(&image, Some(&parent)),
            note("{}", Some(&parent.replace("07-", "08-"))),
        ],
    );
    let settings = [
        &collector.setting(),
        WITH_SCORES,
        &format!("model.bundle={surface:?}"),
        "threshold.quantile=0.9",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", 1);
    daemon.await_count("dead_letters", 1);
    daemon.drains();
    let traces = collector.traces();
    let scored = &traces[&trace_id(7)];
    assert_eq!(names(scored), ["consume", "decode", "publish", "score"]);
    check_steps(scored);
    let dead = &traces[&trace_id(8)];
    assert_eq!(names(dead), ["consume", "decode", "publish"]);
    assert_eq!(dead["decode"].status.as_ref().unwrap().message, "missing");
}

#[test]
fn a_collector_that_is_away_holds_nothing_up() {
    let refused = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [refused, silent.local_addr().unwrap()] {
        let broker = broker();
        let records = sample(2000);
        let notes: Vec<_> = records.iter().map(|record| note(record, None)).collect();
        let settings = [
            &format!("telemetry.otlp_endpoint=http://{address}"),
            "telemetry.trace_sample_ratio=1",
        ];
        let daemon = Daemon::ready(&broker.brokers, &settings);
        // More spans than the queue takes.
        for _ in 0..5 {
            produce(&broker.brokers, "in", &notes);
        }
        daemon.await_count("scored", 10_000);
        daemon.is_balanced();
        std::thread::sleep(Duration::from_secs(11)); // two attempts or more
        let lost = daemon.metric("residuald_trace_spans_lost_total");
        assert!(lost >= 10_000.0, "{lost} of 30,000 or more");
        let ended = daemon.drains();
        assert!(
            ended.took < Duration::from_secs(12),
            "{address}: {:?}",
            ended.took
        );
        let complaints = ended.stderr.matches("telemetry.otlp_endpoint").count();
        assert_eq!(complaints, 1, "{}", ended.stderr);
    }
}

#[test]
fn a_collector_that_comes_back_gets_traces() {
    let (broker, collector) = (broker(), Collector::start(1));
    let settings = [&collector.setting(), "telemetry.trace_sample_ratio=1"];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    produce(&broker.brokers, "in", &[note(&sample(1)[0], None)]);
    wait_for("a trace", || (!collector.traces().is_empty()).then_some(()));
    let log = daemon.drains().stderr;
    for said in [
        "/v1/traces: HTTP 503; traces are lost",
        "accepts traces again",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
}

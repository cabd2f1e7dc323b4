//! What may be sent again after a commit that did not succeed. A cluster of librdkafka's mock brokers gives the answers,
//! because a real broker gives them only in rare moments of a failure.

use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_resp_err_t as Answer;
use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaApiKey as Api;

use super::super::Sink;
use super::super::context::Ticket;
use super::*;
use crate::config::{ClientSettings, Guarantee, KafkaSettings};
use crate::kafka::consumer::{Event, Source};
use crate::message::{About, Kind, Message, ModelId};
use crate::metrics::Metrics;
use crate::record::Origin;
use crate::status::{InForce, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const NEXT: i64 = 7;

/// A member of a group with all partitions of the topic `in`, and a producer with an open transaction that holds one
/// acknowledged message.
struct Stage {
    /// `None` once it has left the group, which needs the brokers.
    source: Option<Source>,
    sink: Sink,
    never: Shutdown,
    brokers: MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.source.take().map(|source| source.close(PATIENCE));
    }
}

impl Stage {
    fn new() -> Stage {
        let brokers = MockCluster::new(1).unwrap();
        brokers.create_topic("in", 1, 1).unwrap();
        brokers.create_topic("out", 1, 1).unwrap();
        let kafka = KafkaSettings {
            brokers: brokers.bootstrap_servers(),
            topics: vec!["in".to_owned()],
            group_id: "group".to_owned(),
            guarantee: Guarantee::ExactlyOnce {
                window: Duration::from_millis(100),
            },
            connect_timeout: PATIENCE,
            drain_timeout: PATIENCE,
            client: ClientSettings::default(),
            consumer: ClientSettings::default(),
            producer: ClientSettings::default(),
        };
        let never = Shutdown::default();
        let nothing = InForce {
            model: ModelId {
                name: String::new(),
                version: String::new(),
                sha256: String::new(),
            },
            provider: "",
            threshold: 1.0,
            segments: None,
            normal: Vec::new(),
            reader: None,
        };
        let status = Status::new(nothing, Instant::now());
        let mut source =
            Source::connect(&kafka, &["out"], Metrics::new(1.0), status, &never).unwrap();
        let membership = source.membership();
        let deadline = Instant::now() + PATIENCE;
        while membership.metadata(0).is_none() || source.is_holding() {
            assert!(Instant::now() < deadline, "the group assigns no partition");
            match source.poll(POLL).unwrap() {
                Event::Rebalance(rebalance) => source.complete(&rebalance).unwrap(),
                _ => source.resume(Instant::now()).unwrap(),
            }
        }
        let sink = Sink::connect(&kafka, &["out"], &never).unwrap();
        let stage = Stage {
            source: Some(source),
            sink,
            never,
            brokers,
        };
        stage.begin();
        stage
    }

    fn begin(&self) {
        let message = Message {
            about: About {
                source: Origin {
                    topic: "in".to_owned(),
                    partition: 0,
                    offset: NEXT - 1,
                    index: None,
                },
                kind: Kind::Map,
            },
            key: None,
            headers: Vec::new(),
            payload: b"a verdict".to_vec(),
            timestamp_ms: None,
        };
        let ticket = Ticket {
            sequence: 0,
            alone: true,
            timestamp_ms: None,
        };
        self.sink.begin().unwrap();
        self.sink.send(ticket, "out", &message).unwrap();
        let delivery = self.sink.deliveries().recv_timeout(PATIENCE).unwrap();
        delivery.result.unwrap();
    }

    fn answers(&self, api: Api, answer: Answer, times: usize) {
        self.brokers.request_errors(api, &vec![answer; times]);
    }

    fn commit(&self, give_up: &Shutdown) -> Result<Outcome, KafkaError> {
        let source = self.source.as_ref().unwrap();
        let from = TopicPartition {
            topic: source.topics().number("in"),
            partition: 0,
        };
        let membership = source.membership();
        self.sink.commit(&membership, 0, &[(from, NEXT)], give_up)
    }
}

#[test]
fn a_commit_that_may_have_happened_is_not_sent_again() {
    let stage = Stage::new();
    let answers = [
        Answer::RD_KAFKA_RESP_ERR_UNKNOWN,
        // The brokers refuse to abort, as they do once the transaction is committed.
        Answer::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE,
    ];
    stage.brokers.request_errors(Api::EndTxn, &answers);
    let ended = stage.commit(&stage.never);
    let Err(KafkaError::InDoubt(problem)) = ended else {
        panic!("{ended:?}");
    };
    assert!(problem.contains("EndTxn commit failed"), "{problem}");
}

#[test]
fn a_commit_that_failed_and_was_aborted_may_be_sent_again() {
    let stage = Stage::new();
    stage.answers(Api::EndTxn, Answer::RD_KAFKA_RESP_ERR_UNKNOWN, 1);
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Ok(Outcome::Aborted(_))), "{ended:?}");
    stage.begin();
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Ok(Outcome::Committed)), "{ended:?}");
}

#[test]
fn after_a_commit_that_was_sent_twice_the_producer_is_replaced() {
    let mut stage = Stage::new();
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Ok(Outcome::Committed)), "{ended:?}");
    stage.begin();
    // The connection breaks instead of an answer.
    stage.answers(Api::EndTxn, Answer::RD_KAFKA_RESP_ERR__TRANSPORT, 1);
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Ok(Outcome::Committed)), "{ended:?}");
    assert!(stage.sink.must_be_replaced());
    stage.sink.replace(PATIENCE, &stage.never).unwrap();
    assert!(!stage.sink.must_be_replaced());
    stage.begin();
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Ok(Outcome::Committed)), "{ended:?}");
}

#[test]
fn a_commit_without_an_answer_is_given_up_and_not_sent_again() {
    let stage = Stage::new();
    let loading = Answer::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
    stage.answers(Api::EndTxn, loading, 1000);
    let give_up = Shutdown::default();
    give_up.request();
    let ended = stage.commit(&give_up);
    assert!(matches!(ended, Ok(Outcome::GivenUp)), "{ended:?}");
}

#[test]
fn a_fenced_commit_ends_the_process() {
    let stage = Stage::new();
    let fenced = Answer::RD_KAFKA_RESP_ERR_PRODUCER_FENCED;
    stage.answers(Api::EndTxn, fenced, 1);
    let ended = stage.commit(&stage.never);
    assert!(matches!(ended, Err(KafkaError::Fenced(_))), "{ended:?}");
}

#[test]
fn refused_offsets_abort_the_transaction() {
    for (answer, unknown) in [
        (Answer::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, false),
        (Answer::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, true),
    ] {
        let mut stage = Stage::new();
        stage.answers(Api::TxnOffsetCommit, answer, 100);
        let ended = stage.commit(&stage.never);
        assert!(matches!(ended, Ok(Outcome::Aborted(_))), "{ended:?}");
        stage.sink.replace(PATIENCE, &stage.never).unwrap();
        let seen = &stage.sink.transactions.topic_unknown;
        assert_eq!(
            seen.load(Ordering::Relaxed),
            unknown,
            "after a new producer"
        );
    }
}

#[test]
fn a_request_is_repeated_after_four_fifths_of_its_backoff_at_the_earliest() {
    for (settings, ms) in [
        (&[][..], 400),
        (&[("retry.backoff.ms", "100")], 80),
        (&[("retry.backoff.max.ms", "300")], 300),
    ] {
        let mut config = ClientConfig::new();
        for (name, value) in settings {
            config.set(*name, *value);
        }
        assert_eq!(repeated_after(&config), Duration::from_millis(ms));
    }
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decode::{Reason, RowError};
use crate::record::{Origin, Record};

/// Returns a dead letter with the headers that are sent with it.
fn message(reason: Reason) -> DeadLetter {
    let mut letter = DeadLetter {
        source: Origin {
            topic: "payments".into(),
            partition: 2,
            offset: 1311,
            index: None,
        },
        timestamp_ms: Some(99),
        key: Some(b"card-7".to_vec()),
        payload: b"{}".to_vec(),
        headers: vec![("traceparent".into(), Some(b"00-ab".to_vec()))],
        error: RowError {
            reason,
            detail: "amount is required".into(),
        },
    };
    letter.headers = letter.headers_with_failure();
    letter
}

fn record(message: &DeadLetter) -> Record<'_> {
    Record {
        topic: "dead-letters",
        partition: 1,
        offset: 20,
        index: None,
        timestamp_ms: message.timestamp_ms,
        key: message.key.as_deref(),
        headers: message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect(),
        payload: Some(&message.payload),
    }
}

fn letter<'m>(record: &Record<'m>) -> FailureHeaders<'m> {
    match Entry::of(record) {
        Ok(Entry::Letter(letter)) => letter,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_letter_of_the_daemon_says_everything_and_comes_back_as_it_was() {
    let message = message(Reason::Missing);
    let record = record(&message);
    let letter = letter(&record);
    assert_eq!(
        letter,
        FailureHeaders {
            topic: Some("payments".into()),
            partition: Some(2),
            offset: Some(1311),
            reason: Some("missing".into()),
            message: Some("amount is required".into()),
            omitted: false,
        }
    );
    let back = ReplayRecord::of(&record, &letter, "payments", 3);
    assert_eq!(
        back,
        ReplayRecord {
            topic: "payments".into(),
            partition: None,
            key: Some(b"card-7".to_vec()),
            payload: Some(b"{}".to_vec()),
            headers: vec![("traceparent".into(), Some(b"00-ab".to_vec()))],
            timestamp_ms: Some(99),
        }
    );
}

#[test]
fn without_a_key_a_record_goes_back_to_its_partition_if_there_is_one() {
    let message = DeadLetter {
        key: None,
        ..message(Reason::Missing)
    };
    let record = record(&message);
    let letter = letter(&record);
    for (to, partitions, expected) in [
        ("payments", 3, Some(2)),
        ("payments", 2, None),
        ("else", 3, None),
    ] {
        let back = ReplayRecord::of(&record, &letter, to, partitions);
        assert_eq!(back.partition, expected, "{to} with {partitions}");
    }
}

#[test]
fn a_letter_of_kafka_connect_is_listed_with_what_it_has() {
    let bare = Record {
        topic: "dead-letters",
        partition: 1,
        offset: 20,
        index: None,
        timestamp_ms: None,
        key: None,
        headers: vec![],
        payload: None,
    };
    assert_eq!(letter(&bare), FailureHeaders::default());
    let mut connect = bare.clone();
    connect.headers = vec![
        ("__connect.errors.topic", Some(b"first")),
        ("__connect.errors.topic", Some(b"last")),
        ("__connect.errors.partition", Some(b"many")),
        ("__connect.errors.offset", None),
        (
            "__connect.errors.exception.class.name",
            Some(b"org.apache.kafka.connect.errors.DataException"),
        ),
        ("__connect.errors.exception.message", Some(b"\xff")),
    ];
    let letter = letter(&connect);
    assert_eq!(letter.topic.as_deref(), Some("last"));
    assert_eq!((letter.partition, letter.offset), (None, None));
    assert_eq!(letter.reason.as_deref(), Some("DataException"));
    assert_eq!(letter.message.as_deref(), Some("\u{fffd}"));
}

#[test]
fn only_what_lacks_more_than_its_time_cannot_come_back() {
    for (note, omitted) in [
        ("timestamp: topic `a` does not accept this timestamp", false),
        ("value: the topic takes 100 bytes", true),
        ("value, headers: too large; timestamp: no such time", true),
        ("the batch is too large to be read", true),
        ("", true),
    ] {
        let mut message = message(Reason::Missing);
        let note = Some(note.as_bytes().to_vec());
        message.headers.push(("residuald.omitted".into(), note));
        assert_eq!(letter(&record(&message)).omitted, omitted);
    }
}

#[test]
fn obstacles() {
    let whole = message(Reason::Missing);
    let mut slim = whole.clone();
    let note = b"value: message too large".to_vec();
    slim.headers.push((OMITTED.into(), Some(note)));
    let to = |topic: Option<&str>| Filter {
        to_topic: topic.map(Into::into),
        ..Filter::default()
    };
    let (whole, slim) = (record(&whole), record(&slim));
    let (whole, slim) = (letter(&whole), letter(&slim));
    let unknown = FailureHeaders::default();
    for (letter, to_topic, expected) in [
        (&whole, None, Ok("payments")),
        (&whole, Some("again"), Ok("again")),
        (
            &whole,
            Some("dead-letters"),
            Err(Obstacle::SourceIsDeadLetterTopic),
        ),
        (&slim, Some("again"), Err(Obstacle::ValueOmitted)),
        (&unknown, None, Err(Obstacle::NoSourceTopic)),
        (&unknown, Some("again"), Ok("again")),
    ] {
        assert_eq!(to(to_topic).target(letter, "dead-letters"), expected);
    }
}

#[test]
fn reasons_are_matched_whole() {
    let filter = |reasons: &[&str]| Filter {
        reasons: reasons.iter().map(|&r| r.into()).collect(),
        ..Filter::default()
    };
    let missing = FailureHeaders {
        reason: Some("missing".into()),
        ..FailureHeaders::default()
    };
    assert!(filter(&[]).matches(&missing) && filter(&[]).matches(&FailureHeaders::default()));
    assert!(filter(&["malformed", "missing"]).matches(&missing));
    assert!(
        !filter(&["miss"]).matches(&missing)
            && !filter(&["missing"]).matches(&FailureHeaders::default())
    );
}

/// Parses a marker as a record of partition 1 at offset 20.
fn read_back(replayed: &ReplayRecord) -> Result<Entry<'_>, BadMarker> {
    Entry::of(&Record {
        topic: &replayed.topic,
        partition: 1,
        offset: 20,
        index: None,
        timestamp_ms: None,
        key: replayed.key.as_deref(),
        headers: replayed
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect(),
        payload: replayed.payload.as_deref(),
    })
}

fn marker(runs: &[(i64, i64)]) -> Marker {
    let mut offsets = Intervals::default();
    for &(first, last) in runs {
        offsets.insert(first, last);
    }
    Marker {
        to: "payments".into(),
        offsets,
    }
}

#[test]
fn a_marker_is_the_documented_json_and_is_read_back() {
    let marker = marker(&[(3, 17), (19, 19)]);
    let replayed = marker.replay_record("dead-letters", 1);
    assert_eq!((replayed.partition, &replayed.key), (Some(1), &None));
    assert_eq!(
        replayed.payload.as_deref(),
        Some(&br#"{"replayed":{"to":"payments","offsets":[[3,17],[19,19]]}}"#[..])
    );
    assert_eq!(read_back(&replayed), Ok(Entry::Marker(marker)));
}

#[test]
fn a_marker_that_makes_no_sense_is_not_taken_for_nothing() {
    let whole = marker(&[(3, 17)]).replay_record("dead-letters", 1);
    for payload in [
        None,
        Some(&b""[..]),
        Some(b"{}"),
        Some(br#"{"replayed":{"to":"payments","offsets":[[3]]}}"#),
        Some(br#"{"replayed":{"to":"payments","offsets":[[4,3]]}}"#),
        Some(br#"{"replayed":{"to":"payments","offsets":[[-1,3]]}}"#),
        Some(br#"{"replayed":{"to":"payments","offsets":[[3,20]]}}"#),
    ] {
        let bad = ReplayRecord {
            payload: payload.map(<[u8]>::to_vec),
            ..whole.clone()
        };
        let error = read_back(&bad).unwrap_err();
        assert!(
            error.to_string().contains("at 1:20 cannot be read"),
            "{error}"
        );
    }
}

#[test]
fn a_source_record_cannot_pass_for_a_marker() {
    let mut forged = marker(&[(0, 19)]).replay_record("dead-letters", 1);
    let errors = (
        "__connect.errors.topic".to_owned(),
        Some(b"payments".to_vec()),
    );
    forged.headers.push(errors);
    assert!(matches!(read_back(&forged), Ok(Entry::Letter(_))));
}

#[test]
fn what_is_left_is_what_is_wanted_and_not_marked_for_that_target() {
    let mut wanted = Ledger::default();
    for offset in 0..10 {
        wanted.add("payments", 1, offset);
    }
    wanted.add("refunds", 0, 4);
    let mut done = Ledger::default();
    done.mark(1, &marker(&[(2, 4), (8, 19)]));
    done.mark(0, &marker(&[(4, 4)]));
    let left = wanted.without(&done);
    assert_eq!(left.counts(), [("payments", 5), ("refunds", 1)].into());
    assert_eq!(left.offsets().ends(), [(0, (4, 5)), (1, (0, 8))].into());
    assert!(left.contains("payments", 1, 7) && !left.contains("payments", 1, 8));
    assert!(!left.contains("payments", 0, 7) && !left.contains("refunds", 1, 4));
    assert_eq!(done.topics_of(1, 9), ["payments"]);
    assert_eq!(wanted.without(&wanted).count(), 0);
}

proptest! {
    /// With chunks of any size, and with any letters replayed before, each wanted letter is sent to its target exactly once.
    #[test]
    fn replaying_what_is_left_in_any_chunks_ends_with_everything_once(
        letters in prop::collection::btree_set((0i32..3, 0i64..60), 0..80),
        chunk in 1usize..20,
        stops in prop::collection::vec(0usize..6, 1..5),
    ) {
        let mut wanted = Ledger::default();
        for &(partition, offset) in &letters {
            wanted.add("payments", partition, offset);
        }
        let (mut done, mut sent) = (Ledger::default(), Vec::new());
        // Every run but the last ends after some chunks.
        for stop in stops.into_iter().chain([usize::MAX]) {
            let left = wanted.without(&done);
            let to_send: Vec<_> = letters.iter().filter(|(p, o)| left.contains("payments", *p, *o)).collect();
            for chunk in to_send.chunks(chunk).take(stop) {
                let mut markers: BTreeMap<i32, Marker> = BTreeMap::new();
                for &&(partition, offset) in chunk {
                    sent.push((partition, offset));
                    markers.entry(partition).or_insert_with(|| marker(&[])).offsets.insert(offset, offset);
                }
                for (partition, marker) in markers {
                    done.mark(partition, &marker);
                }
            }
        }
        sent.sort_unstable();
        prop_assert_eq!(sent, letters.into_iter().collect::<Vec<_>>());
    }
}

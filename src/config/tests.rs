use std::time::Duration;

use super::*;

pub(super) fn load(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[&str],
) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("residuald.toml");
    std::fs::write(&path, text).unwrap();
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Config::load(
        Some(&path),
        variables.iter().map(own).collect(),
        &flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(),
    )
    .map_err(|e| e.to_string())
}

pub(super) const SMALLEST: &str = "kafka.topics = \"payments\"\nmodel.bundle = \"m\"";

#[test]
fn the_smallest_config_is_two_lines() {
    let config = load(SMALLEST, &[], &[]).unwrap();
    assert_eq!(config.kafka.topics, ["payments"]);
    assert_eq!(config.batch.max_wait, Duration::from_millis(5));
    assert!(config.inference.workers >= 1);
    assert_eq!(config.threshold, ThresholdRule::FalseAlarmRate(0.001));
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = r#"
        model.bundle = "m"
        kafka.broker = "x"
        batch.max_records = 0
        batch.max_wait = "soon"
        inference.provider = "gpu"
        threshold.quantile = 0.9
        threshold.score = 3.0
        http.listen = "9464"
        kafka.consumer."enable.auto.commit" = true
    "#;
    let error = load(text, &[("RESIDUALD__NOWHERE", "1")], &[]).unwrap_err();
    for expected in [
        "9 bad settings",
        "kafka.topics is not set",
        "unknown setting `kafka.broker`, did you mean `kafka.brokers`?",
        "batch.max_records = 0: expected a whole number from 1 to 65536",
        "batch.max_wait = \"soon\"",
        "inference.provider = \"gpu\": expected one of cpu, cuda, tensorrt",
        "set only one of false_alarm_rate",
        "http.listen",
        "`enable.auto.commit` is set by residuald",
        "unknown setting `nowhere`",
    ] {
        assert!(error.contains(expected), "{expected}\nnot in\n{error}");
    }
}

#[test]
fn restored_records_have_a_topic_of_their_own() {
    let loaded = |flags: &[&str]| load(SMALLEST, &[], flags);
    assert!(loaded(&[]).unwrap().output.restored.is_none());
    let config = loaded(&["output.restored_topic=restored", "output.restored_steps=5"]).unwrap();
    assert_eq!(config.output.topics()[2], "restored");
    let restored = config.output.restored.unwrap();
    assert_eq!(
        (restored.draws, restored.steps, restored.seed),
        (crate::imputation::DRAWS, Some(5), 0)
    );
    for (flags, problem) in [
        (
            &["output.restored_topic=payments"][..],
            "is in kafka.topics and in [output]",
        ),
        (
            &["output.restored_topic=anomalies"],
            "is another topic of [output] as well",
        ),
        (
            &["output.restored_topic=x", "output.scores_topic=x"],
            "is another topic of [output] as well",
        ),
        (&["output.restored_draws=0"], "from 1 to 10000"),
        (&["output.restored_steps=0"], "from 1 to 10000"),
        (&["output.restored_seed=-1"], "output.restored_seed"),
    ] {
        let error = loaded(flags).unwrap_err();
        assert!(error.contains(problem), "{flags:?}: {error}");
    }
}

#[test]
fn a_topic_cannot_be_read_and_written() {
    let error = load(SMALLEST, &[], &["output.anomalies_topic=payments"]).unwrap_err();
    assert!(
        error.contains("is in kafka.topics and in [output]"),
        "{error}"
    );
}

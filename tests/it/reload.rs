//! SIGHUP reads the bundle again: each record is judged once, by the old model or the new one, and a bundle that is
//! refused changes nothing.

use std::collections::BTreeMap;

use crate::common::bundle::{Copy, calibrated};
use crate::common::process::{Daemon, signal};
use crate::common::topics::{RECORDS, Topics, ids};
use crate::common::wait_for;

const OK: &str = "residuald_model_reloads_total{status=\"ok\"}";
const FAILED: &str = "residuald_model_reloads_total{status=\"failed\"}";

/// Reloads once, and waits until the daemon has done so.
fn reload(daemon: &Daemon, series: &str) {
    let before = daemon.metric(series);
    signal(daemon.pid(), "HUP");
    wait_for(series, || (daemon.metric(series) > before).then_some(()));
}

fn set_version(bundle: &Copy, version: &str) {
    bundle.edit("manifest.json", |manifest| {
        manifest["version"] = version.into();
    });
}

#[test]
fn a_new_model_takes_over_in_mid_stream_exactly_once() {
    let Some(topics) = Topics::create("reload") else {
        return;
    };
    let bundle = Copy::new();
    set_version(&bundle, "first");
    let model = format!("model.bundle={:?}", bundle.path);
    let daemon = topics.daemon(&[&model, "kafka.delivery=exactly-once"]);
    // Each model judges a stream that is under way when the next takes over, however slow the machine is.
    let stream = || topics.produce(&["--rate", "2500"]).spawn().unwrap();
    let mut producer = stream();
    daemon.await_count("scored", 500);

    // The second judges by segment, the others do not.
    let before = bundle.read("calibration.json");
    let dir = tempfile::tempdir().unwrap();
    let segmented = calibrated(dir.path(), &["--by", "merchant.category"]);
    let segmented = std::fs::read(segmented.join("calibration.json")).unwrap();
    bundle.write("calibration.json", &segmented);
    set_version(&bundle, "second");
    reload(&daemon, OK);
    let status = daemon.status();
    assert_eq!(status["model"]["version"], "second");
    let sha256 = status["model"]["sha256"].as_str().unwrap();
    let info = format!(
        "residuald_model_info{{name=\"payments\",provider=\"cpu\",sha256=\"{sha256}\",version=\"second\"}}"
    );
    assert_eq!(daemon.metric(&info), 1.0);
    assert!(!daemon.get("/metrics").1.contains("version=\"first\""));

    assert!(producer.wait().unwrap().success());
    let mut producer = stream();
    daemon.await_count("scored", RECORDS as u64 + 500);
    let model = bundle.read("model.onnx");
    bundle.flip_a_bit("model.onnx");
    reload(&daemon, FAILED);
    assert_eq!(daemon.status()["model"]["version"], "second");
    assert_eq!(daemon.get("/readyz").0, 200);
    bundle.write("model.onnx", &model);
    bundle.write("calibration.json", &before);
    set_version(&bundle, "third");
    reload(&daemon, OK);

    assert!(producer.wait().unwrap().success());
    assert!(stream().wait().unwrap().success());
    let sent = 3 * RECORDS;
    daemon.await_count("scored", sent as u64);
    daemon.is_balanced();
    let rebalances = daemon.metric("residuald_rebalances_total");
    assert_eq!(rebalances, 1.0, "the daemon stays in its group");
    let ended = daemon.drains();
    assert!(ended.stderr.contains("was altered"), "{}", ended.stderr);
    assert_eq!(topics.committed(), topics.ends());

    let scores = topics.kcat("scores");
    assert_eq!((scores.len(), ids(&scores).len()), (sent, sent));
    let mut by_partition: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    for (_, verdict) in &scores {
        let number = |of: &str| verdict["source"][of].as_i64().unwrap();
        let version = verdict["model"]["version"].as_str().unwrap().to_owned();
        let category = &verdict["record"]["merchant"]["category"];
        let expected = (version == "second").then_some(category);
        assert_eq!(verdict.get("segment"), expected, "{verdict}");
        let partition = by_partition.entry(number("partition")).or_default();
        partition.push((number("offset"), version));
    }
    for (partition, mut verdicts) in by_partition {
        verdicts.sort();
        let mut versions: Vec<String> = verdicts.into_iter().map(|(_, version)| version).collect();
        versions.dedup();
        assert_eq!(
            versions,
            ["first", "second", "third"],
            "of partition {partition}"
        );
    }
}

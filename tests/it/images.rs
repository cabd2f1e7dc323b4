//! Images end to end on the embedded broker: every format, hostile ones, the same bytes whatever the way, maps by claim check.
//! With the bundles of `images/make.py`, which score an image by its distance from middle gray.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Cursor};
use std::path::PathBuf;

use crate::common::cluster::cluster;
use crate::common::kafka::{Note, ends, produce, read_all};
use crate::common::process::{Daemon, run, scored};
use crate::common::topics::Topics;
use crate::common::{parse, root, score_of, wait_for};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::Value;

const FORMATS: [ImageFormat; 5] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

fn folder(of: &str) -> PathBuf {
    root().join("tests/images").join(of)
}

fn bundle(name: &str) -> String {
    format!("model.bundle={:?}", folder(name))
}

fn broker() -> EmbeddedBroker {
    let topics = ["in", "anomalies", "scores", "dead", "media"];
    EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).unwrap()
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = DynamicImage::from(image.clone());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Middle gray with a white square of 20 x 20 at 40, 80.
fn spotted() -> RgbImage {
    RgbImage::from_fn(100, 160, |x, y| {
        let inside = (40..60).contains(&x) && (80..100).contains(&y);
        Rgb([if inside { 255 } else { 128 }; 3])
    })
}

/// Images of any size and content, always the same.
fn noise(number: u32) -> RgbImage {
    let spread = 1 + 7 * (number % 17);
    RgbImage::from_fn(20 + 3 * number, 90 - number, |x, y| {
        let value = |c: u32| (128 + (x * 31 + y * 17 + c * 7 + number * x * y) % spread) as u8;
        Rgb([value(0), value(1), value(2)])
    })
}

fn map(shown: &Value) -> DynamicImage {
    assert_eq!(shown["content_type"], "image/png");
    let bytes = STANDARD.decode(shown["data"].as_str().unwrap()).unwrap();
    let map = image::load_from_memory(&bytes).unwrap();
    assert_eq!(map.width() as u64, shown["width"].as_u64().unwrap());
    assert_eq!(map.height() as u64, shown["height"].as_u64().unwrap());
    map
}

#[test]
fn every_image_has_its_verdict_or_its_dead_letter() {
    let broker = broker();
    let spotted = spotted();
    let mut notes: Vec<Note> = FORMATS
        .iter()
        .map(|format| Note::new(&format!("{format:?}"), encoded(&spotted, *format)))
        .collect();
    let base64 = STANDARD.encode(encoded(&spotted, ImageFormat::Png));
    let json = format!(r#"{{"id": 17, "image": "{base64}", "line": {{"belt": 3}}}}"#);
    notes.push(Note::new("json", json));
    let good = notes.len();
    let whole = encoded(&spotted, ImageFormat::Jpeg);
    let read = |name: &str| std::fs::read(folder("files").join(name)).unwrap();
    let mut bomb = encoded(&spotted, ImageFormat::Bmp);
    bomb[18..22].copy_from_slice(&30_000_u32.to_le_bytes());
    bomb[22..26].copy_from_slice(&30_000_u32.to_le_bytes());
    let bad = [
        ("truncated", whole[..whole.len() / 2].to_vec(), "malformed"),
        ("magic", b"GIF89a....".to_vec(), "malformed"),
        ("animated", read("animated.webp"), "malformed"),
        ("pages", read("pages.tiff"), "malformed"),
        ("bomb", bomb, "too_large"),
        ("large", vec![0xff; 300_000], "too_large"),
        ("text", br#"{"image": 5}"#.to_vec(), "wrong_type"),
        ("absent", br#"{"id": 5}"#.to_vec(), "missing"),
        (
            "twice",
            br#"{"image": "", "image": ""}"#.to_vec(),
            "duplicate",
        ),
    ];
    for (name, payload, _) in &bad {
        notes.push(Note {
            headers: vec![("own".to_owned(), Some(b"x".to_vec()))],
            ..Note::new(name, payload.clone())
        });
    }
    notes.push(Note::new("tombstone", ""));
    produce(&broker.brokers, "in", &notes);
    let settings = [
        &bundle("gray"),
        "threshold.score=4",
        "output.scores_topic=scores",
        "input.max_image_bytes=200000",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", good as u64);
    daemon.await_count("dead_letters", bad.len() as u64);
    daemon.await_count("skipped", 1);
    daemon.is_balanced();
    assert_eq!(
        daemon.metric("residuald_decode_seconds_count"),
        (good + bad.len()) as f64
    );
    daemon.drains();

    let anomalies = read_all(&broker.brokers, "anomalies");
    assert_eq!(anomalies.len(), good);
    for (note, sent) in anomalies.iter().zip(&notes) {
        assert_eq!(note.key, sent.key, "in the order in which they came");
        let verdict = note.json();
        assert_eq!(
            verdict["picture"],
            serde_json::json!({"width": 100, "height": 160})
        );
        let region = &verdict["regions"][0];
        let at = |name: &str| region[name].as_i64().unwrap();
        for (name, expected) in [("x", 40), ("y", 80), ("width", 20), ("height", 20)] {
            assert!((at(name) - expected).abs() <= 12, "{name} in {region}");
        }
        assert!(region["share"].as_f64().unwrap() > 0.5, "{region}");
        let heat = map(&verdict["heatmap"]).into_luma8();
        assert_eq!(heat.dimensions(), (32, 32));
        assert!(
            heat.get_pixel(16, 18).0[0] > 200,
            "{:?}",
            heat.get_pixel(16, 18)
        );
        assert!(heat.get_pixel(2, 2).0[0] < 10);
        let expected = map(&verdict["reconstruction"]).into_luma8();
        assert!(expected.pixels().all(|p| p.0[0] == 128));
    }
    let of_json = anomalies[good - 1].json();
    assert_eq!(
        of_json["record"],
        serde_json::json!({"id": 17, "line": {"belt": 3}})
    );
    assert!(anomalies[0].json().get("record").is_none());

    let dead = read_all(&broker.brokers, "dead");
    assert_eq!(dead.len(), bad.len());
    for (note, (name, payload, reason)) in dead.iter().zip(&bad) {
        assert_eq!(note.key.as_deref(), Some(name.as_bytes()));
        assert_eq!(note.payload.as_ref(), Some(payload), "{name}");
        assert_eq!(note.header("own"), Some("x"), "{name}");
        let class = note.header("__connect.errors.exception.class.name");
        assert_eq!(
            class,
            Some(format!("residuald.decode.{reason}").as_str()),
            "{name}"
        );
    }
}

/// Payloads of all verdicts by key, from a daemon with these settings.
fn verdicts(bundle_name: &str, notes: &[Note], settings: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let broker = broker();
    produce(&broker.brokers, "in", notes);
    let bundle = bundle(bundle_name);
    let fixed = [&bundle, "threshold.score=4", "output.scores_topic=scores"];
    let daemon = Daemon::ready(&broker.brokers, &[&fixed, settings].concat());
    daemon.await_count("scored", notes.len() as u64);
    daemon.is_balanced();
    daemon.drains();
    let published = read_all(&broker.brokers, "scores");
    assert_eq!(published.len(), notes.len());
    let by_key = published.into_iter().map(|note| {
        let key = String::from_utf8(note.key.unwrap()).unwrap();
        (key, note.payload.unwrap())
    });
    by_key.collect()
}

#[test]
fn the_same_image_gets_the_same_verdict_whatever_the_way() {
    for name in ["gray", "tiles"] {
        let records: Vec<String> = (0..40)
            .map(|number| {
                let base64 = STANDARD.encode(encoded(&noise(number), ImageFormat::Png));
                format!(r#"{{"number": {number}, "image": "{base64}"}}"#)
            })
            .collect();
        let notes: Vec<Note> = (1..)
            .zip(&records)
            .map(|(number, record): (u64, _)| Note {
                timestamp_ms: Some(1_767_225_600_123),
                ..Note::new(&number.to_string(), record.as_str())
            })
            .collect();
        let one = verdicts(
            name,
            &notes,
            &["inference.workers=1", "batch.max_records=1"],
        );
        let other = verdicts(
            name,
            &notes,
            &["inference.workers=3", "batch.max_records=17"],
        );
        assert!(one == other, "{name}");

        let lines = scored(&records, &folder(name), &["--score", "4"]);
        assert_eq!(lines.len(), records.len());
        for line in lines {
            let verdict = parse(&one[&line["record"].to_string()]);
            assert_eq!(score_of(&line).to_bits(), score_of(&verdict).to_bits());
            assert_eq!(line["regions"], verdict["regions"]);
        }
    }
}

/// A gray image with twelve bits in samples of sixteen.
fn twelve(image: &RgbImage) -> Vec<u8> {
    let gray = DynamicImage::from(image.clone()).to_luma8();
    let wide = image::ImageBuffer::from_fn(gray.width(), gray.height(), |x, y| {
        let level = u32::from(gray.get_pixel(x, y)[0]);
        image::Luma([((level * 4095 + 127) / 255) as u16])
    });
    png(DynamicImage::ImageLuma16(wide))
}

/// The same image with samples of eight bits.
fn eight(image: &RgbImage) -> Vec<u8> {
    png(DynamicImage::from(image.clone()).to_luma8().into())
}

fn png(image: DynamicImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Twelve bits in samples of sixteen: nearly black without input.bit_depth, which the log says, and the same image with it.
#[test]
fn few_bits_in_sixteen_are_said_and_read_with_their_depth() {
    let broker = broker();
    let images: Vec<RgbImage> = (0..20).map(noise).collect();
    let both = images.iter().flat_map(|i| [eight(i), twelve(i)]);
    let notes: Vec<Note> = both.map(|image| Note::new("k", image)).collect();
    produce(&broker.brokers, "in", &notes);
    let run = |settings: &[&str], group: &str| {
        let before = read_all(&broker.brokers, "scores").len();
        let group = format!("kafka.group_id={group}");
        let gray = bundle("gray");
        let own = [
            gray.as_str(),
            "threshold.score=4",
            "output.scores_topic=scores",
            &group,
        ];
        let daemon = Daemon::ready(&broker.brokers, &[&own[..], settings].concat());
        daemon.await_count("scored", notes.len() as u64);
        daemon.is_balanced();
        let log = daemon.drains().stderr;
        let scores = read_all(&broker.brokers, "scores").split_off(before);
        let scores: Vec<u32> = scores
            .iter()
            .map(|n| score_of(&n.json()).to_bits())
            .collect();
        (scores, log)
    };
    let (dark, log) = run(&[], "dark");
    assert!(log.contains("use only 12 bits so far"), "{log}");
    assert!(dark.chunks(2).any(|pair| pair[0] != pair[1]));
    let (bright, log) = run(&["input.bit_depth=12"], "bright");
    assert!(!log.contains("bits so far"), "{log}");
    for pair in bright.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    let twelve_bits = bright.iter().skip(1).step_by(2).copied();
    verbs_take_the_depth(&images, &twelve_bits.collect::<Vec<_>>());
}

/// The verbs take the depth as a flag, and give the bits that the daemon gave.
fn verbs_take_the_depth(images: &[RgbImage], daemon: &[u32]) {
    let lines = |encoded: &dyn Fn(&RgbImage) -> Vec<u8>| -> Vec<String> {
        let all = images.iter().map(|image| STANDARD.encode(encoded(image)));
        all.map(|image| format!("{{\"image\": \"{image}\"}}"))
            .collect()
    };
    let bits = |lines: &[Value]| -> Vec<u32> {
        lines.iter().map(|line| score_of(line).to_bits()).collect()
    };
    let flags = ["--score", "4", "--bit-depth", "12"];
    let depth = scored(&lines(&twelve), &folder("gray"), &flags);
    assert_eq!(bits(&depth), daemon);
    let dir = tempfile::tempdir().unwrap();
    let [wide, narrow] =
        [("wide", &twelve as &dyn Fn(&_) -> _), ("narrow", &eight)].map(|(name, encoded)| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            for (number, image) in images.iter().enumerate() {
                let path = dir.path().join(name).join(format!("{number:02}.png"));
                std::fs::write(path, encoded(image)).unwrap();
            }
            dir.path().join(name)
        });
    let out = dir.path().join("out.ndjson");
    let out_name = out.to_str().unwrap();
    let gray = folder("gray");
    let [gray, wide, narrow] = [&gray, &wide, &narrow].map(|path| path.to_str().unwrap());
    let score = [
        "score", wide, "--bundle", gray, "--score", "4", "--out", out_name,
    ];
    let ended = run(&[&score[..], &["--bit-depth", "12"]].concat());
    ended.with_code(0);
    let read = || {
        let lines = std::fs::read_to_string(&out).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| parse(line.as_bytes())).collect();
        bits(&lines)
    };
    assert_eq!(read(), daemon);
    let dark = run(&score);
    assert!(
        dark.stderr.contains("use only 12 bits so far")
            && dark.stderr.contains("give --bit-depth 12"),
        "{}",
        dark.stderr
    );
    assert_ne!(read(), daemon);
    let too_few = run(&[&score[..], &["--bit-depth", "10"]].concat());
    assert!(
        too_few
            .stdout
            .contains("but --bit-depth 10 allows at most 1023"),
        "{}",
        too_few.stdout
    );
    let thresholds = [(wide, &["--bit-depth", "12"][..]), (narrow, &[])].map(|(data, flags)| {
        let out = dir.path().join("calibrated");
        let calibrate = [
            "calibrate",
            gray,
            "--data",
            data,
            "--out",
            out.to_str().unwrap(),
            "--force",
        ];
        run(&[&calibrate[..], flags].concat()).with_code(0);
        std::fs::read_to_string(out.join("calibration.json")).unwrap()
    });
    assert_eq!(thresholds[0], thresholds[1]);
    let file = dir.path().join("images.ndjson");
    std::fs::write(&file, lines(&twelve).join("\n")).unwrap();
    let bench = [
        "bench",
        "--bundle",
        gray,
        "--data",
        file.to_str().unwrap(),
        "--records",
        "100",
        "--rounds",
        "1",
    ];
    let bench = run(&[&bench[..], &["--bit-depth", "12"]].concat());
    bench.with_code(0);
    assert!(!bench.stderr.contains("bits so far"), "{}", bench.stderr);
    let table = crate::common::payments();
    let refused = run(&[
        "bench",
        "--bundle",
        table.to_str().unwrap(),
        "--bit-depth",
        "12",
    ]);
    assert!(
        refused.stderr.contains("--bit-depth applies to images"),
        "{}",
        refused.stderr
    );
}

#[test]
fn maps_that_are_too_large_go_where_the_verdict_points() {
    let notes = [Note::new("a", encoded(&spotted(), ImageFormat::Png))];
    let none = ["output.inline_limit=0"];
    let verdict = parse(&verdicts("tiles", &notes, &none)["a"]);
    assert!(verdict.get("heatmap").is_none() && verdict.get("reconstruction").is_none());
    assert!(!verdict["regions"].as_array().unwrap().is_empty());

    let dir = tempfile::tempdir().unwrap();
    let to_folder = format!("output.media_dir={:?}", dir.path());
    let verdict = parse(&verdicts("tiles", &notes, &["output.inline_limit=0", &to_folder])["a"]);
    for kind in ["heatmap", "reconstruction"] {
        let uri = verdict[kind]["uri"].as_str().unwrap();
        let bytes = std::fs::read(uri.strip_prefix("file://").unwrap()).unwrap();
        let map = image::load_from_memory(&bytes).unwrap();
        assert_eq!((map.width(), map.height()), (50, 80), "half the image");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

    let broker = broker();
    produce(&broker.brokers, "in", &notes);
    let settings = [
        &bundle("tiles"),
        "threshold.score=4",
        "output.inline_limit=0",
        "output.media_topic=media",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", 1);
    daemon.drains();
    let verdict = read_all(&broker.brokers, "anomalies")[0].json();
    let media = read_all(&broker.brokers, "media");
    assert_eq!(media.len(), 2);
    for (note, kind) in media.iter().zip(["heatmap", "reconstruction"]) {
        let id = verdict["id"].as_str().unwrap();
        let key = String::from_utf8(note.key.clone().unwrap()).unwrap();
        assert_eq!(key, format!("{id}-{kind}"));
        assert_eq!(verdict[kind]["uri"], format!("kafka://media?key={key}"));
        assert_eq!(note.header("content-type"), Some("image/png"));
        image::load_from_memory(note.payload.as_ref().unwrap()).unwrap();
    }
}

#[test]
fn a_bundle_and_an_input_that_do_not_fit_are_refused_in_words() {
    let check = |settings: &[&str]| {
        let mut arguments = vec!["check", "--set", "kafka.topics=in"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        run(&arguments)
    };
    let (gray, payments) = (
        bundle("gray"),
        format!("model.bundle={:?}", crate::common::payments()),
    );
    let rate = "threshold.false_alarm_rate=0.01";
    check(&[&gray, rate]).with_code(0);
    check(&[&gray, rate, "input.format=image"]).with_code(0);
    for (settings, named) in [
        (
            vec![gray.as_str(), "input.format=json"],
            "the bundle reads images",
        ),
        (
            vec![&gray, "input.format=avro", "input.schema_file=a.avsc"],
            "not in Avro or Protobuf",
        ),
        (
            vec![&payments, "input.format=image"],
            "the bundle reads tables",
        ),
        (
            vec![&gray, "output.media_dir=/nowhere/at/all"],
            "output.media_dir",
        ),
        (
            vec![&gray, "output.media_dir=/tmp", "output.media_topic=m"],
            "set only one of them",
        ),
        (vec![&gray, "input.image_field=a..b"], "input.image_field"),
    ] {
        let ended = check(&[&settings[..], &[rate]].concat());
        let error = ended.with_code(78);
        assert!(error.contains(named), "{named}: {error}");
    }
}

/// 4000 x 3000 pixels, smooth but for a defect.
fn photograph() -> Vec<u8> {
    let image = RgbImage::from_fn(4000, 3000, |x, y| {
        let inside = (1000..1200).contains(&x) && (2000..2100).contains(&y);
        let level = (118 + (x + y) / 350) as u8;
        Rgb([if inside { 255 } else { level }; 3])
    });
    encoded(&image, ImageFormat::Jpeg)
}

#[test]
fn a_crash_repeats_no_verdict_and_no_map_on_a_real_kafka() {
    const PICTURES: usize = 400;
    let Some(cluster) = cluster() else { return };
    cluster.create_topics(
        &[
            "maps-in",
            "maps-anomalies",
            "maps-scores",
            "maps-dead",
            "maps-media",
        ],
        1,
    );
    let brokers = cluster.brokers.as_str();
    let mut notes: Vec<Note> = (0..PICTURES)
        .map(|i| {
            let image = encoded(&noise(i as u32 % 40), ImageFormat::Png);
            Note::new(&i.to_string(), image)
        })
        .collect();
    notes.push(Note::new("photograph", photograph()));
    produce(brokers, "maps-in", &notes);
    let settings = [
        &bundle("tiles"),
        "threshold.score=4",
        "kafka.delivery=exactly-once",
        "kafka.consumer.\"group.instance.id\"=one",
        "kafka.topics=maps-in",
        "kafka.group_id=maps",
        "output.anomalies_topic=maps-anomalies",
        "output.scores_topic=maps-scores",
        "output.dead_letter_topic=maps-dead",
        "output.inline_limit=0",
        "output.media_topic=maps-media",
        "batch.max_records=16",
    ];
    let daemon = Daemon::ready(brokers, &settings);
    daemon.await_count("scored", 50);
    assert_eq!(daemon.kill_9().code, None, "killed by a signal");
    let daemon = Daemon::ready(brokers, &settings);
    wait_for("every verdict", || {
        (read_all(brokers, "maps-scores").len() > PICTURES).then_some(())
    });
    daemon.is_balanced();
    daemon.drains();
    assert!(ends(brokers, "maps-dead").iter().all(|(_, end)| *end == 0));

    let scores = read_all(brokers, "maps-scores");
    let keys: Vec<_> = scores.iter().map(|note| note.key.clone()).collect();
    let sent: Vec<_> = notes.iter().map(|note| note.key.clone()).collect();
    assert_eq!(keys, sent, "each once and in order");
    let media = read_all(brokers, "maps-media");
    let maps: HashSet<_> = media.iter().map(|note| note.key.clone().unwrap()).collect();
    assert_eq!(
        (media.len(), maps.len()),
        (2 * notes.len(), 2 * notes.len())
    );
    for verdict in scores.iter().map(Note::json) {
        for kind in ["heatmap", "reconstruction"] {
            let (_, key) = verdict[kind]["uri"]
                .as_str()
                .unwrap()
                .split_once("key=")
                .unwrap();
            assert!(maps.contains(key.as_bytes()), "{key}");
        }
    }
    let photograph = scores[PICTURES].json();
    assert_eq!(photograph["severity"], "critical");
    let region = &photograph["regions"][0];
    for (name, expected) in [("x", 1000), ("y", 2000), ("width", 200), ("height", 100)] {
        let got = region[name].as_i64().unwrap();
        assert!((got - expected).abs() <= 20, "{name} in {region}");
    }
}

#[test]
fn the_sample_stream_on_a_real_kafka() {
    let Some(topics) = Topics::create("sample") else {
        return;
    };
    let brokers = topics.brokers();
    let surface = root().join("models/surface");
    let packed = std::fs::File::open(surface.join("sample.ndjson.gz")).unwrap();
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(packed)).lines();
    let records: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(records.len(), 500);
    let notes: Vec<Note> = (1..)
        .zip(&records)
        .map(|(number, record): (u64, _)| Note::new(&number.to_string(), record.as_str()))
        .collect();
    produce(brokers, &topics.name("in"), &notes);
    let settings = [
        &format!("model.bundle={surface:?}"),
        "kafka.delivery=exactly-once",
    ];
    let daemon = topics.daemon(&settings);
    daemon.await_count("scored", 500);
    daemon.is_balanced();
    daemon.drains();

    let published = read_all(brokers, &topics.name("scores"));
    assert_eq!(published.len(), 500);
    let by_key: BTreeMap<String, Value> = published
        .iter()
        .map(|note| {
            let key = String::from_utf8(note.key.clone().unwrap()).unwrap();
            (key, note.json())
        })
        .collect();
    let lines = scored(&records, &surface, &["--false-alarm-rate", "0.01"]);
    assert_eq!(lines.len(), 500);
    for line in &lines {
        let verdict = &by_key[&line["record"].to_string()];
        assert_eq!(score_of(line).to_bits(), score_of(verdict).to_bits());
        assert_eq!(line["regions"], verdict["regions"]);
    }
    let flagged = |line: &&Value| !line["severity"].is_null();
    let anomalies = lines.iter().filter(flagged).count();
    assert!(
        (50..=110).contains(&anomalies),
        "100 are defective: {anomalies}"
    );
    assert_eq!(
        read_all(brokers, &topics.name("anomalies")).len(),
        anomalies
    );
}

/// A small file system of its own, unmounted at the end.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount(size: &str) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Disk(dir));
        }
        crate::common::not_here(
            "the test of a full disk",
            "run it as root, who may mount a tmpfs",
        );
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.args(["-l"]).arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_waited_for_and_its_drafts_are_removed() {
    let Some(disk) = Disk::mount("64k") else {
        return;
    };
    let folder = disk.0.path();
    let bulk = folder.join("bulk");
    let full = |path: &std::path::Path| {
        let written = std::fs::write(path, vec![b'x'; 1 << 20]);
        assert!(written.is_err(), "the disk is not full");
    };
    full(&bulk);
    std::fs::write(folder.join(".residuald-dead.part"), "").unwrap();
    let broker = broker();
    produce(
        &broker.brokers,
        "in",
        &[Note::new("a", encoded(&spotted(), ImageFormat::Png))],
    );
    let to_folder = format!("output.media_dir={folder:?}");
    let settings = [
        &bundle("tiles"),
        "threshold.score=4",
        "output.inline_limit=0",
        &to_folder,
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    let blocked = || daemon.metric("residuald_media_dir_blocked");
    crate::common::wait_for("a wait for the disk", || (blocked() == 1.0).then_some(()));
    assert_eq!((daemon.count("scored"), daemon.get("/livez").0), (0, 200));
    let names = || {
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(), ["bulk"], "drafts are left behind");

    std::fs::remove_file(&bulk).unwrap();
    daemon.await_count("scored", 1);
    assert_eq!(blocked(), 0.0);
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(log.contains("No space left on device"), "{log}");
    assert!(
        log.contains("maps can be written to output.media_dir again"),
        "{log}"
    );
    assert_eq!(names().len(), 2);
    let verdict = read_all(&broker.brokers, "anomalies")[0].json();
    let uri = verdict["heatmap"]["uri"].as_str().unwrap();
    let bytes = std::fs::read(uri.strip_prefix("file://").unwrap()).unwrap();
    image::load_from_memory(&bytes).unwrap();
}

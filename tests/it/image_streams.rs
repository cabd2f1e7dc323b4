//! Images that a diffusion model works on in the stream: `[translate]` judges what `residuald translate` writes, and
//! `output.restored_topic` publishes what `residuald denoise` writes, to the bit. With the denoiser of models/surface.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use residuald::kafka::embedded::EmbeddedBroker;
use serde_json::{Value, json};

use crate::common::kafka::{Note, produce, read_all};
use crate::common::process::{Daemon, run, signal};
use crate::common::topics::Topics;
use crate::common::{parse, root, score_of, wait_for};

/// The bundle has too few normal images for the default.
const THRESHOLD: &str = "threshold.quantile=0.9";

fn broker() -> EmbeddedBroker {
    let topics = ["in", "anomalies", "scores", "restored", "dead"];
    EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).unwrap()
}

fn surface() -> PathBuf {
    root().join("models/surface")
}

fn setting(name: &str, path: &Path) -> String {
    format!("{name}={path:?}")
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A ramp with noise of about 20 levels: the sum of four uniform numbers. Always the same for a number.
fn noisy(number: u32, width: u32, height: u32) -> GrayImage {
    let mut state = 12_345 + u64::from(number);
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    GrayImage::from_fn(width, height, |x, y| {
        let noise: f32 = (0..4).map(|_| uniform()).sum();
        Luma([(90.0 + (x + y) as f32 * 0.3 + 35.0 * noise) as u8])
    })
}

/// Colour that is lost, with noise.
fn coloured(number: u32, width: u32, height: u32) -> RgbImage {
    let gray = noisy(number, width, height);
    RgbImage::from_fn(width, height, |x, y| {
        let level = gray.get_pixel(x, y)[0];
        Rgb([level, level / 2 + 60, 255 - level])
    })
}

fn in_json(image: &[u8]) -> Vec<u8> {
    let base64 = STANDARD.encode(image);
    format!(r#"{{"id": 17, "image": "data:image/tiff;base64,{base64}", "line": {{"belt":3}}}}"#)
        .into_bytes()
}

/// Images of one tile, of several and smaller than one, in several formats: name, file, and payload.
fn images() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let bare = |name, file: Vec<u8>| (name, file.clone(), file);
    let tiff = encoded(noisy(3, 60, 40), ImageFormat::Tiff);
    let json = in_json(&tiff);
    vec![
        bare("tile.png", encoded(noisy(1, 96, 96), ImageFormat::Png)),
        bare(
            "wide.jpg",
            encoded(coloured(2, 150, 110), ImageFormat::Jpeg),
        ),
        ("small.tiff", tiff, json),
    ]
}

/// Writes the files into a folder, and runs a verb on it that writes PNG images.
fn by_verb(dir: &Path, verb: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let (input, out) = (dir.join("in"), dir.join("out"));
    std::fs::create_dir(&input).unwrap();
    for (name, file, _) in images() {
        std::fs::write(input.join(name), file).unwrap();
    }
    let paths = [&input, &out].map(|path| path.to_str().unwrap());
    let verb: Vec<&str> = verb
        .iter()
        .map(|word| match *word {
            "IN" => paths[0],
            "OUT" => paths[1],
            word => word,
        })
        .collect();
    run(&verb).with_code(0);
    let written = std::fs::read_dir(out).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(path).unwrap())
    });
    written.collect()
}

fn stem(name: &str) -> &str {
    name.split_once('.').unwrap().0
}

/// Has `residuald translate` write the images and `residuald score` judge them: verdicts by the image's name.
fn judged_by_verbs(translate: &[&str], bundle: &Path) -> BTreeMap<String, Value> {
    let dir = tempfile::tempdir().unwrap();
    by_verb(dir.path(), &[&["translate"], translate].concat());
    let (out, lines) = (dir.path().join("out"), dir.path().join("verdicts"));
    let paths = [&out, bundle, &lines].map(|path| path.to_str().unwrap());
    let quantile = ["--quantile", "0.9"];
    let score = ["score", paths[0], "--bundle", paths[1], "--out", paths[2]];
    run(&[&score[..], &quantile].concat()).with_code(0);
    let lines = std::fs::read_to_string(lines).unwrap();
    let lines = lines.lines().map(|line| parse(line.as_bytes()));
    let by_name = lines.map(|line| (stem(line["file"].as_str().unwrap()).to_owned(), line));
    by_name.collect()
}

/// The same to the bit.
fn agree(verdict: &Value, line: &Value) {
    let bits = [verdict, line].map(|judged| score_of(judged).to_bits());
    assert_eq!(bits[0], bits[1], "{verdict}\n{line}");
    for field in ["regions", "picture", "threshold"] {
        assert_eq!(verdict[field], line[field], "{field}");
    }
}

/// The images as they are sent.
fn notes() -> Vec<Note> {
    let images = images().into_iter();
    let notes = images.map(|(name, _, payload)| Note::new(stem(name), payload));
    notes.collect()
}

fn key(note: &Note) -> String {
    String::from_utf8(note.key.clone().unwrap()).unwrap()
}

#[test]
fn a_translated_image_is_judged_as_the_file_that_the_verb_writes() {
    let (surface, model) = (surface(), surface());
    let model = model.to_str().unwrap();
    let options = ["--strength", "0.3", "--steps", "10", "--seed", "7"];
    let verb = [&[model, "IN", "--out", "OUT"], &options[..]].concat();
    let by_name = judged_by_verbs(&verb, &surface);
    let broker = broker();
    let mut notes = notes();
    notes.push(Note::new("bad", "GIF89a"));
    // More pixels than a model may work on, though input.max_pixels allows them.
    let mut large = encoded(noisy(1, 8, 8), ImageFormat::Bmp);
    large[18..22].copy_from_slice(&5_000_u32.to_le_bytes());
    large[22..26].copy_from_slice(&5_000_u32.to_le_bytes());
    notes.push(Note::new("large", large));
    // The same image again: the same verdict, whatever its place.
    notes.push(Note {
        key: Some(b"again".to_vec()),
        ..notes[0].clone()
    });
    produce(&broker.brokers, "in", &notes);
    let (bundle, translate) = (
        setting("model.bundle", &surface),
        setting("translate.bundle", &surface),
    );
    let settings = [
        &bundle,
        &translate,
        THRESHOLD,
        "translate.strength=0.3",
        "translate.steps=10",
        "translate.seed=7",
        "output.scores_topic=scores",
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", 4);
    daemon.await_count("dead_letters", 2);
    daemon.is_balanced();
    assert_eq!(daemon.metric("residuald_translation_seconds_count"), 4.0);
    let log = daemon.drains().stderr;
    assert!(
        log.contains("images are translated before they are scored"),
        "{log}"
    );

    let published = read_all(&broker.brokers, "scores");
    let keys: Vec<String> = published.iter().map(key).collect();
    assert_eq!(keys, ["tile", "wide", "small", "again"]);
    for (note, key) in published.iter().zip(&keys) {
        let verdict = note.json();
        agree(
            &verdict,
            &by_name[if key == "again" { "tile" } else { key }],
        );
        let translation = &verdict["translation"];
        assert_eq!(
            translation["sha256"], verdict["model"]["sha256"],
            "the same bundle"
        );
        let said = json!([
            translation["model"],
            translation["steps"],
            translation["strength"],
            translation["seed"]
        ]);
        assert_eq!(said, json!(["surface", 10, 0.3, 7]));
    }
    let dead = read_all(&broker.brokers, "dead");
    let said = dead[1]
        .header("__connect.errors.exception.message")
        .unwrap();
    assert!(
        said.contains("25000000 pixels, but at most 16777216"),
        "{said}"
    );
}

#[test]
fn pairs_take_over_by_a_reload_and_refuse_what_they_cannot_translate() {
    let folders = ["pairs", "tiles"].map(|name| root().join("tests/images").join(name));
    let [pairs, tiles] = &folders;
    let verb = [pairs.to_str().unwrap(), "IN", "--seed", "5", "--out", "OUT"];
    let by_name = judged_by_verbs(&verb, tiles);
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("residuald.toml");
    std::fs::write(&settings, "").unwrap();
    let broker = broker();
    let white = encoded(GrayImage::from_pixel(9, 9, Luma([255])), ImageFormat::Png);
    let notes = [notes(), vec![Note::new("white", white)]].concat();
    produce(&broker.brokers, "in", &notes);
    let bundle = setting("model.bundle", tiles);
    let environment = [("RESIDUALD_CONFIG", settings.to_str().unwrap())];
    let flags = [&bundle, THRESHOLD, "output.scores_topic=scores"];
    let daemon = Daemon::start_in(&environment, &broker.brokers, &flags).await_ready();
    daemon.await_count("scored", 4);
    let translate = format!("[translate]\nbundle = {pairs:?}\nseed = 5\n");
    std::fs::write(&settings, translate).unwrap();
    signal(daemon.pid(), "HUP");
    daemon.await_metric("residuald_model_reloads_total{status=\"ok\"}", 1.0);
    produce(&broker.brokers, "in", &notes);
    daemon.await_count("scored", 7);
    daemon.await_count("dead_letters", 1);
    daemon.is_balanced();
    let log = daemon.drains().stderr;
    assert!(log.contains("translate.bundle, translate.seed"), "{log}");

    let published = read_all(&broker.brokers, "scores");
    let (before, after) = published.split_at(4);
    assert!(
        before
            .iter()
            .all(|note| note.json().get("translation").is_none())
    );
    for note in after {
        let verdict = note.json();
        agree(&verdict, &by_name[&key(note)]);
        let translation = &verdict["translation"];
        assert_eq!(translation["model"], "DDIMPipeline");
        assert_eq!(translation["sha256"].as_str().map(str::len), Some(64));
        assert_eq!(translation.get("strength"), None);
    }
    let dead = read_all(&broker.brokers, "dead");
    let [white] = &dead[..] else {
        panic!("{dead:?}")
    };
    let header = |name: &str| header(white, &format!("__connect.errors.exception.{name}"));
    assert_eq!(header("class.name"), "residuald.decode.unscorable");
    assert!(
        header("message").contains("the model returned NaN"),
        "{}",
        header("message")
    );
}

fn header<'n>(note: &'n Note, name: &str) -> &'n str {
    note.header(name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", note.headers))
}

#[test]
fn a_restored_image_is_the_file_that_denoise_writes_in_the_form_that_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let model = surface();
    let files = by_verb(
        dir.path(),
        &[
            "denoise",
            "IN",
            "--bundle",
            model.to_str().unwrap(),
            "--out",
            "OUT",
        ],
    );
    let broker = broker();
    let own = [
        ("own", "1"),
        ("Content-Type", "image/jpeg"),
        ("residuald.sigma", "not mine"),
    ];
    let headers: Vec<_> = own
        .iter()
        .map(|(n, v)| ((*n).to_owned(), Some(v.as_bytes().to_vec())))
        .collect();
    let note = |name: &str, payload: Vec<u8>| Note {
        headers: headers.clone(),
        timestamp_ms: Some(1_767_225_600_123),
        ..Note::new(name, payload)
    };
    let flat = encoded(GrayImage::from_pixel(50, 50, Luma([77])), ImageFormat::WebP);
    let tile = encoded(noisy(1, 96, 96), ImageFormat::Png);
    let url_safe = format!(r#"{{"image":"{}"}}"#, URL_SAFE.encode(&tile));
    assert!(url_safe.contains(['-', '_']));
    let mut notes: Vec<Note> = images()
        .into_iter()
        .map(|(name, _, p)| note(stem(name), p))
        .collect();
    notes.push(note("flat", flat.clone()));
    notes.push(note("bad", b"{\"image\": 5}".to_vec()));
    notes.push(note("url", url_safe.into_bytes()));
    produce(&broker.brokers, "in", &notes);
    let bundle = setting("model.bundle", &model);
    let daemon = Daemon::ready(
        &broker.brokers,
        &[&bundle, THRESHOLD, "output.restored_topic=restored"],
    );
    daemon.await_count("scored", 5);
    daemon.await_count("dead_letters", 1);
    daemon.is_balanced();
    for (series, value) in [
        (
            "residuald_restored_records_total{outcome=\"denoised\"}",
            4.0,
        ),
        (
            "residuald_restored_records_total{outcome=\"unchanged\"}",
            1.0,
        ),
        ("residuald_restored_records_total{outcome=\"failed\"}", 0.0),
        ("residuald_omitted_parts_total{part=\"colour\"}", 1.0),
        ("residuald_restoration_seconds_count", 5.0),
    ] {
        daemon.await_metric(series, value);
    }
    daemon.drains();

    let restored = read_all(&broker.brokers, "restored");
    let keys: Vec<_> = restored
        .iter()
        .map(|note| note.key.clone().unwrap())
        .collect();
    assert_eq!(keys, [&b"tile"[..], b"wide", b"small", b"flat", b"url"]);
    for note in &restored {
        assert_eq!(header(note, "own"), "1");
        assert_eq!(note.timestamp_ms, Some(1_767_225_600_123));
        assert!(header(note, "residuald.id").starts_with("in-0-"));
        assert_eq!(
            note.headers
                .iter()
                .filter(|(n, _)| n == "residuald.sigma")
                .count(),
            1
        );
    }
    let [tile, wide, small, flat_again, url] = &restored[..] else {
        panic!("{restored:?}");
    };
    for (note, name) in [(tile, "tile"), (wide, "wide")] {
        assert!(note.payload.as_ref() == Some(&files[name]), "{name}");
        assert_eq!(header(note, "residuald.outcome"), "denoised");
        assert_eq!(header(note, "Content-Type"), "image/png");
        let sigma: f32 = header(note, "residuald.sigma").parse().unwrap();
        assert!((2.0..40.0).contains(&sigma), "{name}: {sigma}");
    }
    assert!(header(wide, "residuald.omitted").starts_with("colour: "));
    assert_eq!(tile.header("residuald.omitted"), None);
    // The JSON around the image stays.
    let base64 = STANDARD.encode(&files["small"]);
    let expected =
        format!(r#"{{"id":17,"image":"data:image/png;base64,{base64}","line":{{"belt":3}}}}"#);
    assert_eq!(small.payload.as_deref(), Some(expected.as_bytes()));
    assert_eq!(
        header(small, "Content-Type"),
        "image/jpeg",
        "it is not of the image alone"
    );
    let expected = format!(r#"{{"image":"{}"}}"#, URL_SAFE.encode(&files["tile"]));
    assert_eq!(url.payload.as_deref(), Some(expected.as_bytes()));
    assert_eq!(flat_again.payload, Some(flat));
    assert_eq!(
        (
            header(flat_again, "residuald.outcome"),
            header(flat_again, "residuald.sigma")
        ),
        ("unchanged", "0")
    );
    assert_eq!(header(flat_again, "Content-Type"), "image/jpeg");
}

/// A few noisy images among many without noise, which take no time.
fn stream(count: u32) -> Vec<Note> {
    let image = |number: u32| match number % 16 {
        0 => noisy(number / 16 % 3, 48, 48),
        _ => GrayImage::from_pixel(30 + number % 7, 30, Luma([number as u8])),
    };
    let notes = (0..count).map(|number| Note {
        partition: number as i32 % 3,
        ..Note::new(
            &number.to_string(),
            encoded(image(number), ImageFormat::Png),
        )
    });
    notes.collect()
}

#[test]
fn every_image_is_restored_once_although_daemons_are_killed() {
    let Some(topics) = Topics::create("image-stream") else {
        return;
    };
    let restored = topics.name("restored");
    topics.cluster.create_topics(&[&restored], 3);
    let notes = stream(144);
    produce(topics.brokers(), &topics.name("in"), &notes);
    let (bundle, topic) = (
        setting("model.bundle", &surface()),
        format!("output.restored_topic={restored}"),
    );
    let settings = [
        bundle.as_str(),
        &topic,
        "kafka.delivery=exactly-once",
        "kafka.consumer.\"group.instance.id\"=one",
        // So that a kill finds transactions under way.
        "batch.max_records=4",
        "batch.in_flight=8",
    ];
    for least in [20, 40] {
        let daemon = topics.daemon(&settings);
        daemon.await_count("scored", least);
        assert_eq!(daemon.kill_9().code, None, "killed by a signal");
    }
    let daemon = topics.daemon(&settings);
    wait_for("the end of the topic", || {
        (topics.committed() == topics.ends()).then_some(())
    });
    daemon.is_balanced();
    daemon.drains();

    let came: BTreeMap<_, _> = notes.iter().map(|n| (n.key.clone().unwrap(), n)).collect();
    let messages = read_all(topics.brokers(), &restored);
    let keys: BTreeSet<_> = messages.iter().map(|n| n.key.clone().unwrap()).collect();
    assert_eq!((messages.len(), keys.len()), (notes.len(), notes.len()));
    let mut denoised: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for note in &messages {
        let before = came[note.key.as_ref().unwrap()];
        match header(note, "residuald.outcome") {
            "unchanged" => assert_eq!(note.payload, before.payload),
            outcome => {
                assert_eq!(outcome, "denoised");
                let payload = note.payload.clone().unwrap();
                let first = denoised
                    .entry(before.payload.clone().unwrap())
                    .or_insert_with(|| payload.clone());
                assert!(
                    *first == payload,
                    "the same image has the same bytes at any place"
                );
            }
        }
    }
    assert_eq!(denoised.len(), 3);
}

#[test]
fn a_stop_amid_images_that_take_long_drains() {
    let broker = broker();
    let notes: Vec<Note> = (0..200)
        .map(|i| Note::new(&i.to_string(), encoded(noisy(i, 96, 96), ImageFormat::Png)))
        .collect();
    produce(&broker.brokers, "in", &notes);
    let (bundle, translate) = (
        setting("model.bundle", &surface()),
        setting("translate.bundle", &surface()),
    );
    let settings = [
        bundle.as_str(),
        &translate,
        "translate.strength=1",
        "translate.steps=20",
        "kafka.drain_timeout=10s",
        THRESHOLD,
    ];
    let daemon = Daemon::ready(&broker.brokers, &settings);
    daemon.await_count("scored", 1);
    let done = daemon.status()["records"]["consumed"].as_u64().unwrap();
    assert!(done < 200, "only as many are in flight as fit into a drain");
    daemon.drains();
}

#[test]
fn settings_that_cannot_work_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let gray = setting("model.bundle", &root().join("tests/images/gray"));
    let tables = setting("model.bundle", &root().join("models/payments"));
    let images = setting("model.bundle", &surface());
    let translate = |path: &Path| setting("translate.bundle", path);
    let surface_translates = translate(&surface());
    let absent = translate(&dir.path().join("absent"));
    let other = translate(&root().join("tests/images/gray"));
    let rgb = setting("model.bundle", &root().join("tests/images/tiles"));
    let payments = translate(&root().join("models/payments"));
    let restored = "output.restored_topic=restored";
    let check = ["check", "--set", "kafka.topics=in", "--set", THRESHOLD];
    for (settings, code, said) in [
        (vec![&*images, &*absent], 65, "model_index.json is missing"),
        (vec![&images, &other], 78, "has no denoiser"),
        (vec![&images, &payments], 78, "reads tables"),
        (
            vec![&rgb, &surface_translates],
            78,
            "surface makes gray images, but the bundle tiles judges RGB images",
        ),
        (
            vec![&tables, &surface_translates],
            78,
            "only images are translated",
        ),
        (
            vec![&images, &surface_translates, "translate.strength=2"],
            78,
            "translate.strength = 2",
        ),
        (
            vec![
                &images,
                &surface_translates,
                "translate.strength=0.001",
                "translate.steps=10",
            ],
            78,
            "leaves no step",
        ),
        (
            vec![&images, "translate.strength=0.2"],
            78,
            "translate.bundle is not set",
        ),
        (
            vec![&images, &surface_translates, restored],
            78,
            "are both set",
        ),
        (
            vec![&gray, restored],
            78,
            "output.restored_topic: the bundle gray has no denoiser",
        ),
        (
            vec![&images, &surface_translates, "inference.provider=tensorrt"],
            78,
            "tensorrt",
        ),
    ] {
        let flags: Vec<&str> = settings
            .iter()
            .flat_map(|setting| ["--set", setting])
            .collect();
        let ended = run(&[&check[..], &flags[..]].concat());
        let stderr = ended.with_code(code);
        assert!(stderr.contains(said), "{settings:?}: {stderr}");
        assert!(stderr.trim_end().lines().count() <= 2, "{stderr}");
    }
    let flags = [&check[..], &["--set", &images, "--set"]].concat();
    let ended = run(&[&flags[..], &[&surface_translates]].concat());
    ended.with_code(0);
    assert!(
        ended
            .stdout
            .contains("ok: images are translated by surface"),
        "{}",
        ended.stdout
    );
    let ended = run(&[&flags[..], &[restored]].concat());
    ended.with_code(0);
    assert!(
        ended.stdout.contains("ok: images are denoised"),
        "{}",
        ended.stdout
    );
}

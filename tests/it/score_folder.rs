//! `residuald score` of a folder of images: classes, masks, the contact sheet, and what cannot be read.

use std::path::Path;

use crate::common::process::run;
use crate::common::{parse, root};
use image::{GrayImage, Luma};
use serde_json::Value;

/// Middle gray, `level` in a square of `side` pixels at 40, 20.
fn square(side: u32, level: u8) -> GrayImage {
    GrayImage::from_fn(128, 96, |x, y| {
        let inside = (40..40 + side).contains(&x) && (20..20 + side).contains(&y);
        Luma([if inside { level } else { 128 }])
    })
}

fn mask(side: u32) -> GrayImage {
    let mut mask = square(side, 255);
    mask.pixels_mut()
        .for_each(|p| p.0[0] = if p.0[0] == 255 { 255 } else { 0 });
    mask
}

/// Anomalib's layout: four good images, one of them broken; three spots, the third of which is faint; two stains,
/// which the test bundle cannot see.
fn data(folder: &Path) {
    let save = |image: GrayImage, name: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    };
    for i in 0..3 {
        save(square(8, 128 + i), &format!("test/good/{i}.png"));
    }
    std::fs::write(folder.join("test/good/torn.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    for (i, level) in [255, 230, 140].into_iter().enumerate() {
        save(square(30, level), &format!("test/spot/{i}.bmp"));
        save(mask(30), &format!("ground_truth/spot/{i}_mask.png"));
    }
    for i in 0..2 {
        save(square(0, 0), &format!("test/stain/{i}.png"));
        save(mask(20), &format!("ground_truth/stain/{i}_mask.png"));
    }
}

#[test]
fn a_labelled_folder_gives_a_report_lines_and_a_contact_sheet() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let bundle = root().join("tests/images/gray");
    let [folder, masks, html, out] = ["", "ground_truth", "sheet.html", "out.ndjson"]
        .map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let ended = run(&[
        "score",
        &folder,
        "--bundle",
        bundle.to_str().unwrap(),
        "--score",
        "4",
        "--masks",
        &masks,
        "--html",
        &html,
        "--out",
        &out,
        "--json",
    ]);
    ended.with_code(0);

    let report = parse(ended.stdout.as_bytes());
    for (name, expected) in [
        ("records", 9),
        ("scored", 8),
        ("dead_letters", 1),
        ("anomalies", 2),
    ] {
        assert_eq!(report[name], expected, "{name} in {report}");
    }
    let classes: Vec<_> = report["classes"].as_array().unwrap().iter().collect();
    let class = |i: usize| (classes[i]["class"].as_str(), classes[i]["images"].as_u64());
    assert_eq!(class(0), (Some("spot"), Some(3)));
    assert_eq!(classes[0]["auroc"], 1.0);
    // Nothing to see: below the good ones with a faint square, level with the one without.
    assert_eq!(class(1), (Some("stain"), Some(2)));
    assert!(classes[1]["auroc"].as_f64().unwrap() < 0.5);
    let pixels = &report["pixels"];
    assert_eq!(
        (pixels["images"].as_u64(), pixels["regions"].as_u64()),
        (Some(8), Some(5))
    );
    // 2,700 pixels of spots are found, 800 of stains are level with most of what is normal.
    let auroc = pixels["auroc"]["value"].as_f64().unwrap();
    assert!((0.85..0.92).contains(&auroc), "{pixels}");
    assert!(pixels["aupro"]["value"].as_f64().unwrap() > 0.5, "{pixels}");

    let lines = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| parse(line.as_bytes())).collect();
    assert_eq!(lines.len(), 9);
    let torn = lines.iter().find(|line| line["file"] == "good/torn.png");
    assert_eq!(torn.unwrap()["reason"], "malformed");
    let found = lines
        .iter()
        .find(|line| line["file"] == "spot/0.bmp")
        .unwrap();
    assert_eq!(
        (&found["label"], &found["class"]),
        (&true.into(), &"spot".into())
    );
    let region = &found["regions"][0];
    assert!(region["share"].as_f64().unwrap() > 0.9, "{region}");
    for (side, expected) in [("x", 40), ("y", 20), ("width", 30), ("height", 30)] {
        let at = region[side].as_i64().unwrap();
        assert!((at - expected).abs() <= 8, "{side} in {region}");
    }

    let page = std::fs::read_to_string(&html).unwrap();
    let at = |text: &str| {
        page.find(text)
            .unwrap_or_else(|| panic!("no {text} on the page"))
    };
    let names = [
        "spot/0.bmp",
        "spot/1.bmp",
        "spot/2.bmp",
        "good/2.png",
        "good/torn.png",
    ];
    let places = names.map(|name| at(&format!(">{name}")));
    assert!(
        places.is_sorted(),
        "{names:?} by grade, the torn one at the end"
    );
    at("anomaly, as labelled");
    at("missed: labelled an anomaly");
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), 8);
    assert!(
        !page.contains("<script") && !page.contains("src=\"http"),
        "nothing is fetched"
    );
}

#[test]
fn what_a_folder_lacks_is_said() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let folder = dir.path().to_str().unwrap().to_owned();
    let bundle = root().join("tests/images/gray");
    let payments = crate::common::payments();
    let score = |flags: &[&str], bundle: &Path| {
        let fixed = [
            "score",
            &folder,
            "--bundle",
            bundle.to_str().unwrap(),
            "--score",
            "4",
        ];
        run(&[&fixed, flags].concat())
    };
    for (flags, named) in [
        (["--label", "class"], "with --normal"),
        (["--normal", "fine"], "no folder `fine`"),
        (["--masks", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--html", "/nowhere/at/all.html"], "/nowhere/at/all.html"),
    ] {
        let ended = score(&flags, &bundle);
        assert_ne!(ended.code, Some(0));
        let error = ended.one_line(ended.code.expect("no signal"));
        assert!(error.contains(named), "{named}: {error}");
    }
    let ended = score(&[], &payments);
    let error = ended.one_line(ended.code.expect("no signal"));
    assert!(error.contains("holds no file of records"), "{error}");

    // A mask of another size than its image.
    let small = GrayImage::new(10, 10);
    small
        .save(dir.path().join("ground_truth/spot/1_mask.png"))
        .unwrap();
    let masks = dir.path().join("ground_truth");
    let ended = score(&["--masks", masks.to_str().unwrap()], &bundle);
    let error = ended.one_line(ended.code.expect("no signal"));
    assert!(
        error.contains("10 x 10 pixels, but its image has 128 x 96"),
        "{error}"
    );
}

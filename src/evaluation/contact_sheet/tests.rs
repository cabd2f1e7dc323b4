use super::*;

const PICTURE: Encoded<'_> = Encoded {
    content_type: "image/png",
    bytes: b"<png>",
};

fn entry(name: &str, grade: f32) -> Entry<'_> {
    Entry {
        name,
        width: 40,
        height: 30,
        score: grade * 2.0,
        p_value: 0.25,
        grade,
        label: None,
        class: None,
        original: PICTURE,
        reconstruction: PICTURE,
        heatmap: PICTURE,
        regions: &[],
    }
}

/// Returns the page that `fill` writes.
fn page(fill: impl FnOnce(&mut ContactSheet)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sheet.html");
    let mut sheet = ContactSheet::create(&path).unwrap();
    fill(&mut sheet);
    sheet
        .finish("A & B", &[("AUROC".into(), "0.91".into())])
        .unwrap();
    assert_eq!(dir.path().read_dir().unwrap().count(), 1, "one file");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_highest_grade_comes_first() {
    let page = page(|sheet| {
        for (name, grade) in [
            ("b", 0.5),
            ("a", 3.0),
            ("c", 0.5),
            ("d", f32::NAN),
            ("e", 1.0),
        ] {
            sheet.add(&entry(name, grade)).unwrap();
        }
    });
    let names: Vec<_> = page
        .split("<h2>")
        .skip(1)
        .map(|rest| rest.split('<').next().unwrap())
        .collect();
    assert_eq!(names, ["d", "a", "e", "b", "c"]);
    assert_eq!(page.matches("class=\"flagged\"").count(), 1);
    assert!(page.contains("<title>A &#38; B</title>"));
    assert!(page.contains("<dt>AUROC</dt><dd>0.91</dd>"));
    assert!(page.ends_with("</html>\n") || page.ends_with("</html>"));
}

#[test]
fn names_and_reasons_are_text() {
    let hostile = "\"><script>alert(1)</script>'&.png";
    let page = page(|sheet| {
        let mut entry = entry(hostile, 2.0);
        entry.class = Some(hostile);
        sheet.add(&entry).unwrap();
        sheet.add_refused(hostile, hostile);
    });
    assert!(!page.contains("<script"));
    assert!(page.contains("&#34;&#62;&#60;script&#62;"));
}

#[test]
fn images_are_inline_and_nothing_is_fetched() {
    let regions = [Region {
        x: 3,
        y: 4,
        width: 10,
        height: 5,
        share: 0.612,
        area: 0.04,
    }];
    let page = page(|sheet| {
        let mut entry = entry("a.png", 2.0);
        entry.regions = &regions;
        sheet.add(&entry).unwrap();
    });
    assert_eq!(page.matches("data:image/png;base64,PHBuZz4=").count(), 3);
    assert!(!page.contains("http"));
    assert!(page.contains("x=\"3\" y=\"4\" width=\"10\" height=\"5\""));
    assert!(page.contains("61 % at 3, 4 (10 × 5)"));
    assert_eq!(page.matches("role=\"img\" aria-label=").count(), 3);
}

#[test]
fn labels_say_what_went_wrong() {
    let verdict = |grade, label| {
        let mut entry = entry("a", grade);
        entry.label = label;
        entry.verdict()
    };
    assert!(verdict(2.0, Some(false)).starts_with("false alarm"));
    assert!(verdict(0.5, Some(true)).starts_with("missed"));
    assert_eq!(verdict(1.0, None), "no anomaly");
    assert_eq!(verdict(1.1, Some(true)), "anomaly, as labelled");
}

#[test]
fn a_page_that_cannot_be_written_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ContactSheet::create(&dir.path().join("absent/sheet.html")).is_err());
}

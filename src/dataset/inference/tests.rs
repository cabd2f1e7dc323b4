use super::*;

fn infer_from(records: impl IntoIterator<Item = serde_json::Value>) -> Inferred {
    infer(&table(records), &Wishes::default()).unwrap()
}

fn table(records: impl IntoIterator<Item = serde_json::Value>) -> Table {
    Table::from_payloads(
        records
            .into_iter()
            .map(|record| record.to_string().into_bytes()),
    )
}

/// The features as JSON, without the column `n` that makes every table learnable.
fn features(inferred: &Inferred) -> Vec<serde_json::Value> {
    let features = inferred.features.iter().filter(|f| f.name != "n");
    features.map(|f| serde_json::to_value(f).unwrap()).collect()
}

/// A table of one column, with `n` beside it.
fn column(
    values: impl IntoIterator<Item = serde_json::Value>,
) -> (Vec<serde_json::Value>, Vec<String>) {
    let values = values.into_iter().enumerate();
    let inferred = infer_from(values.map(|(i, v)| serde_json::json!({"v": v, "n": i * 7 % 5})));
    (features(&inferred), inferred.notes)
}

fn texts(texts: &[&str]) -> Vec<serde_json::Value> {
    (0..60).map(|i| texts[i % texts.len()].into()).collect()
}

/// Numbers beyond float64's 53 bits, which only a comparison of whole numbers tells apart.
#[test]
fn long_ids_that_differ_in_their_last_digit_are_not_constant() {
    let base = 7_234_567_890_123_456_700_u64;
    for as_text in [false, true] {
        let value = |id: u64| match as_text {
            true => id.to_string().into(),
            false => serde_json::Value::from(id),
        };
        let (features, notes) = column((0..60).map(|i| value(base + i * 7 % 60)));
        assert_eq!(features, Vec::<serde_json::Value>::new());
        assert!(
            notes[0].contains("differs only in digits that a model's 32-bit numbers do not have"),
            "{notes:?}"
        );
        let (_, notes) = column((0..60).map(|i| value(base + i)));
        assert!(notes[0].contains("only grows from row to row"), "{notes:?}");
        let (_, notes) = column((0..60).map(|_| value(base)));
        assert!(notes[0].contains("is constant"), "{notes:?}");
    }
    // Two columns whose ids are not the same do not count as copies of each other.
    let records = (0..60_u64).map(|i| {
        serde_json::json!({"a": base + i * 7 % 60, "b": base + i * 11 % 60, "c": base + i * 7 % 60, "n": i * 7 % 5})
    });
    let notes = infer_from(records).notes.join("\n");
    assert!(
        notes.contains("`c` holds the same values as `a`"),
        "{notes}"
    );
    assert!(!notes.contains("`b` holds the same values"), "{notes}");
}

#[test]
fn dates_that_are_written_as_times_have_no_hour() {
    for pattern in [
        "2026-01-{}T00:00:00Z",
        "2026-01-{} 00:00:00",
        "{}.01.2026 00:00",
    ] {
        let text = |i: u64| pattern.replace("{}", &format!("{:02}", 1 + i * 7 % 28));
        let (features, notes) = column((0..60).map(|i| text(i).into()));
        let parts: Vec<_> = features.iter().map(|f| &f["part"]).collect();
        assert_eq!(parts, ["day_of_week"], "{pattern}");
        assert!(
            notes
                .iter()
                .any(|note| note.contains("is always at midnight")),
            "{notes:?}"
        );
        // One other time is enough.
        let (features, _) = column((0..60).map(|i| match i {
            30 => text(i).replacen("00:00", "00:01", 1).into(),
            i => text(i).into(),
        }));
        assert_eq!(features.len(), 2, "{pattern}");
    }
}

#[test]
fn numbers_with_a_unit_are_said() {
    let (features, notes) = column((0..60).map(|i| format!("{}.5 kg", i * 7 % 60).into()));
    assert!(features.is_empty());
    assert!(
        notes[0]
            .starts_with("`v` holds numbers with the unit kg, which number_format does not read"),
        "{notes:?}"
    );
    // Few different ones are a category, and mixed units are an id.
    let (features, _) = column((0..60).map(|i| format!("{}cm", i % 3).into()));
    assert_eq!(features[0]["type"], "categorical");
    let (_, notes) =
        column((0..60).map(|i| format!("{i}{}", if i % 2 == 0 { "cm" } else { "m" }).into()));
    assert!(notes[0].contains("looks like an id"), "{notes:?}");
}

#[test]
fn json_types_become_features_of_their_own() {
    let inferred = infer_from((0..30).map(|i| {
        serde_json::json!({
            "a": {"b": i % 7, "gone": null}, "flag": i % 2 == 0, "word": if i % 2 == 0 { "x" } else { "y" }, "same": 1,
            "time": format!("2026-01-{:02}T10:00:00+0000", i + 1), "list": [i],
        })
    }));
    let names: Vec<&str> = inferred.features.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "a_b",
            "flag",
            "time_hour_of_day",
            "time_day_of_week",
            "word"
        ]
    );
    let notes = inferred.notes.join("\n");
    for said in [
        "`a.gone` holds no value",
        "`same` is constant",
        "`list` holds arrays",
    ] {
        assert!(notes.contains(said), "{notes}");
    }
}

#[test]
fn numbers_in_text_are_numbers_in_their_notation() {
    for (values, format, said) in [
        (
            &["4,302.00", "1,457.00", "12"][..],
            "decimal_point",
            "numbers as text",
        ),
        (
            &["43,02", "1.457,1", "12"],
            "decimal_comma",
            "numbers as text",
        ),
        (&["0x1F", "0xff"], "hexadecimal", "numbers as text"),
        (&["$12.50", "$1,000.00"], "decimal_point", "money in $"),
        (&["USD 12", "USD 13"], "decimal_point", "money in USD"),
        (&["12 %", "13 %"], "decimal_point", "percentages"),
    ] {
        let (features, notes) = column(texts(values));
        assert_eq!(features[0]["type"], "number", "{values:?}");
        assert_eq!(features[0]["number_format"], format, "{values:?}");
        assert!(notes[0].contains(said), "{notes:?}");
    }
}

#[test]
fn spellings_of_a_missing_value_do_not_hide_numbers() {
    let values = (0..60).map(|i| {
        if i % 10 == 0 {
            "-".into()
        } else {
            (i % 9).into()
        }
    });
    let (features, notes) = column(values);
    assert_eq!(features[0]["type"], "number");
    assert_eq!(features[0]["missing"], "impute");
    assert_eq!(features[0]["missing_values"], serde_json::json!(["-"]));
    assert_eq!(notes, ["`v` 6 of 60 values are `-`: taken as missing"]);
}

#[test]
fn few_other_texts_in_numbers_are_said() {
    let values = (0..100).map(|i| {
        if i == 50 {
            "broken".into()
        } else {
            (i % 9).into()
        }
    });
    let (features, notes) = column(values);
    assert_eq!(features[0]["type"], "categorical");
    assert!(
        notes[0].contains("99 numbers and 1 other texts such as `broken`"),
        "{notes:?}"
    );
}

#[test]
fn codes_with_leading_zeros_stay_text() {
    let (features, notes) = column(texts(&["02139", "10001", "94107"]));
    assert_eq!(
        features[0]["vocabulary"],
        serde_json::json!(["02139", "10001", "94107"])
    );
    assert!(notes.is_empty(), "{notes:?}");
    let mixed = (0..60).map(|i| {
        if i % 2 == 0 {
            "02139".into()
        } else {
            10001.into()
        }
    });
    assert_eq!(
        column(mixed).0[0]["vocabulary"],
        serde_json::json!(["02139", "10001"])
    );
}

#[test]
fn what_only_grows_is_a_time_or_left_out() {
    let (found, notes) = column((0..100).map(|i| (1_767_225_620 + 7200 * i).into()));
    assert_eq!(found[0]["epoch_unit"], "s");
    assert!(notes[0].contains("seconds since 1970"), "{notes:?}");
    let (found, _) =
        column((0..100).map(|i| format!("{}", 1_767_225_620_000_i64 + 7_200_000 * i).into()));
    assert_eq!(found[0]["epoch_unit"], "ms");
    let (found, notes) = column((0..100).map(serde_json::Value::from));
    assert!(
        found.is_empty() && notes[0].contains("only grows"),
        "{found:?} {notes:?}"
    );
    let keep = Wishes {
        keep: vec!["v".to_owned()],
        ..Wishes::default()
    };
    let grows = table((0..100).map(|i| serde_json::json!({"v": i})));
    assert_eq!(infer(&grows, &keep).unwrap().features.len(), 1);
}

#[test]
fn a_part_of_a_time_that_the_table_shows_little_of_is_left_out() {
    let minutes = |step: i64| {
        column((0..100).map(move |i| {
            let time = jiff::Timestamp::from_second(1_767_225_600 + 60 * step * i).unwrap();
            time.to_string().into()
        }))
    };
    let names = |found: &[serde_json::Value]| {
        let names = found
            .iter()
            .map(|f| f["name"].as_str().unwrap_or_default().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    let (found, notes) = minutes(1);
    assert_eq!(names(&found), "");
    assert!(
        notes[0].contains("covers only 1.6 hours")
            && notes[0].contains("hour of the day is left out"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("day of the week is left out"),
        "{notes:?}"
    );
    assert_eq!(names(&minutes(60).0), "v_hour_of_day");
    assert_eq!(names(&minutes(120).0), "v_hour_of_day v_day_of_week");
    let (found, notes) = column((0..100).map(|i| format!("{:02}.01.2026", 1 + i % 4).into()));
    assert_eq!(names(&found), "");
    assert!(notes[0].contains("covers only 72.0 hours"), "{notes:?}");
}

#[test]
fn times_without_an_offset_are_utc_and_it_is_said() {
    let naive: Vec<String> = (1..29)
        .map(|d| format!("2026-01-{d:02} 00:00:20"))
        .collect();
    let (found, notes) = column(naive.iter().map(|t| t.as_str().into()));
    assert_eq!((found.len(), &found[0]["time_zone"]), (2, &"UTC".into()));
    assert!(notes[0].contains("read as UTC"), "{notes:?}");
    let (found, _) = column((1..29).map(|d| format!("{d:02}.01.2026 10:00").into()));
    assert_eq!(found[0]["time_format"], "%d.%m.%Y %H:%M");
    let (found, _) = column((1..29).map(|d| format!("2026-01-{d:02}").into()));
    assert_eq!((found.len(), &found[0]["part"]), (1, &"day_of_week".into()));
    let (found, notes) = column((1..13).map(|d| format!("{d:02}/01/2026").into()));
    assert!(
        found.is_empty() && notes[0].contains("both read"),
        "{found:?} {notes:?}"
    );
    assert_eq!(
        column((1..29).map(|d| format!("{d:02}/01/2026").into())).0[0]["time_format"],
        "%d/%m/%Y"
    );
}

#[test]
fn ids_are_left_out_and_can_be_kept() {
    let ids = || (0..60).map(|i| serde_json::json!({"v": format!("user-{i}"), "n": i % 5}));
    let inferred = infer_from(ids());
    assert!(
        inferred.notes[0].contains("looks like an id, 60 different values"),
        "{:?}",
        inferred.notes
    );
    let keep = Wishes {
        keep: vec!["v".to_owned()],
        ..Wishes::default()
    };
    let kept = infer(&table(ids()), &keep).unwrap();
    assert_eq!(kept.features.len(), 2);
    let leave_out = Wishes {
        leave_out: vec!["n".to_owned()],
        ..Wishes::default()
    };
    let error = infer(&table(ids()), &leave_out).unwrap_err();
    assert!(
        error.starts_with("no column can be learned from: `v` looks like an id"),
        "{error}"
    );
}

/// 18 of 60 values occur once, then 40.
#[test]
fn categories_that_will_be_unseen_are_left_out_or_said() {
    let (found, notes) =
        column((0..60).map(|i| format!("N{}", if i % 3 == 0 { i } else { i % 5 }).into()));
    assert_eq!(found.len(), 1);
    assert!(
        notes[0].contains("about 30 % of later ones will not be among the 23"),
        "{notes:?}"
    );
    let (found, notes) =
        column((0..60).map(|i| format!("N{}", if i % 3 < 2 { i } else { 7 }).into()));
    assert!(
        found.is_empty() && notes[0].contains("looks like an id, 40 different values"),
        "{found:?} {notes:?}"
    );
}

#[test]
fn a_month_in_a_table_sorted_by_time_is_left_out_but_a_flag_is_not() {
    let (found, notes) = column((0..100).map(|i| (1 + i / 60).into()));
    assert!(
        found.is_empty() && notes[0].contains("never falls from row to row"),
        "{found:?} {notes:?}"
    );
    let (found, _) = column((0..100).map(|i| (i / 60).into()));
    assert_eq!(found[0]["type"], "number");
    let months = |last| {
        table((0..100).map(move |i| serde_json::json!({"month": 1 + i * 7 % last, "n": i * 7 % 5})))
    };
    let inferred = infer(&months(9), &Wishes::default()).unwrap();
    assert!(
        inferred.notes[0].contains("looks like a month, 9 of 12"),
        "{:?}",
        inferred.notes
    );
    assert_eq!(
        infer(&months(12), &Wishes::default())
            .unwrap()
            .features
            .len(),
        2
    );
}

#[test]
fn dates_as_people_write_them_are_times() {
    for (texts, pattern) in [
        (["Jan 1 2000", "Feb 21 2004"], "%b %d %Y"),
        (["1 January 2000", "21 March 2004"], "%d %B %Y"),
        (["December 1, 2000", "May 21, 2004"], "%B %d, %Y"),
        (["01-Feb-2004", "29-Feb-2004"], "%d-%b-%Y"),
        (["12/31/99", "01/15/04"], "%m/%d/%y"),
        (
            ["12/31/2003 11:59:59 PM", "1/15/2004 1:02:03 AM"],
            "%m/%d/%Y %I:%M:%S %p",
        ),
        (
            ["Thu Jan  1 00:00:01 2004", "Fri Jan  9 23:00:01 2004"],
            "%a %b %d %H:%M:%S %Y",
        ),
    ] {
        let (found, notes) = column(self::texts(&texts));
        assert_eq!(found[0]["time_format"], pattern, "{texts:?} {notes:?}");
        let parts = if pattern.contains(":%S") { 2 } else { 1 };
        assert_eq!(found.len(), parts, "{texts:?}");
    }
}

#[test]
fn columns_with_the_same_values_are_named() {
    let inferred = infer_from(
        (0..30).map(|i| serde_json::json!({"a": i * 7 % 11, "b": i * 7 % 11, "c": i * 5 % 11})),
    );
    assert!(
        inferred.notes[0].starts_with("`b` holds the same values as `a`"),
        "{:?}",
        inferred.notes
    );
    assert_eq!(inferred.notes.len(), 1);
}

#[test]
fn values_that_count_as_missing_are_not_looked_at() {
    let records = (0..60).map(|i| {
        let v = match i % 10 {
            0 => serde_json::json!(-1),
            1 => serde_json::json!("keine Angabe"),
            2 => serde_json::json!("-1"),
            i => serde_json::json!(i),
        };
        serde_json::json!({"v": v, "n": i * 7 % 5})
    });
    let wishes = Wishes {
        missing: vec![
            MissingValue::Number(-1.0),
            MissingValue::Text("keine Angabe".to_owned()),
        ],
        ..Wishes::default()
    };
    let records = table(records);
    let inferred = infer(&records, &wishes).unwrap();
    let found = features(&inferred);
    assert_eq!(
        (&found[0]["type"], &found[0]["missing"]),
        (&"number".into(), &"impute".into())
    );
    let column = inferred.columns.iter().find(|c| c.path == "v").unwrap();
    assert_eq!(
        (column.missing, column.read_as.as_deref()),
        (18, Some("number"))
    );
    assert_eq!(column.examples, ["3", "4", "5"]);
    let encoded = records.encode(&inferred.features);
    assert!(
        encoded.accepted.iter().all(|accepted| *accepted),
        "{:?}",
        encoded.refused
    );
    let v = inferred
        .features
        .iter()
        .position(|f| f.name == "v")
        .unwrap();
    let column = encoded.x.iter().skip(v).step_by(inferred.features.len());
    assert_eq!(column.filter(|x| x.is_nan()).count(), 18);
}

#[test]
fn a_field_that_occurs_twice_in_a_record_counts_once_and_is_said() {
    let records = (0..40).map(|i| format!(r#"{{"a": {i}, "b": {}}}"#, i * i % 7));
    let records = records.chain([r#"{"a": 1, "a": 1, "b": 2}"#.to_owned()]);
    let table = Table::from_payloads(records.map(String::into_bytes));
    let inferred = infer(&table, &Wishes::default()).unwrap();
    let column = inferred.columns.iter().find(|c| c.path == "a").unwrap();
    assert_eq!(column.missing, 0);
    assert!(
        inferred
            .notes
            .iter()
            .any(|note| note.contains("more than once")),
        "{:?}",
        inferred.notes
    );
}

use std::io::Write;
use std::sync::Arc;

use ::parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType,
    FloatType, Int32Type, Int64Type,
};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

mod random;
mod sources;

/// Writes `bytes` to a file with this name and reads all of it.
fn read_with(
    name: &str,
    bytes: &[u8],
    options: &Options,
) -> Result<Vec<Result<Example, Error>>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Ok(open(&path, options)?.collect())
}

fn read(name: &str, bytes: &[u8]) -> Vec<Result<Example, Error>> {
    read_with(name, bytes, &Options::default()).unwrap()
}

fn payloads(name: &str, bytes: &[u8]) -> Vec<String> {
    let text =
        |example: Result<Example, Error>| String::from_utf8(example.unwrap().payload).unwrap();
    read(name, bytes).into_iter().map(text).collect()
}

fn open_error(name: &str, bytes: &[u8]) -> String {
    read_with(name, bytes, &Options::default())
        .unwrap_err()
        .to_string()
}

fn labelled(label: &str, normal: &str) -> Options {
    Options {
        label: Some(label.into()),
        normal: normal.into(),
        ..Options::default()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_extension_tells_the_format() {
    for name in ["a.CSV", "b.2026.csv"] {
        assert_eq!(payloads(name, b"a\n1\n"), [r#"{"a":1}"#]);
    }
    assert_eq!(payloads("a.tsv", b"a,b\tc\n1\t2\n"), [r#"{"a,b":1,"c":2}"#]);
    for name in ["a.ndjson", "a.jsonl", "a.json"] {
        assert_eq!(payloads(name, b"{}"), ["{}"]);
    }
    for name in ["a.txt", "a", "csv", "a.parquet.gz", ".csv"] {
        let error = open_error(name, b"");
        assert!(error.contains("unsupported file format"), "{error}");
        assert!(error.ends_with("or --format must tell it"), "{error}");
    }
    let absent = open(Path::new("absent.csv"), &Options::default())
        .err()
        .unwrap();
    assert!(matches!(absent.kind, ErrorKind::Io(_)) && absent.is_fatal());
    assert!(open(tempfile::tempdir().unwrap().path(), &Options::default()).is_err());
}

#[test]
fn empty_files_have_no_rows() {
    for name in ["a.csv", "a.ndjson"] {
        assert!(
            read_with(name, b"", &labelled("y", "0"))
                .unwrap()
                .is_empty()
        );
        assert!(read(&format!("{name}.gz"), &gzip(b"")).is_empty());
    }
    assert!(read("a.csv", b"a,b\n").is_empty());
    assert!(read("a.ndjson", b"\n \r\n\n").is_empty());
    assert!(read_with("a.parquet", b"", &Options::default()).is_err());
}

#[test]
fn ndjson_lines_are_passed_on_as_they_are() {
    let bytes = b"\xef\xbb\xbf{\"a\": 1.50}\r\n\n  {\"a\":2} \nnot json\n\xff\xfe\n{\"a\":3}";
    let got: Vec<_> = read("a.ndjson", bytes)
        .into_iter()
        .map(|e| e.unwrap().payload)
        .collect();
    assert_eq!(
        got,
        [
            &b"{\"a\": 1.50}"[..],
            b"  {\"a\":2} ",
            b"not json",
            b"\xff\xfe",
            b"{\"a\":3}"
        ]
    );
}

#[test]
fn ndjson_labels_and_keys_by_dotted_path() {
    let bytes = concat!(
        r#"{"y": {"x": 0.0}, "id": "a\n"}"#,
        "\n",
        r#"{"y": {"x": "fraud"}, "id": 12.50}"#,
        "\n",
        r#"{"y": {"x": null}, "id": null}"#,
        "\n",
        r#"{"y.x": 1, "y": 5, "id": 7}"#,
    );
    let options = Options {
        key: Some("id".into()),
        ..labelled("y.x", "0")
    };
    let got = read_with("a.jsonl", bytes.as_bytes(), &options).unwrap();
    let got: Vec<_> = got
        .into_iter()
        .map(|e| e.map(|e| (e.label, e.key)).unwrap())
        .collect();
    let key = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(
        got,
        [
            (Some(false), key("a\n")),
            (Some(true), key("12.50")),
            (None, None),
            (Some(true), key("7")),
        ]
    );
}

#[test]
fn a_label_that_cannot_be_read_names_the_line_and_the_rest_goes_on() {
    let deep = "[".repeat(1_000_000);
    let bytes = format!(
        "{{\"y\":1}}\n\nnot json\n{{}}\n[1]\n{{\"y\":{{}}}}\n{{\"y\":{deep}}}\n\"y\"\n{{\"y\":0}}\n"
    );
    let got = read_with("a.ndjson", bytes.as_bytes(), &labelled("y", "0")).unwrap();
    assert_eq!(got.len(), 8);
    assert_eq!(got[0].as_ref().unwrap().label, Some(true));
    assert_eq!(got[7].as_ref().unwrap().label, Some(false));
    for (at, what) in [
        (1, "line 3: not JSON"),
        (2, "line 4: no field `y`"),
        (3, "line 5: no field"),
        (4, "line 6: `y` is an object or array"),
    ] {
        let error = got[at].as_ref().unwrap_err();
        assert!(
            error.to_string().contains(what) && !error.is_fatal(),
            "{error}"
        );
    }
    assert!(got[5].is_err() && got[6].is_err());
}

#[test]
fn labels_compare_by_value() {
    for (text, normal, anomaly) in [
        ("0", "0", false),
        ("0.0", "0", false),
        ("-0e3", "0", false),
        ("false", "0", false),
        ("\"0\"", "0", false),
        ("\"False\"", "0", false),
        ("1", "0", true),
        ("true", "1", false),
        ("\"normal.\"", "normal.", false),
        ("\"smurf.\"", "normal.", true),
        ("0", "normal.", true),
        ("1e400", "0", true),
    ] {
        let line = format!("{{\"y\":{text}}}");
        let got = read_with("a.ndjson", line.as_bytes(), &labelled("y", normal)).unwrap();
        assert_eq!(
            got[0].as_ref().unwrap().label,
            Some(anomaly),
            "{text} against {normal}"
        );
    }
}

#[test]
fn csv_cells_keep_their_digits() {
    for (cell, json) in [
        ("12345678901234567890.10", "12345678901234567890.10"),
        ("-0.0", "-0.0"),
        ("1e400", "\"1e400\""),
        (" 7 ", "7"),
        ("", "null"),
        ("  ", "null"),
        ("NaN", "null"),
        ("-nan", "null"),
        ("na", "null"),
        ("NULL", "null"),
        ("-Inf", "null"),
        ("TRUE", "true"),
        ("False", "false"),
        ("007", "\"007\""),
        ("+1", "1"),
        (".5", "0.5"),
        ("-.5e3", "-0.5e3"),
        ("5.", "5.0"),
        ("+", "\"+\""),
        (".", "\".\""),
        ("+007", "\"+007\""),
        ("N/A", "null"),
        ("None", "null"),
        ("<NA>", "null"),
        ("1 2", "\"1 2\""),
        ("0x1F", "\"0x1F\""),
        ("-", "\"-\""),
        (" x", "\"x\""),
        ("[1]", "\"[1]\""),
        ("2026-01-01T00:00:00Z", "\"2026-01-01T00:00:00Z\""),
        ("\"say \"\"hi\"\"\r\n\té\"", "\"say \\\"hi\\\"\\r\\n\\té\""),
    ] {
        let file = format!("a,b\n{cell},0\n");
        assert_eq!(
            payloads("a.csv", file.as_bytes()),
            [format!("{{\"a\":{json},\"b\":0}}")]
        );
    }
}

#[test]
fn csv_headers_nest() {
    let file =
        "\u{feff}merchant.category,amount,merchant.age.days,\"od\"\"d\",\r\nfood,1,2,3,4\r\n";
    let want =
        r#"{"merchant":{"category":"food","age":{"days":2}},"amount":1,"od\"d":3,"unnamed_5":4}"#;
    assert_eq!(payloads("a.csv", file.as_bytes()), [want]);

    let header = "a.".repeat(100_000);
    let error = open_error("a.csv", format!("{header}\n1,2\n").as_bytes());
    assert!(error.contains("conflicts with another column"), "{error}");
}

/// The payloads, and what was said of the file, without its name.
fn noted(name: &str, bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let mut dataset = open(&path, &Options::default()).unwrap();
    let payloads = dataset
        .by_ref()
        .map(|e| String::from_utf8(e.unwrap().payload).unwrap());
    let payloads = payloads.collect();
    let notes = dataset.notes().into_iter();
    let notes = notes.map(|note| note.split_once(": ").unwrap().1.to_owned());
    (payloads, notes.collect())
}

#[test]
fn csv_dialects_are_told_apart_and_said() {
    let (payloads, notes) = noted("a.csv", b"\"a;b\";c\n43,02;x\n");
    assert_eq!(payloads, [r#"{"a;b":"43,02","c":"x"}"#]);
    assert_eq!(notes, ["its fields are separated by ';'"]);

    let utf16: Vec<u8> = "\u{feff}a,b\n1,\u{e9}\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let (payloads, notes) = noted("a.csv", &utf16);
    assert_eq!(
        payloads,
        [r#"{"a":1,"b":"\u{e9}"}"#.replace("\\u{e9}", "\u{e9}")]
    );
    assert_eq!(notes, ["it is in UTF-16"]);
}

#[test]
fn csv_cells_that_spell_a_missing_value_are_counted() {
    let (payloads, notes) = noted("a.csv", b"status,age\nNone,3\n,NA\nsingle,\n");
    assert_eq!(
        payloads,
        [
            r#"{"status":null,"age":3}"#,
            r#"{"status":null,"age":null}"#,
            r#"{"status":"single","age":null}"#
        ]
    );
    assert_eq!(notes, ["2 cells such as `None` are read as missing values"]);
}

#[test]
fn csv_columns_without_a_name_or_with_the_same_are_kept_apart() {
    let (payloads, notes) = noted("a.csv", b",a,a,a_2,\n0,1,2,3,4\n");
    assert_eq!(
        payloads,
        [r#"{"unnamed_1":0,"a":1,"a_3":2,"a_2":3,"unnamed_5":4}"#]
    );
    assert_eq!(
        notes,
        [
            "column 1 has no name: it is called `unnamed_1`",
            "column 3 is a second `a`: it is called `a_3`",
            "column 5 has no name: it is called `unnamed_5`",
        ]
    );
}

/// A point separates thousands where the file has decimal commas, so `5.012` is not 5.012 without further ado.
#[test]
fn csv_with_decimal_commas_keeps_what_may_be_thousands_as_text() {
    let (payloads, notes) = noted("a.csv", b"city;n\na;5.012,50\na;5.012\na;5012\na;0.125\n");
    assert_eq!(
        payloads,
        [
            r#"{"city":"a","n":"5.012,50"}"#,
            r#"{"city":"a","n":"5.012"}"#,
            r#"{"city":"a","n":5012}"#,
            r#"{"city":"a","n":0.125}"#,
        ]
    );
    assert!(
        notes[1].starts_with("1 cells such as `5.012` are kept as text"),
        "{notes:?}"
    );
    let (payloads, _) = noted("a.csv", b"city;n\na;5.012\n");
    assert_eq!(payloads, [r#"{"city":"a","n":5.012}"#]);
}

#[test]
fn csv_of_excel_with_its_separator_on_the_first_line() {
    for line in ["sep=;", "\"sep=;\"\r", "SEP=;"] {
        let (payloads, notes) = noted("a.csv", format!("{line}\na,b;c\n1;2\n").as_bytes());
        assert_eq!(payloads, [r#"{"a,b":1,"c":2}"#]);
        assert_eq!(notes, ["its fields are separated by ';'"]);
    }
    let (payloads, _) = noted("a.csv", b"sep=\t\na\tb\n1\t2\n");
    assert_eq!(payloads, [r#"{"a":1,"b":2}"#]);
}

#[test]
fn csv_without_a_header_is_said() {
    let (_, notes) = noted("a.csv", b"97,b,0\n98,c,1\n");
    assert!(notes[0].contains("looks like a record (`97`)"), "{notes:?}");
}

#[test]
fn csv_numbers_beyond_float64_do_not_cost_the_record() {
    let (payloads, _) = noted("a.csv", b"a,b\n1e400,1\n-1e999,2\n");
    assert_eq!(
        payloads,
        [r#"{"a":"1e400","b":1}"#, r#"{"a":"-1e999","b":2}"#]
    );
}

#[test]
fn csv_faults_say_what_to_do() {
    for (text, said) in [
        (
            &b"A title\na,b\n1,2\n"[..],
            "line 2: 2 fields, but the header has 1. If there is a title",
        ),
        (b"a,b\n1,2,3\n", "line 2: 3 fields, but the header has 2"),
        (b"a,b\n1,caf\xe9\n", "iconv -f WINDOWS-1252"),
    ] {
        let records = read("a.csv", text);
        let error = records[0].as_ref().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// Names as R writes them.
#[test]
fn csv_columns_inside_of_another_are_renamed() {
    let (payloads, notes) = noted("a.csv", b"HP,HP.revs,HP.revs.max,HP_revs,b.c\n1,2,3,4,5\n");
    assert_eq!(
        payloads,
        [r#"{"HP":1,"HP_revs_2":2,"HP_revs_max":3,"HP_revs":4,"b":{"c":5}}"#]
    );
    assert_eq!(
        notes,
        [
            "column 2 `HP.revs` would be a field inside of column `HP`: it is called `HP_revs_2`",
            "column 3 `HP.revs.max` would be a field inside of column `HP`: it is called `HP_revs_max`",
        ]
    );
}

#[test]
fn a_json_array_gives_its_elements() {
    let text = r#" [ {"a": "]},{"}, [1],
        {"b": {"c": "\\"}} , 5 ] "#;
    assert_eq!(
        payloads("a.json", text.as_bytes()),
        [r#"{"a": "]},{"}"#, "[1]", r#"{"b": {"c": "\\"}}"#, "5"]
    );
    assert_eq!(payloads("a.json", b"[]"), Vec::<String>::new());
    for broken in [
        &b"[{}"[..],
        b"[{} {}]",
        b"[{},]",
        b"[,{}]",
        b"[{}] x",
        b"[\"a]",
    ] {
        let got = read("a.json", broken);
        assert!(
            got.last().unwrap().as_ref().unwrap_err().is_fatal(),
            "{}",
            String::from_utf8_lossy(broken)
        );
    }
}

#[test]
fn json_of_several_lines_is_read_as_it_is_meant() {
    let objects = "\u{feff}{\n  \"a\": \"}{\\\"\",\n  \"b\": [1,\n 2]\n}\n{\n}\n{\"a\": 1} {\"a\":\n2}\nnot json\n\n{\"a\": 3";
    let expected = [
        "{\n  \"a\": \"}{\\\"\",\n  \"b\": [1,\n 2]\n}",
        "{\n}",
        r#"{"a": 1}"#,
        "{\"a\":\n2}",
        "not json",
        r#"{"a": 3"#,
    ];
    for name in ["a.json", "a.ndjson", "a.jsonl"] {
        assert_eq!(payloads(name, objects.as_bytes()), expected);
        let (_, notes) = noted(name, objects.as_bytes());
        assert!(
            notes[0].ends_with("take several lines each: read one after the other"),
            "{notes:?}"
        );
        let array = "[\n  {\"a\":\n 1},\n  {}\n]\n";
        assert_eq!(payloads(name, array.as_bytes()), ["{\"a\":\n 1}", "{}"]);
        // An object that is longer than what is looked at.
        let long = format!("{{\n\"a\": \"{}\"\n}}\n{{}}", "x".repeat(100_000));
        assert_eq!(
            payloads(name, long.as_bytes()),
            [&long[..long.len() - 3], "{}"]
        );
        // Lines, of which the first is cut off.
        for lines in [
            "{\"a\": {\"b\": 1\n{\"a\": 2}\n",
            "{\"a\":\n{\"a\": 2}\n{\"a\": 3}\n",
        ] {
            let lines: Vec<&str> = lines.lines().collect();
            assert_eq!(payloads(name, lines.join("\n").as_bytes()), lines);
        }
    }
    // A line with a list is a record, which --unwrap divides.
    for (name, text) in [
        ("a.ndjson", "[{}]\n"),
        ("a.json", "[{}]\n[{}]"),
        ("a.ndjson", "[1]\n\n[2]"),
    ] {
        assert!(
            payloads(name, text.as_bytes())
                .iter()
                .all(|line| line.starts_with('['))
        );
    }
    let lines = "[1]\n".repeat(100_000);
    assert_eq!(payloads("a.ndjson", lines.as_bytes()).len(), 100_000);
    let mut numbers = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    std::fs::write(&path, objects).unwrap();
    let mut data = open(&path, &Options::default()).unwrap();
    while data.next().is_some() {
        numbers.push(data.place().number);
    }
    assert_eq!(numbers, [1, 6, 8, 8, 10, 12]);
}

#[test]
fn what_a_name_does_not_tell_is_said() {
    let text = b"a,b\n1,2\n";
    let (rows, notes) = noted("a.csv", &gzip(text));
    assert_eq!(rows, [r#"{"a":1,"b":2}"#]);
    assert_eq!(
        notes,
        ["it is compressed with gzip, although its name does not say so"]
    );
    let (_, notes) = noted("a.json", &gzip(b"{\n\"a\": 1}\n"));
    assert_eq!(notes.len(), 2, "{notes:?}");
    for (name, bytes, said) in [
        (
            "a.csv",
            &b"PK\x03\x04..........."[..],
            "it seems to be a ZIP archive",
        ),
        (
            "a.json",
            b"PAR1....",
            "it seems to be Parquet: give it the extension .parquet",
        ),
        (
            "a.xlsx",
            b"PK\x03\x04...........",
            "save the workbook as CSV",
        ),
        ("a.bz2", b"BZh91AY&SY", "bunzip2"),
        ("a.pkl", b"\x80\x04\x95", "a Python pickle"),
        ("a.db", b"SQLite format 3\0", "export the table as CSV"),
    ] {
        let error = open_error(name, bytes);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_header_that_comes_again_is_left_out() {
    let (rows, notes) = noted("a.csv", b"a, b\n1,2\na, b\n3,4\na,x\n");
    assert_eq!(
        rows,
        [
            r#"{"a":1,"b":2}"#,
            r#"{"a":3,"b":4}"#,
            r#"{"a":"a","b":"x"}"#
        ]
    );
    assert_eq!(notes, ["1 lines repeat the header: left out"]);
    // One column may hold its own name.
    assert_eq!(payloads("a.csv", b"a\na\nb\n").len(), 2);
}

#[test]
fn a_line_null_is_a_tombstone() {
    for (name, text) in [
        ("a.ndjson", "{\"a\": 1}\nnull\n null \n{\"a\": 2}"),
        ("a.json", "[{\"a\": 1}, null, null, {\"a\": 2}]"),
        ("a.json", "{\n\"a\": 1}\nnull\nnull\n{\"a\": 2}"),
    ] {
        let (rows, notes) = noted(name, text.as_bytes());
        assert_eq!(rows.len(), 2, "{rows:?}");
        let said = "left out, because there is nothing to score: 2 (tombstone)";
        assert!(notes.iter().any(|note| note.ends_with(said)), "{notes:?}");
    }
    let debezium = Options {
        wrapping: Some(crate::decode::Wrapping {
            envelopes: vec![crate::decode::Envelope::Debezium],
            ..crate::decode::Wrapping::default()
        }),
        ..Options::default()
    };
    let lines = b"null\n{\"before\": null, \"after\": {\"a\": 1}, \"op\": \"c\"}\n";
    let rows = read_with("a.ndjson", lines, &debezium).unwrap();
    assert_eq!(rows[0].as_ref().unwrap().payload, br#"{"a": 1}"#);
    assert_eq!(rows.len(), 1);
}

fn npy<T: npyz::AutoSerialize>(shape: &[u64], values: impl IntoIterator<Item = T>) -> Vec<u8> {
    use npyz::WriterBuilder;
    let mut bytes = vec![];
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
    writer.extend(values).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn npz_matrices_are_rows() {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let mut add = |name: &str, array: Vec<u8>| {
        let options = zip::write::SimpleFileOptions::default();
        let method = zip::CompressionMethod::Deflated;
        archive
            .start_file(name, options.compression_method(method))
            .unwrap();
        archive.write_all(&array).unwrap();
    };
    add("X.npy", npy(&[2, 2], [1.5_f64, 2.0, f64::NAN, 1e-9]));
    add("y.npy", npy(&[2], [0_i64, 1]));
    let bytes = archive.finish().unwrap().into_inner();
    assert_eq!(
        payloads("a.npz", &bytes),
        [
            r#"{"x0":1.5,"x1":2,"y":0}"#,
            r#"{"x0":null,"x1":1e-9,"y":1}"#
        ]
    );
    for length in (0..bytes.len()).step_by(7) {
        assert!(read_with("a.npz", &bytes[..length], &Options::default()).is_err());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x81;
        if let Ok(rows) = read_with("a.npz", &damaged, &Options::default()) {
            assert!(rows.len() < 10, "byte {at}");
        }
    }
}

#[test]
fn csv_labels_and_keys_by_header() {
    let file = b"id,m.y\n7,0\nx,attack\n,\n";
    let options = Options {
        key: Some("id".into()),
        ..labelled("m.y", "0")
    };
    let got = read_with("a.csv", file, &options).unwrap();
    let got: Vec<_> = got
        .into_iter()
        .map(|e| e.map(|e| (e.label, e.key)).unwrap())
        .collect();
    assert_eq!(
        got,
        [
            (Some(false), Some(b"7".to_vec())),
            (Some(true), Some(b"x".to_vec())),
            (None, None)
        ]
    );

    let error = read_with("a.csv", file, &labelled("class", "0"))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("no column `class`: the columns are id, m.y"),
        "{error}"
    );
}

#[test]
fn csv_faults_name_the_line_and_the_rest_goes_on() {
    let got = read("a.csv", b"a,b\n1,2\n3\n\"x\ny\",\xff\n4,5,6\n7,8\n");
    assert_eq!(got.len(), 5);
    for (at, line) in [(1, "line 3"), (2, "line 4"), (3, "line 6")] {
        let error = got[at].as_ref().unwrap_err();
        assert!(
            error.to_string().contains(line) && !error.is_fatal(),
            "{error}"
        );
    }
    assert_eq!(got[4].as_ref().unwrap().payload, br#"{"a":7,"b":8}"#);
    assert!(read_with("a.csv", b"\xff,b\n1,2\n", &Options::default()).is_err());
}

#[test]
fn a_record_that_never_ends_is_refused() {
    let mut line = vec![b'x'; MAX_RECORD as usize + 2];
    line.extend_from_slice(b"\n{}\n");
    let got = read("a.ndjson", &line);
    let error = got[0].as_ref().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("line 1: the line is longer than 67108864 bytes")
            && !error.is_fatal()
    );
    assert_eq!(
        (got.len(), &got[1].as_ref().unwrap().payload[..]),
        (2, &b"{}"[..])
    );

    let mut cell = b"a\n1\n\"".to_vec();
    cell.resize(MAX_RECORD as usize + (1 << 20), b'x');
    let got = read("a.csv.gz", &gzip(&cell));
    assert!(got[0].is_ok() && got[1].as_ref().unwrap_err().is_fatal());
    assert_eq!(got.len(), 2);
}

#[test]
fn gzip_of_many_members_is_read_and_a_damaged_one_is_an_error() {
    let whole = [gzip(b"{\"a\":1}\n"), gzip(b"{\"a\":2}\n")].concat();
    assert_eq!(
        payloads("a.ndjson.gz", &whole),
        [r#"{"a":1}"#, r#"{"a":2}"#]
    );
    assert_eq!(payloads("a.csv.gz", &gzip(b"a\n1\n")), [r#"{"a":1}"#]);

    let cut = &gzip(&b"{\"a\":1}\n".repeat(1000))[..40];
    let got = read("a.ndjson.gz", cut);
    assert!(got.last().unwrap().as_ref().unwrap_err().is_fatal());
    for damaged in [&b""[..], b"not gzip"] {
        assert!(read("a.ndjson.gz", damaged)[0].is_err());
        assert!(read_with("a.csv.gz", damaged, &Options::default()).is_err());
    }
}

#[test]
fn progress_ends_at_the_total() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, unit) in [
        ("a.csv", b"a\n1\n2\n".to_vec(), Unit::Bytes),
        ("a.csv.gz", gzip(b"a\n1\n2\n"), Unit::Bytes),
        ("a.parquet", parquet_file(), Unit::Rows),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let mut dataset = open(&path, &Options::default()).unwrap();
        assert_eq!(dataset.by_ref().filter(|e| e.is_ok()).count(), 2);
        let total = if unit == Unit::Rows {
            2
        } else {
            bytes.len() as u64
        };
        assert_eq!(
            dataset.progress(),
            Progress {
                done: total,
                total,
                unit
            }
        );
    }
}

fn parquet_of(schema: &str, fill: impl FnOnce(&mut SerializedFileWriter<Vec<u8>>)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(vec![], schema, Arc::default()).unwrap();
    fill(&mut writer);
    writer.into_inner().unwrap()
}

/// Two rows with every type that can be written.
fn parquet_file() -> Vec<u8> {
    let schema = "message m {
        required int32 i; required int64 u (INTEGER(64, false)); required float f; optional double d;
        required boolean b; optional binary s (STRING); required int32 cents (DECIMAL(9, 2));
        required fixed_len_byte_array(3) whole (DECIMAL(5, 0)); required int32 day (DATE);
        required int64 us (TIMESTAMP(MICROS, true)); required int64 ns (TIMESTAMP(NANOS, false));
        required int32 t (TIME(MILLIS, true)); required binary raw;
        optional group merchant { required binary category (STRING); required int64 since (TIMESTAMP(NANOS, true)); }
        optional group tags (LIST) { repeated group list { optional int32 element; } }
        required int32 flat.name;
        required group m (MAP) { repeated group key_value { required binary key (STRING); required int32 value; } }
    }";
    parquet_of(schema, |writer| {
        let mut group = writer.next_row_group().unwrap();
        macro_rules! column {
            ($kind:ty, $values:expr) => {
                column!($kind, $values, None, None)
            };
            ($kind:ty, $values:expr, $definition:expr, $repetition:expr) => {{
                let mut column = group.next_column().unwrap().unwrap();
                column
                    .typed::<$kind>()
                    .write_batch(&$values, $definition, $repetition)
                    .unwrap();
                column.close().unwrap();
            }};
        }
        column!(Int32Type, [-1, i32::MAX]);
        column!(Int64Type, [-1, 0]);
        column!(FloatType, [0.1, f32::NAN]);
        column!(DoubleType, [1e300], Some(&[1, 0]), None);
        column!(BoolType, [true, false]);
        column!(
            ByteArrayType,
            [ByteArray::from("\"é\n")],
            Some(&[0, 1]),
            None
        );
        column!(Int32Type, [-5, 1250]);
        column!(
            FixedLenByteArrayType,
            [[0u8, 1, 0], [255, 255, 255]].map(|b| FixedLenByteArray::from(b.to_vec()))
        );
        column!(Int32Type, [20454, -1]);
        column!(Int64Type, [1_767_225_600_123_000, 0]);
        column!(Int64Type, [1_767_225_600_000_000_001, -1]);
        column!(Int32Type, [3_600_500, 0]);
        column!(
            ByteArrayType,
            [ByteArray::from("text"), ByteArray::from("")]
        );
        column!(
            ByteArrayType,
            [ByteArray::from("food")],
            Some(&[1, 0]),
            None
        );
        column!(Int64Type, [0], Some(&[1, 0]), None);
        column!(Int32Type, [1, 2], Some(&[3, 2, 3, 0]), Some(&[0, 1, 1, 0]));
        column!(Int32Type, [1, 2]);
        column!(
            ByteArrayType,
            [ByteArray::from("k")],
            Some(&[1, 0]),
            Some(&[0, 0])
        );
        column!(Int32Type, [9], Some(&[1, 0]), Some(&[0, 0]));
        group.close().unwrap();
    })
}

/// Found by fuzzing: a page header claims a list of two billion items, and a dictionary claims more values than it has bytes. The
/// parquet crate would skip each of the items, and allocate memory for the values.
#[test]
fn a_parquet_page_that_claims_more_than_the_file_holds_is_an_error() {
    let seeds = [
        &include_bytes!("../../tests/fuzz/seeds/files/parquet-endless")[..],
        include_bytes!("../../tests/fuzz/seeds/files/parquet-dictionary"),
        include_bytes!("../../tests/fuzz/seeds/files/parquet-repeated-size"),
    ];
    for seed in seeds {
        let rows = read("a.parquet", &seed[1..]);
        assert!(rows.iter().any(Result::is_err), "{rows:?}");
    }
}

/// Found by fuzzing: a page of 30 bytes claims to take a GiB uncompressed, for which the parquet crate would allocate memory.
#[test]
fn a_parquet_page_that_claims_too_much_is_an_error() {
    let seed = include_bytes!("../../tests/fuzz/seeds/files/parquet-page");
    let rows = read("a.parquet", &seed[1..]);
    let [Err(error)] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert!(
        error
            .to_string()
            .contains("a page claims to take 1073741824 bytes"),
        "{error}"
    );
}

/// Found by fuzzing: the library parses nested brackets in exponential time.
#[test]
fn an_npz_header_with_nested_brackets_is_an_error() {
    let seed = include_bytes!("../../tests/fuzz/seeds/files/npz-nested");
    assert!(read_with("a.npz", &seed[1..], &Options::default()).is_err());
}

#[test]
fn parquet_values() {
    let want = [
        concat!(
            r#"{"i":-1,"u":18446744073709551615,"f":0.1,"d":1e+300,"b":true,"s":null,"cents":-0.05,"whole":256,"#,
            r#""day":"2026-01-01T00:00:00Z","us":"2026-01-01T00:00:00.123Z","ns":"2026-01-01T00:00:00.000000001Z","#,
            r#""t":"01:00:00.5","raw":"text","merchant":{"category":"food","since":"1970-01-01T00:00:00Z"},"#,
            r#""tags":[1,null,2],"flat":{"name":1},"m":{"k":9}}"#,
        ),
        concat!(
            r#"{"i":2147483647,"u":0,"f":null,"d":null,"b":false,"s":"\"é\n","cents":12.50,"whole":-1,"#,
            r#""day":"1969-12-31T00:00:00Z","us":"1970-01-01T00:00:00Z","ns":"1969-12-31T23:59:59.999999999Z","#,
            r#""t":"00:00:00","raw":"","merchant":null,"tags":null,"flat":{"name":2},"m":{}}"#,
        ),
    ];
    let got: Vec<_> = payloads("a.parquet", &parquet_file())
        .iter()
        .map(|p| json(p))
        .collect();
    // Compared as `Value` first, where the order of keys is lost but a difference is easy to read, then as bytes.
    assert_eq!(got, want.map(json));
    assert_eq!(payloads("a.parquet", &parquet_file()), want);
}

/// Parquet has no durations: pandas and Polars write integers, and Arrow's schema beside them tells the unit.
#[test]
fn parquet_durations_are_seconds_as_in_arrow() {
    use base64::Engine as _;
    let arrow = arrow_schema::Schema::new(vec![
        arrow_schema::Field::new(
            "ns",
            arrow_schema::DataType::Duration(arrow_schema::TimeUnit::Nanosecond),
            true,
        ),
        arrow_schema::Field::new("n", arrow_schema::DataType::Int64, true),
        arrow_schema::Field::new(
            "ms",
            arrow_schema::DataType::Duration(arrow_schema::TimeUnit::Millisecond),
            true,
        ),
    ]);
    let mut encoded = Vec::new();
    arrow_ipc::writer::StreamWriter::try_new(&mut encoded, &arrow).unwrap();
    for (facts, expected, said) in [
        (
            base64::prelude::BASE64_STANDARD.encode(&encoded),
            r#"{"ns":1.5,"n":1500000000,"ms":1500000.0}"#,
            2,
        ),
        (
            "AAAA".to_owned(),
            r#"{"ns":1500000000,"n":1500000000,"ms":1500000000}"#,
            0,
        ),
    ] {
        let schema = "message m { required int64 ns; required int64 n; required int64 ms; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let facts = ::parquet::file::metadata::KeyValue::new("ARROW:schema".to_owned(), facts);
        let properties = ::parquet::file::properties::WriterProperties::builder()
            .set_key_value_metadata(Some(vec![facts]));
        let properties = Arc::new(properties.build());
        let mut writer = SerializedFileWriter::new(vec![], schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            let out = column.typed::<Int64Type>();
            out.write_batch(&[1_500_000_000], None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        let (rows, notes) = noted("a.parquet", &writer.into_inner().unwrap());
        assert_eq!(rows, [expected]);
        assert_eq!(notes.len(), said, "{notes:?}");
        assert!(
            notes.iter().all(
                |note| note.ends_with("holds durations: read as seconds, as they are in Arrow")
            )
        );
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn parquet_labels_and_row_groups() {
    let file = parquet_of(
        "message m { required int32 y; required group g { required int32 id; } }",
        |writer| {
            for y in 0..3 {
                let mut group = writer.next_row_group().unwrap();
                for values in [[y, 0], [10 + y, 20 + y]] {
                    let mut column = group.next_column().unwrap().unwrap();
                    column
                        .typed::<Int32Type>()
                        .write_batch(&values, None, None)
                        .unwrap();
                    column.close().unwrap();
                }
                group.close().unwrap();
            }
        },
    );
    let options = Options {
        key: Some("g.id".into()),
        ..labelled("y", "0")
    };
    let got = read_with("a.parquet", &file, &options).unwrap();
    let got: Vec<_> = got
        .into_iter()
        .map(|e| e.map(|e| (e.label.unwrap(), e.key.unwrap())).unwrap())
        .collect();
    let labels: Vec<_> = got.iter().map(|(label, _)| *label).collect();
    assert_eq!(labels, [false, false, true, false, true, false]);
    assert_eq!(got[5].1, b"22");
    assert!(read_with("a.parquet", &file, &labelled("g.y", "0")).is_err());
}

#[test]
fn parquet_values_without_a_json_form_are_written_in_another_and_counted() {
    let file = parquet_of(
        "message m { required binary image; required int64 t (TIMESTAMP(MILLIS, true)); }",
        |writer| {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let bytes = [vec![255u8], vec![b'a']].map(ByteArray::from);
            column
                .typed::<ByteArrayType>()
                .write_batch(&bytes, None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<Int64Type>()
                .write_batch(&[0, i64::MAX], None, None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        },
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pq");
    std::fs::write(&path, file).unwrap();
    let mut dataset = open(&path, &Options::default()).unwrap();
    let payloads = dataset
        .by_ref()
        .map(|e| String::from_utf8(e.unwrap().payload).unwrap());
    assert_eq!(
        payloads.collect::<Vec<_>>(),
        [
            r#"{"image":"/w==","t":"1970-01-01T00:00:00Z"}"#,
            r#"{"image":"a","t":null}"#
        ]
    );
    let notes = dataset.notes();
    assert!(
        notes[0].ends_with("a.pq: 1 values are bytes that are not UTF-8: written as base64"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("1 dates lie outside the years"),
        "{notes:?}"
    );
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_panic() {
    let file = parquet_file();
    let folder = tempfile::tempdir().unwrap();
    for at in 0..file.len() {
        for damage in [0x01u8, 0x80, 0xff] {
            let path = folder.path().join(format!("{at}-{damage}.parquet"));
            let mut damaged = file.clone();
            damaged[at] ^= damage;
            std::fs::write(&path, &damaged).unwrap();
            let Ok(dataset) = open(&path, &Options::default()) else {
                continue;
            };
            assert!(
                dataset.take(1000).count() < 1000,
                "byte {at} makes it endless"
            );
        }
    }
    for length in (0..file.len()).step_by(7) {
        assert!(read_with("a.parquet", &file[..length], &Options::default()).is_err());
    }
}

proptest! {
    /// For any bytes, reading ends without a panic, and CSV yields only JSON objects.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(prop::sample::select(&b"ab1.-,\"\r\n \xff\xef{}:"[..]), 0..80)) {
        for name in ["a.csv", "a.ndjson", "a.csv.gz", "a.parquet"] {
            let Ok(examples) = read_with(name, &bytes, &Options::default()) else { continue };
            prop_assert!(examples.len() <= 81);
            for example in examples.into_iter().flatten().filter(|_| name == "a.csv") {
                prop_assert!(serde_json::from_slice::<serde_json::Map<_, _>>(&example.payload).is_ok());
            }
        }
    }
}

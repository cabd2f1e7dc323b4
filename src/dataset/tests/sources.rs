//! Folders, patterns, streams and Arrow.

use arrow_array::builder::{MapBuilder, StringBuilder};
use arrow_array::types::Int8Type;
use arrow_array::*;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field, Fields};

use super::*;

/// Writes files into a new folder.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder
}

/// Reads everything, and returns the payloads and the notes.
fn all(path: &Path, options: &Options) -> (Vec<String>, Vec<String>) {
    let mut data = open(path, options).unwrap();
    let text = |example: Result<Example, Error>| String::from_utf8(example.unwrap().payload);
    let payloads = data.by_ref().map(|e| text(e).unwrap()).collect();
    (payloads, data.notes())
}

fn error(path: &Path) -> String {
    let opened = open(path, &Options::default());
    opened.err().expect("an error").to_string()
}

#[test]
fn a_folder_is_its_part_files_in_order() {
    let folder = folder(&[
        ("part-00001.csv", b"a,b\n3,4\n"),
        ("part-00000.csv", b"a,b\n1,2\n"),
        ("part-00002.csv", b"a,b\n"),
        ("deeper/part-00003.ndjson", b"{\"a\":5}\n"),
        ("_SUCCESS", b""),
        (".part-00000.csv.crc", b"x"),
        ("_temporary/0/part-00009.csv", b"a,b\n9,9\n"),
        ("README.txt", b"text"),
    ]);
    let (payloads, notes) = all(folder.path(), &Options::default());
    let expected = [r#"{"a":5}"#, r#"{"a":1,"b":2}"#, r#"{"a":3,"b":4}"#];
    assert_eq!(payloads, expected);
    assert_eq!(notes.len(), 1, "{notes:?}");
    for said in ["4 files or folders are not data", "_SUCCESS", "README.txt"] {
        assert!(notes[0].contains(said), "{notes:?}");
    }
}

#[test]
fn files_with_other_columns_are_said() {
    let folder = folder(&[
        ("0.csv", b"a,b\n1,2\n"),
        ("1.csv", b"b,a\n1,2\n"),
        ("2.csv", b"a,c\n1,2\n"),
        ("3.csv", b"a;b\n1;2\n"),
        ("4.csv", b"a;b\n1;2\n"),
    ]);
    let (payloads, notes) = all(folder.path(), &Options::default());
    assert_eq!(payloads.len(), 5);
    let notes = notes.join("\n");
    assert!(
        notes.contains("1 of 5 files have other columns than"),
        "{notes}"
    );
    assert!(
        notes.contains("2.csv lacks `b` and also has `c`"),
        "{notes}"
    );
    assert!(
        notes.contains("3.csv and 1 other files: its fields are separated by ';'"),
        "{notes}"
    );
}

#[test]
fn names_of_folders_are_columns_as_in_hive() {
    let folder = folder(&[
        ("day=2026-01-01/shop=7/part-0", b"{\"a\":1}\n[1]\n{}\n"),
        (
            "day=2026-01-02/shop=__HIVE_DEFAULT_PARTITION__/part-0",
            b"{\"a\":2}\n{\"day\":3}\n",
        ),
    ]);
    let options = Options {
        key: Some("day".into()),
        ..Options::default()
    };
    let data = open(folder.path(), &options).unwrap();
    let got: Vec<_> = data.filter_map(Result::ok).collect();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let got: Vec<_> = got
        .iter()
        .map(|e| (text(&e.payload), text(e.key.as_ref().unwrap())))
        .collect();
    let expected = [
        (r#"{"a":1,"day":"2026-01-01","shop":7}"#, "2026-01-01"),
        (r#"{"day":"2026-01-01","shop":7}"#, "2026-01-01"),
        (r#"{"a":2,"day":"2026-01-02","shop":null}"#, "2026-01-02"),
        (r#"{"day":3,"shop":null}"#, "3"),
    ];
    let expected = expected.map(|(payload, key)| (payload.to_owned(), key.to_owned()));
    assert_eq!(got, expected);
    let (_, notes) = all(folder.path(), &Options::default());
    assert!(
        notes.join("\n").contains("the columns `day`, `shop`"),
        "{notes:?}"
    );
}

#[test]
fn a_pattern_is_the_files_that_match() {
    let folder = folder(&[
        ("a-1.csv", b"a\n1\n"),
        ("a-2.csv", b"a\n2\n"),
        ("b-1.csv", b"a\n3\n"),
        ("a[x].csv", b"a\n4\n"),
    ]);
    let pattern = folder.path().join("a-*.csv");
    let (payloads, _) = all(&pattern, &Options::default());
    assert_eq!(payloads, [r#"{"a":1}"#, r#"{"a":2}"#]);
    let literal = folder.path().join("a[x].csv");
    assert_eq!(all(&literal, &Options::default()).0, [r#"{"a":4}"#]);
    assert!(error(&folder.path().join("c-*.csv")).contains("no file of records matches"));
}

#[test]
fn folders_without_data_and_tables_with_a_log_are_refused() {
    let only_markers = folder(&[("_SUCCESS", b"")]);
    let said = error(only_markers.path());
    assert!(
        said.contains("no file of records") && said.contains("_SUCCESS"),
        "{said}"
    );
    let delta = folder(&[("_delta_log/0.json", b"{}"), ("a.csv", b"a\n1\n")]);
    assert!(error(delta.path()).contains("Delta Lake"));
}

#[test]
fn a_file_without_an_extension_is_told_by_its_content() {
    let parquet = parquet_file();
    let gzipped = gzip(b"a,b\n1,2\n");
    let folder = folder(&[
        ("csv", b"a,b\n1,2\n"),
        ("zipped", &gzipped),
        ("json", b"\n\n[{\"a\": 1}]"),
        ("parquet", &parquet),
        ("bytes", b"\x00\x01\x02\x03\x04\x05\x06\x07\x08"),
        ("zstd", b"\x28\xb5\x2f\xfd rest of it"),
        ("a.txt", b"a|b\n1|2\n"),
    ]);
    let read = |name: &str| all(&folder.path().join(name), &Options::default());
    assert_eq!(read("csv").0, [r#"{"a":1,"b":2}"#]);
    assert!(
        read("csv").1[0].contains("its content is read as csv"),
        "{:?}",
        read("csv").1
    );
    assert_eq!(read("zipped").0, [r#"{"a":1,"b":2}"#]);
    assert!(read("zipped").1[0].contains("csv compressed with gzip"));
    assert_eq!(read("json").0, [r#"{"a": 1}"#]);
    assert_eq!(read("parquet").0.len(), 2);
    assert!(error(&folder.path().join("zstd")).contains("compressed with zstd"));
    assert!(error(&folder.path().join("bytes")).contains("not text"));
    assert!(error(&folder.path().join("a.txt")).contains("--format"));
    let options = Options {
        format: Some(Format::Csv),
        ..Options::default()
    };
    assert_eq!(
        all(&folder.path().join("a.txt"), &options).0,
        [r#"{"a":1,"b":2}"#]
    );
}

#[test]
fn labels_are_checked_across_files() {
    let folder = folder(&[("0.csv", b"a,y\n1,bad\n"), ("1.csv", b"a,y\n1,0\n")]);
    let mut data = open(folder.path(), &labelled("y", "0")).unwrap();
    let labels: Vec<_> = data.by_ref().map(|e| e.unwrap().label).collect();
    assert_eq!(labels, [Some(true), Some(false)]);
    assert!(data.check_labels().is_ok());
    let progress = data.progress();
    assert_eq!((progress.done, progress.total), (18, 18));
}

fn arrow_batch() -> RecordBatch {
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("k");
    map.values().append_value("v");
    map.append(true).unwrap();
    map.append(false).unwrap();
    let inner: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
    let fields = Fields::from(vec![Field::new("x", DataType::Int32, true)]);
    let words: DictionaryArray<Int8Type> = [Some("food"), None].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("i", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
        ("u", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        ("f", Arc::new(Float32Array::from(vec![0.1, f32::NAN]))),
        ("d", Arc::new(Float64Array::from(vec![1e300, -0.0]))),
        ("b", Arc::new(BooleanArray::from(vec![true, false]))),
        ("s", Arc::new(StringViewArray::from(vec!["\"é\n", ""]))),
        (
            "cents",
            Arc::new(
                Decimal128Array::from(vec![-5, 1250])
                    .with_precision_and_scale(9, 2)
                    .unwrap(),
            ),
        ),
        ("day", Arc::new(Date32Array::from(vec![20454, -1]))),
        (
            "us",
            Arc::new(
                TimestampMicrosecondArray::from(vec![1_767_225_600_123_000, 0])
                    .with_timezone("UTC"),
            ),
        ),
        (
            "t",
            Arc::new(Time32MillisecondArray::from(vec![3_600_500, 0])),
        ),
        (
            "took",
            Arc::new(DurationMillisecondArray::from(vec![1500, 0])),
        ),
        ("raw", Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"a"]))),
        ("words", Arc::new(words)),
        ("g.x", Arc::new(Int8Array::from(vec![1, 2]))),
        ("st", Arc::new(StructArray::new(fields, vec![inner], None))),
        ("m", Arc::new(map.finish())),
        ("every", Arc::new(IntervalYearMonthArray::from(vec![1, 2]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn arrow_bytes(compression: Option<CompressionType>, file: bool) -> Vec<u8> {
    ipc(&arrow_batch(), compression, file)
}

/// Writes a batch in Arrow's file or stream format.
pub fn ipc(batch: &RecordBatch, compression: Option<CompressionType>, file: bool) -> Vec<u8> {
    let options = IpcWriteOptions::default()
        .try_with_compression(compression)
        .unwrap();
    let mut bytes = vec![];
    if file {
        let mut writer =
            FileWriter::try_new_with_options(&mut bytes, &batch.schema(), options).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap();
    } else {
        let mut writer =
            StreamWriter::try_new_with_options(&mut bytes, &batch.schema(), options).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap();
    }
    bytes
}

#[test]
fn arrow_values() {
    let want = [
        concat!(
            r#"{"i":-9223372036854775808,"u":18446744073709551615,"f":0.1,"d":1e+300,"b":true,"s":"\"é\n","cents":-0.05,"#,
            r#""day":"2026-01-01T00:00:00Z","us":"2026-01-01T00:00:00.123Z","t":"01:00:00.5","took":1.5,"raw":"/w==","#,
            r#""words":"food","g":{"x":1},"st":{"x":1},"m":{"k":"v"},"every":null}"#,
        ),
        concat!(
            r#"{"i":null,"u":0,"f":null,"d":-0.0,"b":false,"s":"","cents":12.50,"#,
            r#""day":"1969-12-31T00:00:00Z","us":"1970-01-01T00:00:00Z","t":"00:00:00","took":0.0,"raw":"a","#,
            r#""words":null,"g":{"x":2},"st":{"x":2},"m":null,"every":null}"#,
        ),
    ];
    for compression in [
        None,
        Some(CompressionType::LZ4_FRAME),
        Some(CompressionType::ZSTD),
    ] {
        for (name, file) in [
            ("a.arrow", true),
            ("a.feather", true),
            ("a.arrows", false),
            ("a.ipc", false),
            ("a", false),
        ] {
            let folder = folder(&[(name, &arrow_bytes(compression, file))]);
            let (payloads, notes) = all(&folder.path().join(name), &Options::default());
            assert_eq!(payloads, want, "{name} {compression:?}");
            let notes = notes.join("\n");
            assert!(notes.contains("`every` has the type Interval"), "{notes}");
            assert!(notes.contains("1 values are bytes"), "{notes}");
        }
    }
    let error = open_error("a.feather", b"FEA1....");
    assert!(error.contains("Feather version 1"), "{error}");
}

#[test]
fn arrow_without_rows_and_with_keys() {
    let batch = arrow_batch().slice(0, 0);
    let mut bytes = vec![];
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).unwrap();
    writer.finish().unwrap();
    assert!(read("a.arrows", &bytes).is_empty());
    let options = Options {
        key: Some("st.x".into()),
        ..labelled("b", "false")
    };
    let got = read_with("a.arrow", &arrow_bytes(None, true), &options).unwrap();
    let got: Vec<_> = got.into_iter().map(Result::unwrap).collect();
    assert_eq!(got[0].key.as_deref(), Some(&b"1"[..]));
    assert_eq!((got[0].label, got[1].label), (Some(true), Some(false)));
}

#[test]
fn damaged_arrow_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    for compression in [None, Some(CompressionType::LZ4_FRAME)] {
        let bytes = arrow_bytes(compression, true);
        for at in (0..bytes.len()).step_by(11) {
            for damage in [0x01_u8, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= damage;
                std::fs::write(&path, &damaged).unwrap();
                if let Ok(data) = open(&path, &Options::default()) {
                    assert!(data.take(1000).count() < 1000, "byte {at} makes it endless");
                }
            }
        }
        for length in (0..bytes.len() / 2).step_by(7) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let cut =
                open(&path, &Options::default()).map(|data| data.filter(Result::is_ok).count());
            assert!(cut.is_err() || cut.is_ok_and(|rows| rows == 0), "{length}");
        }
    }
}

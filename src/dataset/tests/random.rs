//! Random files in every format: the rows that the trainer gets, those that `score` gets and those that the daemon decodes from the
//! messages of `produce` agree to the bit with each other and with what was written. So do the rows that the daemon decodes from the
//! same records in Avro.
//!
//! `RESIDUALD_RANDOM_FILES=20000 cargo test --lib dataset::tests::random` draws more files.

mod avro;

use std::ops::ControlFlow;

use arrow_array::*;
use arrow_ipc::CompressionType;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::sources::ipc;
use super::*;
use crate::bundle::Feature;
use crate::dataset::table::Table;
use crate::decode::{Decoder, JsonDecoder, RecordFormat};
use crate::message::record_message;

/// Number of files that are drawn unless the environment says otherwise.
const FILES: u64 = 300;
const MOST_ROWS: usize = 12;

/// A value as it is meant.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Missing,
    Number(f64),
    Bool(bool),
    Text(String),
    /// Microseconds since 1970.
    Time(i64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Integer,
    /// Numbers in strings, with a decimal comma.
    DecimalComma,
    Bool,
    Category,
    Time,
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: Kind,
    vocabulary: Vec<String>,
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Drawn {
    columns: Vec<Column>,
    rows: usize,
}

const KINDS: [Kind; 6] = [
    Kind::Number,
    Kind::Integer,
    Kind::DecimalComma,
    Kind::Bool,
    Kind::Category,
    Kind::Time,
];
/// Names of columns, each nested below the others or beside them.
const NAMES: [&str; 10] = [
    "a",
    "B c",
    "m.x",
    "m.y.z",
    "ünï",
    "q\"q",
    "semi;colon",
    "tab\tname",
    "m..empty",
    "[0]",
];
/// Parts of categories. None of them is a number, a boolean or a spelling of a missing value by itself.
const WORDS: [&str; 12] = [
    "x",
    "Food",
    "007",
    "a,b",
    "c;d",
    "e\tf",
    "g|h",
    "say \"hi\"",
    "line\nbreak",
    "ü",
    "'",
    "0x1F",
];

fn draw(random: &mut fastrand::Rng) -> Drawn {
    let rows = random.usize(1..=MOST_ROWS);
    let mut names = NAMES.to_vec();
    random.shuffle(&mut names);
    let names = names.into_iter().take(random.usize(2..=6));
    let columns = names.enumerate().map(|(at, name)| {
        let kind = KINDS[random.usize(..KINDS.len())];
        let mut vocabulary: Vec<String> = WORDS.map(str::to_owned).to_vec();
        random.shuffle(&mut vocabulary);
        vocabulary.truncate(random.usize(1..WORDS.len()));
        let cells = (0..rows).map(|_| {
            loop {
                match cell(kind, random) {
                    // A record without any value is refused.
                    Cell::Missing if at == 0 => {}
                    cell => break cell,
                }
            }
        });
        let cells = cells.collect();
        Column {
            name: name.to_owned(),
            kind,
            vocabulary,
            cells,
        }
    });
    let columns = columns.collect();
    Drawn { columns, rows }
}

fn cell(kind: Kind, random: &mut fastrand::Rng) -> Cell {
    if random.u8(..10) == 0 {
        return Cell::Missing;
    }
    let number = |random: &mut fastrand::Rng| match random.u8(..6) {
        0 => 0.0,
        1 => f64::from(random.i32(-1000..1000)),
        2 => (random.f64() - 0.5) * 1e-6,
        3 => (random.f64() - 0.5) * 1e30,
        4 => f64::from(random.i32(-100_000..100_000)) / 100.0,
        _ => random.f64() * 1000.0,
    };
    match kind {
        Kind::Number => Cell::Number(number(random)),
        Kind::Integer => Cell::Number(random.i64(-(1 << 53)..1 << 53) as f64),
        Kind::DecimalComma => Cell::Number(f64::from(random.i32(-10_000_000..10_000_000)) / 100.0),
        Kind::Bool => Cell::Bool(random.bool()),
        Kind::Category => Cell::Text(WORDS[random.usize(..WORDS.len())].to_owned()),
        Kind::Time => Cell::Time(random.i64(-1_000_000_000_000_000..4_000_000_000_000_000)),
    }
}

impl Drawn {
    /// Returns the features as a schema has them.
    fn features(&self) -> Vec<Feature> {
        let mut features = Vec::new();
        for column in &self.columns {
            let path = column.path();
            let feature = |more: Value| {
                let mut entry =
                    json!({"name": format!("{path} {more}"), "path": path, "missing": "impute"});
                let Value::Object(more) = more else {
                    unreachable!("an object was given")
                };
                entry.as_object_mut().unwrap().extend(more);
                serde_json::from_value(entry).unwrap()
            };
            match column.kind {
                Kind::Number | Kind::Integer => features.push(feature(json!({"type": "number"}))),
                Kind::DecimalComma => {
                    let more = json!({"type": "number", "number_format": "decimal_comma"});
                    features.push(feature(more));
                }
                Kind::Bool => features.push(feature(json!({"type": "bool"}))),
                Kind::Category => {
                    let more = json!({"type": "categorical", "vocabulary": column.vocabulary});
                    features.push(feature(more));
                }
                Kind::Time => {
                    for part in ["hour_of_day", "day_of_week"] {
                        features.push(feature(json!({"type": "timestamp", "part": part})));
                    }
                }
            }
        }
        features
    }

    /// Returns the rows that every reader must give, computed from what is meant.
    fn expected(&self) -> Vec<u32> {
        let mut row = Vec::new();
        for at in 0..self.rows {
            for column in &self.columns {
                match &column.cells[at] {
                    Cell::Missing if column.kind == Kind::Time => row.extend([f32::NAN; 2]),
                    Cell::Missing => row.push(f32::NAN),
                    Cell::Number(v) => row.push(*v as f32),
                    Cell::Bool(v) => row.push(if *v { 1.0 } else { 0.0 }),
                    Cell::Text(text) => {
                        let code = column.vocabulary.iter().position(|word| word == text);
                        row.push(code.map_or(-1.0, |code| code as f32));
                    }
                    Cell::Time(micros) => {
                        let time = Timestamp::from_microsecond(*micros).unwrap();
                        let local = time.to_zoned(jiff::tz::TimeZone::UTC);
                        let into_day = micros.rem_euclid(86_400_000_000);
                        row.push((into_day as f64 / 3.6e9) as f32);
                        row.push(f32::from(local.weekday().to_monday_zero_offset()));
                    }
                }
            }
        }
        row.into_iter().map(f32::to_bits).collect()
    }

    /// Returns one row as a JSON object. Nested columns become nested objects, or keys with dots if `flat`.
    fn object(&self, row: usize, flat: bool, random: &mut fastrand::Rng) -> Value {
        let mut object = Map::new();
        for column in &self.columns {
            let value = column.json(row);
            if value.is_null() && random.bool() {
                continue;
            }
            if flat {
                object.insert(column.name.clone(), value);
                continue;
            }
            let mut at = &mut object;
            let (parents, name) = match column.name.rsplit_once('.') {
                Some((parents, name)) => (parents.split('.').collect(), name),
                None => (vec![], column.name.as_str()),
            };
            for parent in parents {
                let inner = at.entry(parent).or_insert_with(|| json!({}));
                at = inner.as_object_mut().unwrap();
            }
            at.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }
}

impl Column {
    /// Returns the path that names the column in a schema. `m..empty` has an empty key.
    fn path(&self) -> String {
        match self.name.as_str() {
            "m..empty" => "m.\"\".empty".to_owned(),
            name => name.to_owned(),
        }
    }

    /// Returns a cell as its JSON value.
    fn json(&self, row: usize) -> Value {
        match &self.cells[row] {
            Cell::Missing => Value::Null,
            Cell::Number(v) if self.kind == Kind::DecimalComma => json!(decimal_comma(*v)),
            Cell::Number(v) if self.kind == Kind::Integer => json!(*v as i64),
            Cell::Number(v) => json!(v),
            Cell::Bool(v) => json!(v),
            Cell::Text(v) => json!(v),
            Cell::Time(v) => json!(Timestamp::from_microsecond(*v).unwrap().to_string()),
        }
    }

    /// Returns a cell as its text in CSV.
    fn csv(&self, row: usize, random: &mut fastrand::Rng) -> String {
        let blanks = ["", " ", "  "];
        let text = match &self.cells[row] {
            Cell::Missing => ["", "NA", "n/a", "NaN", "null"][random.usize(..5)].to_owned(),
            Cell::Bool(v) => {
                let text = v.to_string();
                if random.bool() {
                    text.to_uppercase()
                } else {
                    text
                }
            }
            Cell::Number(v)
                if *v > 0.0 && self.kind != Kind::DecimalComma && random.u8(..4) == 0 =>
            {
                format!("+{v}")
            }
            Cell::Text(text) => return text.clone(),
            _ => match self.json(row) {
                Value::String(text) => text,
                other => other.to_string(),
            },
        };
        format!("{text}{}", blanks[random.usize(..3)])
    }
}

/// Writes a number with two digits after a comma, and points between thousands.
fn decimal_comma(value: f64) -> String {
    let cents = (value.abs() * 100.0).round() as i64;
    let mut whole = (cents / 100).to_string();
    for at in (1..whole.len())
        .rev()
        .filter(|at| (whole.len() - at).is_multiple_of(3))
        .collect::<Vec<_>>()
    {
        whole.insert(at, '.');
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{whole},{:02}", cents % 100)
}

/// Writes the rows as CSV in a random dialect.
fn csv(drawn: &Drawn, random: &mut fastrand::Rng) -> (&'static str, Vec<u8>) {
    let (extension, delimiter) = [
        ("csv", b','),
        ("csv", b';'),
        ("csv", b'\t'),
        ("csv", b'|'),
        ("tsv", b'\t'),
    ][random.usize(..5)];
    // A separator in a name that is not quoted counts like one between names.
    let plain = |column: &Column| !column.name.contains([',', ';', '\t', '|']);
    let style = match random.bool() && drawn.columns.iter().all(plain) {
        true => ::csv::QuoteStyle::Necessary,
        false => ::csv::QuoteStyle::Always,
    };
    let mut writer = ::csv::WriterBuilder::new();
    let end = if random.bool() {
        ::csv::Terminator::CRLF
    } else {
        ::csv::Terminator::Any(b'\n')
    };
    writer
        .delimiter(delimiter)
        .quote_style(style)
        .terminator(end);
    let mut writer = writer.from_writer(vec![]);
    let header = drawn.columns.iter().map(|c| format!("{} ", c.name));
    let header: Vec<String> = header.collect();
    writer.write_record(&header).unwrap();
    for row in 0..drawn.rows {
        let cells = drawn.columns.iter().map(|column| column.csv(row, random));
        writer.write_record(cells.collect::<Vec<_>>()).unwrap();
    }
    let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
    let utf16 = |order: fn(u16) -> [u8; 2]| {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(order).collect()
    };
    let bytes = match random.u8(..6) {
        0 => [b"\xef\xbb\xbf", text.as_bytes()].concat(),
        1 => utf16(u16::to_le_bytes),
        2 => utf16(u16::to_be_bytes),
        _ => text.into_bytes(),
    };
    (extension, bytes)
}

fn arrow(drawn: &Drawn) -> RecordBatch {
    let columns = drawn.columns.iter().map(|column| {
        macro_rules! array {
            ($kind:ty, $pattern:pat => $value:expr) => {
                Arc::new(
                    column
                        .cells
                        .iter()
                        .map(|cell| match cell {
                            $pattern => Some($value),
                            _ => None,
                        })
                        .collect::<$kind>(),
                ) as ArrayRef
            };
        }
        let array = match column.kind {
            Kind::Number => array!(Float64Array, Cell::Number(v) => *v),
            Kind::Integer => array!(Int64Array, Cell::Number(v) => *v as i64),
            Kind::DecimalComma => array!(StringArray, Cell::Number(v) => decimal_comma(*v)),
            Kind::Bool => array!(BooleanArray, Cell::Bool(v) => *v),
            Kind::Category => array!(LargeStringArray, Cell::Text(v) => v.clone()),
            Kind::Time => array!(TimestampMicrosecondArray, Cell::Time(v) => *v),
        };
        (column.name.clone(), array, true)
    });
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn parquet(drawn: &Drawn) -> Vec<u8> {
    let fields = drawn.columns.iter().map(|column| {
        use ::parquet::basic::{ConvertedType, LogicalType, Repetition, Type};
        let (physical, logical) = match column.kind {
            Kind::Number => (Type::DOUBLE, None),
            Kind::Integer => (Type::INT64, None),
            Kind::Bool => (Type::BOOLEAN, None),
            Kind::DecimalComma | Kind::Category => (Type::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Time => (Type::INT64, None),
        };
        let builder =
            ::parquet::schema::types::Type::primitive_type_builder(&column.name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical);
        let builder = match column.kind {
            Kind::Time => builder.with_converted_type(ConvertedType::TIMESTAMP_MICROS),
            _ => builder,
        };
        Arc::new(builder.build().unwrap())
    });
    let schema =
        ::parquet::schema::types::Type::group_type_builder("m").with_fields(fields.collect());
    let schema = Arc::new(schema.build().unwrap());
    let mut writer = SerializedFileWriter::new(vec![], schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in &drawn.columns {
        let levels: Vec<i16> = column
            .cells
            .iter()
            .map(|cell| i16::from(*cell != Cell::Missing))
            .collect();
        let mut out = group.next_column().unwrap().unwrap();
        macro_rules! write {
            ($kind:ty, $pattern:pat => $value:expr) => {{
                let values: Vec<_> = column
                    .cells
                    .iter()
                    .filter_map(|cell| match cell {
                        $pattern => Some($value),
                        _ => None,
                    })
                    .collect();
                out.typed::<$kind>()
                    .write_batch(&values, Some(&levels), None)
                    .unwrap();
            }};
        }
        match column.kind {
            Kind::Number => write!(DoubleType, Cell::Number(v) => *v),
            Kind::Integer => write!(Int64Type, Cell::Number(v) => *v as i64),
            Kind::DecimalComma => {
                write!(ByteArrayType, Cell::Number(v) => ByteArray::from(decimal_comma(*v).as_str()))
            }
            Kind::Bool => write!(BoolType, Cell::Bool(v) => *v),
            Kind::Category => write!(ByteArrayType, Cell::Text(v) => ByteArray::from(v.as_str())),
            Kind::Time => write!(Int64Type, Cell::Time(v) => *v),
        }
        out.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// Writes the rows in a random format.
fn write(drawn: &Drawn, random: &mut fastrand::Rng) -> (String, Vec<u8>) {
    let flat = random.bool();
    let zipped = random.u8(..4) == 0;
    let (extension, bytes) = match random.u8(..8) {
        0..=2 => csv(drawn, random),
        3 | 4 => {
            let end = if random.bool() { "\r\n" } else { "\n" };
            let lines =
                (0..drawn.rows).map(|row| format!("{}{end}", drawn.object(row, flat, random)));
            ("ndjson", lines.collect::<String>().into_bytes())
        }
        5 => {
            let rows: Vec<Value> = (0..drawn.rows)
                .map(|row| drawn.object(row, flat, random))
                .collect();
            ("json", serde_json::to_vec_pretty(&rows).unwrap())
        }
        6 => return ("a.parquet".to_owned(), parquet(drawn)),
        _ => {
            let compressions = [
                None,
                Some(CompressionType::LZ4_FRAME),
                Some(CompressionType::ZSTD),
            ];
            let compression = compressions[random.usize(..3)];
            let bytes = ipc(&arrow(drawn), compression, random.bool());
            return ("a.arrow".to_owned(), bytes);
        }
    };
    match zipped {
        true => (format!("a.{extension}.gz"), gzip(&bytes)),
        false => (format!("a.{extension}"), bytes),
    }
}

fn bits(rows: &[f32]) -> Vec<u32> {
    // Every NaN is the same.
    rows.iter()
        .map(|v| {
            if v.is_nan() {
                f32::NAN.to_bits()
            } else {
                v.to_bits()
            }
        })
        .collect()
}

fn check(seed: u64, folder: &Path) {
    let mut random = fastrand::Rng::with_seed(seed);
    let drawn = draw(&mut random);
    let (name, bytes) = write(&drawn, &mut random);
    let path = folder.join(&name);
    std::fs::write(&path, &bytes).unwrap();
    let about = || {
        let text = String::from_utf8_lossy(&bytes);
        format!("seed {seed}, {name}\n{drawn:?}\n{text}")
    };
    let features = drawn.features();
    let expected = drawn.expected();

    let table = Table::read(
        std::slice::from_ref(&path),
        None,
        None,
        usize::MAX,
        0,
        |_, _| ControlFlow::Continue(()),
    );
    let table = table.unwrap_or_else(|error| panic!("{error}: {}", about()));
    let trained = table.encode(&features);
    assert!(
        trained.refused.is_empty(),
        "{:?} {}",
        trained.refused,
        about()
    );
    assert_eq!(bits(&trained.x), expected, "trainer: {}", about());

    let mut scored = Vec::new();
    let mut streamed = Vec::new();
    let mut score = Decoder::new(&features, RecordFormat::Json, None);
    let mut daemon = JsonDecoder::new(&features);
    for example in open(&path, &Options::default()).unwrap() {
        let example = example.unwrap();
        score.decode(&example.payload, None, &mut scored).unwrap();
        let message = record_message(example.key, example.payload);
        daemon.decode(&message.payload, &mut streamed).unwrap();
    }
    assert_eq!(bits(&scored), expected, "score: {}", about());
    assert_eq!(bits(&streamed), expected, "daemon: {}", about());
    let (decoded, shown) = avro::rows(&drawn, &mut random);
    assert_eq!(bits(&decoded), expected, "Avro: {}", about());
    assert_eq!(bits(&shown), expected, "a verdict's record: {}", about());
    for column in &drawn.columns {
        if !matches!(column.kind, Kind::Number | Kind::Integer) {
            continue;
        }
        for (cell, number) in column.cells.iter().zip(table.numbers(&column.path())) {
            let meant = match cell {
                Cell::Number(v) => *v,
                _ => f64::NAN,
            };
            // serde_json may miss the last bit of a float64.
            let is_near = (number - meant).abs() <= meant.abs() * 1e-15;
            assert!(
                is_near || (number.is_nan() && meant.is_nan()),
                "numbers: {}",
                about()
            );
        }
    }
}

#[test]
fn random_files_mean_the_same_everywhere() {
    let files =
        std::env::var("RESIDUALD_RANDOM_FILES").map_or(FILES, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..files {
        check(seed, folder.path());
    }
    println!("{files} files");
}

proptest! {
    /// Any key is found by the path that the reader gives it, flat and nested.
    #[test]
    fn any_key_has_a_path(key in "[a\"\\\\. \\[\\]'é]{0,6}|.{0,6}", outer in "[a\". ]{0,3}") {
        for record in [json!({&key: 7}), json!({&outer: {&key: 7}})] {
            let table = Table::from_payloads([record.to_string().into_bytes()]);
            let path = table.paths().remove(0);
            let features: Vec<Feature> =
                serde_json::from_value(json!([{"name": "f", "path": path, "type": "number"}])).unwrap();
            prop_assert_eq!(crate::bundle::manifest::feature_faults(&features), Vec::<String>::new());
            prop_assert_eq!(table.encode(&features).x, vec![7.0], "{} in {}", path, record);
            prop_assert_eq!(table.numbers(&path), vec![7.0]);
            let options = Options { key: Some(path.clone()), ..Options::default() };
            let (_, picked) = Picker::new(&options).pick(record.to_string().as_bytes()).unwrap();
            prop_assert_eq!(picked.as_deref(), Some(&b"7"[..]), "{} in {}", path, record);
        }
    }

    /// The same for the names of columns in CSV.
    #[test]
    fn any_column_has_a_path(name in "[a\"\\\\. \\[\\]'é;]{0,6}|.{0,6}") {
        let mut writer = ::csv::WriterBuilder::new().quote_style(::csv::QuoteStyle::Always).from_writer(vec![]);
        writer.write_record([name.as_str(), "other column"]).unwrap();
        writer.write_record(["7", "8"]).unwrap();
        let payloads = payloads("a.csv", &writer.into_inner().unwrap());
        let table = Table::from_payloads(payloads.into_iter().map(String::into_bytes));
        let path = table.paths().remove(0);
        let features: Vec<Feature> =
            serde_json::from_value(json!([{"name": "f", "path": path, "type": "number"}])).unwrap();
        prop_assert_eq!(crate::bundle::manifest::feature_faults(&features), Vec::<String>::new());
        prop_assert_eq!(table.encode(&features).x, vec![7.0], "{}", path);
    }
}

//! Keeps the import rule of `ARCHITECTURE.md`: who may name whom inside the crate.
//!
//! It reads `src/**/*.rs` as text, with comments, strings and `#[cfg(test)]` items blanked out, and
//! looks at every `crate::…` path (in `main.rs`: `residuald::…`), at every `super::…` path that
//! climbs to the crate's root, and, in pure modules, at paths into the crates of the outer world.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a top-level module stands. A new module gets its line in [`layer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layer {
    /// No I/O; the number is its place in the order in which a record meets the modules.
    Pure(usize),
    /// Pure as well, for the verbs that work on files.
    Files,
    Edge,
    Support,
    Pipeline,
    /// Knows what every module fails with.
    Failure,
    Daemon,
    Cli,
    Main,
}

fn layer(module: &str) -> Option<Layer> {
    Some(match module {
        "bounded" | "clip" | "npy" | "patch" | "record" | "text" => Layer::Pure(0),
        "bundle" => Layer::Pure(1),
        "image" => Layer::Pure(2),
        "decode" => Layer::Pure(3),
        "dead_letter" | "imputation" => Layer::Pure(4),
        "batch" => Layer::Pure(5),
        "verdict" => Layer::Pure(6),
        "message" => Layer::Pure(7),
        "diffusion" => Layer::Pure(8),
        "prompt" => Layer::Pure(9),
        "dataset" | "evaluation" | "synthetic" => Layer::Files,
        "onnx" | "otlp" | "kafka" | "http" | "schema_registry" => Layer::Edge,
        "config" | "http_client" | "memory" | "metrics" | "recent" | "shutdown" | "status"
        | "telemetry" => Layer::Support,
        "pipeline" => Layer::Pipeline,
        "failure" => Layer::Failure,
        "daemon" => Layer::Daemon,
        "cli" => Layer::Cli,
        "main" => Layer::Main,
        _ => return None,
    })
}

/// The outer world: what a pure module does not name.
const OUTER_CRATES: [&str; 7] = [
    "tokio",
    "rdkafka",
    "ort",
    "prometheus",
    "axum",
    "tracing",
    "ureq",
];

/// The rule that forbids `from` to import `to`, if one does.
fn rule_against(from: Layer, to: Layer) -> Option<&'static str> {
    use Layer::*;
    match (from, to) {
        (Main, Cli | Pipeline | Support) => None,
        (Main, _) => Some("main imports cli, pipeline and support; the rest is theirs"),
        (Cli, _) => None,
        (_, Cli | Main) => Some("nothing imports cli but main"),
        (_, Daemon) => Some("nothing imports daemon but cli"),
        (Failure, _) => None,
        (Daemon, Failure | Pipeline | Edge | Support | Pure(_)) => None,
        (_, Failure) => Some("nothing imports failure but daemon and cli"),
        (_, Pipeline) => Some("nothing imports pipeline but daemon, cli and main"),
        (Files, Files) => None,
        (_, Files) => Some("nothing imports dataset or evaluation but cli"),
        (Pure(here), Pure(there)) if there < here => None,
        (Pure(_), Pure(_)) => Some("a pure module imports only the pure modules above it"),
        (Pure(_) | Files, Edge | Support) => Some("a pure module imports only pure modules"),
        (Files | Edge | Support | Pipeline, Pure(_)) => None,
        (Edge | Support | Pipeline, Support) => None,
        (Pipeline, Edge) => None,
        (Edge, Edge) => Some("edges do not know each other; pipeline joins them"),
        (Support, Edge) => Some("support imports only pure modules and support"),
    }
}

/// One line for each forbidden import in `source`, the file at `path` below `src/`.
fn violations(path: &Path, source: &str) -> Vec<String> {
    let module = module_of(path);
    let Some(from) = layer(&module) else {
        return vec![format!("src/{}: {}", path.display(), unplaced(&module))];
    };
    let source = blank_tests(&blank_comments_and_strings(source));
    let mut found = Vec::new();
    let mut report = |at: usize, what: &str, rule: &str| {
        let line = 1 + source[..at].matches('\n').count();
        found.push(format!(
            "src/{}:{line}: {module} names {what}: {rule}",
            path.display()
        ));
    };
    for (at, named) in crate_paths(&source, path) {
        if named == module {
            continue;
        }
        match layer(&named) {
            _ if named == "*" => report(at, "crate::*", "an import names its module"),
            None => report(at, &named, &unplaced(&named)),
            Some(to) => {
                if let Some(rule) = rule_against(from, to) {
                    report(at, &named, rule);
                }
            }
        }
    }
    if matches!(from, Layer::Pure(_) | Layer::Files) {
        for outer in OUTER_CRATES {
            for at in words(&source, outer) {
                if names_a_crate(&source, at, outer) {
                    report(at, outer, "a pure module has no I/O, metrics or logs");
                }
            }
        }
    }
    found
}

/// One line for each verb that `source`, the file at `path` below `src/`, imports and that is not its own.
fn verbs_of_others(path: &Path, source: &str) -> Vec<String> {
    let mut parts = path.iter().map(|part| part.to_str().unwrap());
    let (Some("cli"), Some(own)) = (parts.next(), parts.next()) else {
        return Vec::new();
    };
    let own = own.trim_end_matches(".rs");
    let source = blank_tests(&blank_comments_and_strings(source));
    let mut named = Vec::new();
    for at in words(&source, "crate") {
        let cli = after_colons(&source[at + "crate".len()..]);
        let of_cli = cli.and_then(|rest| after_colons(rest.strip_prefix("cli")?));
        named.extend(of_cli.into_iter().flat_map(first_names));
    }
    for at in words(&source, "super") {
        let (mut rest, mut climbed) = (&source[at..], 0);
        while let Some(next) = rest.strip_prefix("super").and_then(after_colons) {
            (rest, climbed) = (next, climbed + 1);
        }
        if climbed + 1 == depth(path) {
            named.extend(first_names(rest));
        }
    }
    // In capitals: the command line as a whole, for completions and manual pages.
    let is_verb = |name: &String| {
        name.starts_with(char::is_lowercase) && name != "println" && name != "eprintln"
    };
    named.retain(|name| is_verb(name) && name != own && name != "shared");
    let line = |name| format!("src/{}: imports cli::{name}", path.display());
    named.into_iter().map(line).collect()
}

fn unplaced(module: &str) -> String {
    format!("`{module}` is in no layer: place it in `layer` of tests/it/imports.rs")
}

/// `batch.rs` and `batch/anything.rs` are the module `batch`.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// How many `super::` climb from this file's module to the crate's root.
fn depth(path: &Path) -> usize {
    path.iter().count() - usize::from(path.ends_with("mod.rs"))
}

/// The top-level modules that paths in `source` name, each with where its path begins.
fn crate_paths(source: &str, path: &Path) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let root = if module_of(path) == "main" {
        "residuald"
    } else {
        "crate"
    };
    for at in words(source, root) {
        if let Some(rest) = after_colons(&source[at + root.len()..]) {
            named.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    for at in words(source, "super") {
        if source[..at].trim_end().ends_with("::") {
            continue; // the chain was followed from its first `super`
        }
        let (mut rest, mut climbed) = (&source[at..], 0);
        while let Some(next) = rest.strip_prefix("super").and_then(after_colons) {
            (rest, climbed) = (next, climbed + 1);
        }
        if climbed >= depth(path) {
            named.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    named
}

fn after_colons(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix("::").map(str::trim_start)
}

/// The first segments of what follows `crate::`, one name or a `{…}` of several.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![first_name(rest)];
    };
    let (mut names, mut open, mut start) = (Vec::new(), 1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 || (open == 1 && c == ',') {
            names.push(first_name(group[start..at].trim_start()));
            start = at + 1;
        }
        if open == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty() && name != "self");
    names
}

fn first_name(text: &str) -> String {
    if text.starts_with('*') {
        return "*".to_string();
    }
    text.chars().take_while(|&c| is_word(c)).collect()
}

/// Whether the word at `at` begins a path (`tokio::…`) or is imported whole (`use tokio as …;`).
fn names_a_crate(source: &str, at: usize, word: &str) -> bool {
    let before = source[..at].trim_end();
    let inside_a_path = before
        .strip_suffix("::")
        .is_some_and(|b| b.ends_with(is_word));
    let path = after_colons(&source[at + word.len()..]).is_some();
    !inside_a_path && (path || before.ends_with("use") || before.ends_with("extern crate"))
}

/// Where `word` stands in `source` as a whole word.
fn words(source: &str, word: &str) -> Vec<usize> {
    let whole = |at: usize| {
        !source[..at].ends_with(is_word) && !source[at + word.len()..].starts_with(is_word)
    };
    source
        .match_indices(word)
        .map(|(at, _)| at)
        .filter(|&at| whole(at))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Spaces for everything but line breaks, so that offsets and line numbers stay.
fn blank(text: &str) -> String {
    text.bytes()
        .map(|b| if b == b'\n' { '\n' } else { ' ' })
        .collect()
}

fn blank_comments_and_strings(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let opaque = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if c == '"' || (matches!(c, 'r' | 'b' | 'c') && !out.ends_with(is_word)) {
            string(rest).unwrap_or(0)
        } else if c == '\'' {
            char_literal(rest).unwrap_or(0)
        } else {
            0
        };
        if opaque > 0 {
            out.push_str(&blank(&rest[..opaque]));
            rest = &rest[opaque..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut at, mut open) = (0, 0);
    while at < text.len() {
        let step = &text.as_bytes()[at..];
        if step.starts_with(b"/*") {
            (at, open) = (at + 2, open + 1);
        } else if step.starts_with(b"*/") {
            (at, open) = (at + 2, open - 1);
        } else {
            at += 1;
        }
        if open == 0 {
            break;
        }
    }
    at
}

/// The length of the string literal that `text` begins with: `"…"`, `b"…"`, `r#"…"#` and so on.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(|c: char| !matches!(c, 'r' | 'b' | 'c'))?;
    let raw = text[..prefix].contains('r');
    let hashes = text[prefix..].find(|c| c != '#')?;
    if prefix > 2 || (hashes > 0 && !raw) {
        return None;
    }
    let body = text[prefix + hashes..].strip_prefix('"')?;
    let start = text.len() - body.len();
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(start + body.find(&end)? + end.len());
    }
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

/// The length of a literal like `'x'` or `'\n'`; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return chars.find(|&(_, c)| c == '\'').map(|(at, _)| at + 1);
    }
    chars
        .next()
        .filter(|&(_, c)| c == '\'')
        .map(|(at, _)| at + 1)
}

/// Blanks each item under `#[cfg(test)]`, to its closing brace or semicolon.
fn blank_tests(source: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find(MARK) {
        let item = &rest[at + MARK.len()..];
        let (mut open, mut length) = (0, item.len());
        for (at, c) in item.char_indices() {
            match c {
                '{' => open += 1,
                '}' => open -= 1,
                _ => {}
            }
            if open == 0 && (c == '}' || c == ';') {
                length = at + 1;
                break;
            }
        }
        let end = at + MARK.len() + length;
        out.push_str(&rest[..at]);
        out.push_str(&blank(&rest[at..end]));
        rest = &rest[end..];
    }
    out + rest
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file below `src/` but `lib.rs`, which only declares the modules.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&src(), &mut found);
    found.sort();
    let below = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(src()).unwrap().to_path_buf(), text)
    };
    found
        .into_iter()
        .map(below)
        .filter(|(path, _)| path != Path::new("lib.rs"))
        .collect()
}

#[test]
fn modules_import_only_what_their_layer_may() {
    let found: Vec<_> = sources()
        .iter()
        .flat_map(|(path, source)| violations(path, source))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn no_verb_imports_another_verb() {
    let found: Vec<_> = sources()
        .iter()
        .flat_map(|(path, source)| verbs_of_others(path, source))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
    for (path, source, caught) in [
        ("cli/check.rs", "use crate::cli::score::out;", true),
        ("cli/check.rs", "use super::score::out;", true),
        ("cli/check/connect.rs", "use super::super::score;", true),
        (
            "cli/shared/feed.rs",
            "use crate::cli::produce::positive;",
            true,
        ),
        (
            "cli/check.rs",
            "use crate::cli::shared::output::out;",
            false,
        ),
        ("cli/check/connect.rs", "use super::Findings;", false),
        (
            "cli/check/connect.rs",
            "use crate::cli::check::Findings;",
            false,
        ),
        (
            "cli/man.rs",
            "fn f() { super::Arguments::command() }",
            false,
        ),
        ("daemon/model.rs", "use super::watchdog;", false),
    ] {
        let found = verbs_of_others(Path::new(path), source);
        assert_eq!(found.len(), usize::from(caught), "{path}: {source}");
    }
}

#[test]
fn every_module_of_the_crate_has_a_layer_and_was_read() {
    let lib = blank_tests(&blank_comments_and_strings(
        &fs::read_to_string(src().join("lib.rs")).unwrap(),
    ));
    let declared: Vec<_> = words(&lib, "mod")
        .into_iter()
        .map(|at| first_name(lib[at + 3..].trim_start()))
        .collect();
    let read: Vec<_> = sources().iter().map(|(path, _)| module_of(path)).collect();
    assert!(declared.len() >= 6, "src/lib.rs declares only {declared:?}");
    for module in declared {
        assert!(
            layer(&module).is_some(),
            "src/lib.rs: {}",
            unplaced(&module)
        );
        assert!(
            read.contains(&module),
            "no source of `{module}` was found below src/"
        );
    }
}

#[test]
fn a_forbidden_import_is_caught() {
    let forbidden = [
        ("batch.rs", "use crate::metrics::Metrics;", "metrics"),
        ("batch.rs", "use crate::verdict::Verdict;", "verdict"),
        (
            "batch.rs",
            "use crate::{record::{Record, Source}, message::Message};",
            "message",
        ),
        ("batch.rs", "use super::config::Batch;", "config"),
        ("bundle/mod.rs", "fn f() -> super::onnx::Session {}", "onnx"),
        (
            "decode/json.rs",
            "use super::super::kafka::Source;",
            "kafka",
        ),
        (
            "decode/json.rs",
            "fn f() { tracing::warn!(\"{}\", '\"'); }",
            "tracing",
        ),
        ("record.rs", "use rdkafka::message::Headers;", "rdkafka"),
        (
            "record.rs",
            "#[cfg(test)]\nmod tests { }\nuse tokio as runtime;",
            "tokio",
        ),
        ("dataset.rs", "use crate::config::Input;", "config"),
        ("kafka/source.rs", "use crate::onnx::Session;", "onnx"),
        (
            "kafka/source.rs",
            "use crate::evaluation::auroc;",
            "evaluation",
        ),
        ("config.rs", "use crate::http::Server;", "http"),
        ("http/mod.rs", "use crate::pipeline::Pipeline;", "pipeline"),
        ("pipeline.rs", "use crate::cli::Args;", "cli"),
        ("pipeline.rs", "use crate::failure::Failure;", "failure"),
        ("kafka/sink.rs", "use crate::daemon::Daemon;", "daemon"),
        ("daemon.rs", "use crate::dataset::Example;", "dataset"),
        ("pipeline.rs", "use crate::*;", "*"),
        ("main.rs", "use residuald::onnx::Session;", "onnx"),
        ("kafka/sink.rs", "use crate::utils::retry;", "utils"),
        ("utils.rs", "", "utils"),
    ];
    for (path, source, named) in forbidden {
        let found = violations(Path::new(path), source);
        assert_eq!(found.len(), 1, "{path}: {source}: {found:?}");
        assert!(found[0].contains(named), "{path}: {source}: {found:?}");
    }
    let third = "//! tour\n\nuse crate::pipeline::Pipeline;\n";
    let found = violations(Path::new("http/mod.rs"), third);
    assert!(
        found[0].starts_with("src/http/mod.rs:3: http names pipeline: nothing"),
        "{found:?}"
    );
}

#[test]
fn what_is_allowed_passes() {
    let allowed = [
        (
            "message.rs",
            "use crate::{batch::Batch, record::Record, verdict::Verdict};",
        ),
        (
            "bundle/manifest.rs",
            "use super::Calibration;\nuse crate::bundle::golden;",
        ),
        (
            "bundle/mod.rs",
            "/// [`crate::onnx`]\n// tokio::spawn\nmod x { use crate::record::R; }",
        ),
        (
            "record.rs",
            "const A: &str = \"use crate::cli;\"; const B: &str = r#\"\"tokio::\"#;",
        ),
        (
            "record.rs",
            "fn f<'a>(x: &'a str) -> char { '{' }\n#[cfg(test)]\nuse crate::message::M;",
        ),
        (
            "record.rs",
            "#[cfg(test)]\nmod tests { use crate::cli::A; fn f() { tokio::run() } }",
        ),
        (
            "batch.rs",
            "fn f(tracing: Report) { tracing.sort(); port::open(); self::ort() }",
        ),
        (
            "kafka/mod.rs",
            "use crate::config::KafkaSettings;\nuse rdkafka::ClientConfig;",
        ),
        (
            "telemetry.rs",
            "use crate::config::Telemetry;\nuse crate::record::Record;",
        ),
        (
            "pipeline.rs",
            "use crate::{http, kafka::Source, onnx, metrics::Metrics};",
        ),
        (
            "cli/demo.rs",
            "use super::Outcome;\nuse crate::{dataset, evaluation, pipeline};",
        ),
        (
            "daemon.rs",
            "use crate::{failure::Failure, http, pipeline};",
        ),
        (
            "failure.rs",
            "use crate::{dataset, pipeline::PipelineError};",
        ),
        ("main.rs", "use residuald::{cli, telemetry};"),
    ];
    for (path, source) in allowed {
        assert_eq!(
            violations(Path::new(path), source),
            Vec::<String>::new(),
            "{source}"
        );
    }
}

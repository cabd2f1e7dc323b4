//! What the documents tell people to type: every command line is understood, and what can run against a real Apache Kafka runs.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::cluster::cluster;
use crate::common::process::{ended, residuald, signal};
use crate::common::{parse, root, sample, skip, wait_for};
use serde_json::Value;

/// A command line and the document that has it.
#[derive(Debug)]
struct Documented {
    file: String,
    /// Its words, without comment, redirection and variables before it.
    words: Vec<String>,
    /// In running text it may be only the part that matters there.
    inline: bool,
}

impl Documented {
    /// The words behind `program`, if they are for it.
    fn of(&self, program: &str) -> Option<Vec<&str>> {
        let (first, rest) = self.words.split_first()?;
        (Path::new(first).file_name()? == program)
            .then(|| rest.iter().map(String::as_str).collect())
    }

    fn line(&self) -> String {
        self.words.join(" ")
    }
}

/// Documents for people who use or change residuald. What was measured and how stands in others.
fn documents() -> Vec<PathBuf> {
    let folders = [
        "deploy",
        "deploy/helm/residuald",
        "tests",
        "tests/fuzz",
        "models/trainer",
        "benches/peers",
        "docs/src",
        "docs/src/decisions",
        "",
    ];
    let files = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    files.retain(|path| !path.ends_with("CHANGELOG.md"));
    files.sort();
    assert!(files.len() > 30, "{files:?}");
    files
}

fn documented() -> Vec<Documented> {
    let mut all = Vec::new();
    for path in documents() {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        for (i, part) in text.split("```").enumerate() {
            if i % 2 == 1 {
                let block = of_block(part).into_iter();
                all.extend(block.map(|words| Documented {
                    file: file.clone(),
                    words,
                    inline: false,
                }));
                continue;
            }
            let code = part
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|code| !code.contains('\n'));
            all.extend(code.map(|code| Documented {
                file: file.clone(),
                words: words(code),
                inline: true,
            }));
        }
    }
    all
}

/// The commands of a block of shell, or those behind a prompt in a transcript.
fn of_block(block: &str) -> Vec<Vec<String>> {
    let (language, body) = block.split_once('\n').unwrap();
    let body = body.replace("\\\n", " ");
    let lines = body.lines().map(str::trim);
    let mut until: Option<String> = None;
    let mut commands = Vec::new();
    for line in lines {
        if let Some(end) = &until {
            until = until.clone().filter(|_| line != end);
            continue;
        }
        let line = match language {
            "sh" => line,
            _ => line.strip_prefix("$ ").unwrap_or_default(),
        };
        until = line
            .split_once("<<'")
            .and_then(|(_, end)| Some(end.split_once('\'')?.0.to_owned()));
        commands.extend(
            line.split(" && ")
                .flat_map(|part| part.split(" | "))
                .map(words),
        );
    }
    commands.retain(|words| !words.is_empty());
    commands
}

/// The words of a command, by the shell's rules as far as the documents use them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        })
    };
    let assignments = words.iter().take_while(|word| is_variable(word)).count();
    words.drain(..assignments);
    if let Some(at) = words.iter().position(|word| word == ">" || word == "2>") {
        words.truncate(at);
    }
    words
}

/// A person puts something else there.
fn is_placeholder(word: &str) -> bool {
    word.contains('…') || word.chars().all(|c| c.is_ascii_uppercase()) && word.len() > 2
}

/// Why the real parser does not take a command line of ours, if it does not.
fn refusal(words: &[&str]) -> Option<String> {
    let line = std::iter::once("residuald").chain(words.iter().copied());
    match residuald::cli::command().try_get_matches_from(line) {
        Ok(_) => None,
        Err(e) if !e.use_stderr() => None,
        Err(e) => Some(e.to_string()),
    }
}

/// Whether a fragment names a verb and flags that there are.
fn names_what_there_is(words: &[&str]) -> bool {
    let mut at = residuald::cli::command();
    for word in words {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap();
            if flag != "help" && !at.get_arguments().any(|a| a.get_long() == Some(flag)) {
                return false;
            }
        } else if let Some(verb) = at.find_subcommand(word) {
            at = verb.clone();
        }
    }
    at.get_name() != "residuald"
}

#[test]
fn every_command_of_residuald_is_understood() {
    let mut lines = 0;
    for command in documented() {
        let Some(words) = command.of("residuald") else {
            continue;
        };
        lines += 1;
        // Running text may name a part. The runbook is read in a hurry: there a command has to work as it stands.
        let whole = !command.inline || command.file == "deploy/runbook.md" && words.len() > 1;
        if !whole {
            assert!(
                words.is_empty() || names_what_there_is(&words),
                "{command:?}"
            );
        } else if let Some(problem) = refusal(&words) {
            panic!("{}: `{}`: {problem}", command.file, command.line());
        }
    }
    assert!(lines > 70, "{lines}");
}

#[test]
fn the_examples_of_every_verb_are_understood() {
    fn check(command: &clap::Command, lines: &mut usize) {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        for line in help.lines() {
            let line = line
                .trim()
                .trim_start_matches("Example: ")
                .trim_start_matches("Try it: ");
            for line in line.split(" | ") {
                let words = words(line);
                let Some(("residuald", rest)) =
                    words.split_first().map(|(w, rest)| (w.as_str(), rest))
                else {
                    continue;
                };
                *lines += 1;
                let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
                assert_eq!(refusal(&rest), None, "{}: {line}", command.get_name());
            }
        }
        command
            .get_subcommands()
            .for_each(|verb| check(verb, lines));
    }
    let mut lines = 0;
    check(&residuald::cli::command(), &mut lines);
    assert!(lines > 25, "{lines}");
}

#[test]
fn every_command_of_the_trainer_is_understood() {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        return skip("the trainer's commands", "`make venv`");
    }
    let commands = documented();
    let trains = commands
        .iter()
        .filter(|c| !c.inline)
        .filter_map(|c| c.of("residuald-train"));
    let trains: Vec<_> = trains.collect();
    assert!(trains.len() > 15, "{trains:?}");
    let script = "import json, sys\nfrom residuald_train.cli import parser\nfor words in json.loads(sys.argv[1]):\n    print(words, file=sys.stderr)\n    parser().parse_args(words)";
    let told = ended(
        Command::new(python)
            .args(["-c", script, &serde_json::json!(trains).to_string()])
            .env("PYTHONPATH", root().join("models/trainer")),
    );
    told.with_code(0);
}

#[test]
fn every_target_and_file_is_there() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| line.strip_prefix(".PHONY: "))
        .collect();
    let variables: HashSet<&str> = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(" ?=")?.0))
        .collect();
    let mut made = 0;
    for command in documented() {
        if let Some(words) = command.of("make") {
            made += 1;
            for word in words {
                let known = match word.split_once('=') {
                    Some((variable, _)) => variables.contains(variable),
                    None => targets.contains(word),
                };
                assert!(known, "{}: `{}`: {word}", command.file, command.line());
            }
        }
        if let Some(["test", "--test", name, filter @ ..]) = command.of("cargo").as_deref() {
            let module = filter.first().and_then(|of| of.split_once("::"));
            let file = match module {
                Some((module, _)) => format!("tests/{name}/{module}.rs"),
                None if name == &"it" => "tests/it/main.rs".to_owned(),
                None => format!("tests/{name}.rs"),
            };
            assert!(root().join(file).exists(), "{command:?}");
        }
        if command.inline {
            continue;
        }
        // What is in the repository is read; what is not there yet is written by the command or by the reader.
        for word in &command.words {
            let ours = [
                "deploy/",
                "tests/",
                "benches/",
                "models/trainer/",
                "models/payments/",
            ];
            if ours.iter().any(|folder| word.starts_with(folder)) {
                assert!(
                    root().join(word).exists(),
                    "{}: `{}`: {word}",
                    command.file,
                    command.line()
                );
            }
        }
    }
    assert!(made > 30, "{made}");
}

/// Commands that do not run here, by their beginning, and why.
const NOT_HERE: [(&str, &str); 21] = [
    (
        "generate crank",
        "a bundle that the page trains; tests/generate runs the page",
    ),
    (
        "score grid.csv",
        "such a bundle; tests/generate runs the page",
    ),
    ("generate ddpm-parts", "the reader's own pipeline"),
    ("generate stable-diffusion", "the reader's own pipeline"),
    (
        "generate models/textures",
        "its text encoder is not in the repository; tests/diffusion draws from it",
    ),
    (
        "generate models/parts",
        "a bundle for images, which the reader trains",
    ),
    (
        "generate models/mine",
        "a bundle with a generative part, which the reader trains",
    ),
    ("score labelled.ndjson", "what the command before it draws"),
    ("impute", "such a bundle; tests/generate runs it"),
    ("denoise", "such a bundle; tests/generate runs it"),
    ("inpaint stable-diffusion", "the reader's own pipeline"),
    (
        "inpaint models/parts",
        "such a bundle; tests/diffusion runs it",
    ),
    ("translate", "such a bundle; tests/diffusion runs it"),
    ("score parts", "the reader's own images and bundle"),
    ("rehearse", "such a bundle; tests/generate runs it"),
    ("score images/test", "the reader's own images"),
    (
        "score history-labelled.csv",
        "the reader's own records, and a bundle that was trained on them",
    ),
    (
        "check --config residuald.toml --set screen.mode=on",
        "the command before it, of the trainer, makes the screen",
    ),
    (
        "check --bundle models/mine",
        "the command before it, of the trainer, makes the bundle",
    ),
    ("init", "run before all others"),
    ("run", "run beside all others"),
];

/// What a command gets besides what is documented, to end in time and not to be in its own way when it is run twice.
fn besides(words: &[&str]) -> Vec<&'static str> {
    match words {
        ["produce", ..] => vec!["--records", "500"],
        ["calibrate", ..] => vec!["--force"],
        _ => vec![],
    }
}

/// A folder as a reader has it: models, settings and a file of normal records.
fn folder(brokers: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("models")).unwrap();
    for (name, bundle) in [
        ("payments", "payments"),
        ("next", "payments"),
        ("surface", "surface"),
    ] {
        let bundle = root().join("models").join(bundle);
        std::os::unix::fs::symlink(bundle, path.join("models").join(name)).unwrap();
    }
    fs::write(path.join("normal.csv"), csv(&sample(3000))).unwrap();
    let init = in_folder(
        path,
        &["init", "--bundle", "models/payments", "--topic", "payments"],
    );
    init.with_code(0);
    let settings = path.join("residuald.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(
        &settings,
        text.replace("localhost:9092", brokers)
            .replace("127.0.0.1:9464", "127.0.0.1:0"),
    )
    .unwrap();
    folder
}

fn in_folder(folder: &Path, words: &[&str]) -> crate::common::process::Ended {
    ended(residuald().current_dir(folder).args(words))
}

/// The normal ones of these records, with a column for each field.
fn csv(records: &[String]) -> String {
    let records: Vec<Value> = records.iter().map(|r| parse(r.as_bytes())).collect();
    let fields = |record: &Value| -> Vec<(String, String)> {
        let mut fields = Vec::new();
        for (name, value) in record.as_object().unwrap() {
            match value.as_object() {
                Some(inner) => fields.extend(
                    inner
                        .iter()
                        .map(|(field, v)| (format!("{name}.{field}"), text(v))),
                ),
                None => fields.push((name.clone(), text(value))),
            }
        }
        fields
    };
    let header: Vec<String> = fields(&records[0])
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let normal = records.iter().filter(|record| record["label"] == 0);
    let rows = normal.map(|record| {
        let values: std::collections::HashMap<_, _> = fields(record).into_iter().collect();
        let row = header
            .iter()
            .map(|name| values.get(name).cloned().unwrap_or_default());
        row.collect::<Vec<_>>().join(",")
    });
    std::iter::once(header.join(","))
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[test]
fn what_can_run_runs() {
    let Some(cluster) = cluster() else {
        return;
    };
    cluster.create_topics(&["payments", "anomalies", "dead-letters"], 2);
    let folder = folder(&cluster.brokers);
    let mut daemon = residuald()
        .arg("run")
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One record that is a dead letter, for the commands about them.
    fs::write(folder.path().join("bad.ndjson"), "{}").unwrap();
    let bad = in_folder(
        folder.path(),
        &["produce", "bad.ndjson", "--topic", "payments"],
    );
    bad.with_code(0);

    // So many of a card that it can be a segment.
    let cards = vec![sample(20).join("\n"); 30].join("\n");
    fs::write(folder.path().join("cards.ndjson"), cards).unwrap();
    let stream = [
        "produce",
        "cards.ndjson",
        "--topic",
        "payments",
        "--key",
        "card_id",
    ];
    in_folder(folder.path(), &stream).with_code(0);

    let (mut done, mut skipped) = (Vec::<String>::new(), HashSet::new());
    for command in documented() {
        let Some(words) = command.of("residuald") else {
            continue;
        };
        let line = words.join(" ");
        let in_runbook = command.file == "deploy/runbook.md" && words.len() > 1;
        if command.inline && !in_runbook
            || words.iter().any(|word| is_placeholder(word))
            || done.contains(&line)
        {
            continue;
        }
        if let Some((beginning, _)) = NOT_HERE
            .iter()
            .find(|(beginning, _)| line.starts_with(beginning))
        {
            skipped.insert(*beginning);
            continue;
        }
        if words[0] == "dead-letters" && !done.iter().any(|line| line.starts_with("dead-letters")) {
            wait_for("the dead letter", || {
                let list = in_folder(folder.path(), &["dead-letters", "list"]);
                list.stdout.contains("1 letters").then_some(())
            });
        }
        let ended = in_folder(folder.path(), &[&words[..], &besides(&words)].concat());
        println!("residuald {line}\n{}{}", ended.stdout, ended.stderr);
        assert_eq!(
            ended.code,
            Some(0),
            "{}: `residuald {line}`\n{}",
            command.file,
            ended.stderr
        );
        done.push(line);
    }
    assert!(done.len() > 14, "{done:?}");
    let stale: Vec<_> = NOT_HERE
        .iter()
        .filter(|(beginning, _)| !skipped.contains(beginning))
        .collect();
    assert!(stale.is_empty(), "no longer documented: {stale:?}");
    signal(daemon.id(), "TERM");
    assert!(daemon.wait().unwrap().success());
}

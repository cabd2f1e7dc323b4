//! Verbs that write what a new user needs: settings to begin with, manual pages.

mod common;

use std::path::Path;

use common::process::{Ended, ended, residuald};
use common::root;

/// `residuald` in `folder`, with `models` in it as in the repository.
fn in_folder(folder: &Path, arguments: &[&str]) -> Ended {
    ended(residuald().current_dir(folder).args(arguments))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("models"), folder.path().join("models")).unwrap();
    folder
}

#[test]
fn init_writes_settings_that_check_takes() {
    for (bundle, format, rate) in [
        ("models/payments", "json", "0.001"),
        ("models/surface", "image", "0.0042"),
    ] {
        let folder = folder();
        let init = [
            "init", "--bundle", bundle, "--topic", "a \"b\"", "--topic", "c",
        ];
        let told = in_folder(
            folder.path(),
            &[&init[..], &["--brokers", "k1:1,k2:2"]].concat(),
        );
        assert!(told.with_code(0).is_empty(), "{}", told.stderr);
        assert!(
            told.stdout
                .contains("residuald check --config residuald.toml"),
            "{}",
            told.stdout
        );

        let check = in_folder(folder.path(), &["check", "--config", "residuald.toml"]);
        check.with_code(0);
        let (_, placed) = check.stdout.split_once("ok: runs on cpu: ").unwrap();
        let (nodes, on) = placed.split_once(' ').unwrap();
        assert!(nodes.parse::<u32>().unwrap() > 50 && on.starts_with("nodes on CPU\n"));
        let config = in_folder(folder.path(), &["config"]);
        config.with_code(0);
        for setting in [
            "kafka.brokers = \"k1:1,k2:2\"",
            "kafka.topics = [\"a \\\"b\\\"\", \"c\"]",
            &format!("model.bundle = \"{bundle}\""),
            &format!("input.format = \"{format}\""),
            &format!("threshold.false_alarm_rate = {rate}"),
        ] {
            let line = format!("{setting}  # residuald.toml");
            assert!(config.stdout.contains(&line), "{line} in {}", config.stdout);
        }
        let text = std::fs::read_to_string(folder.path().join("residuald.toml")).unwrap();
        let threshold = check.stdout.rsplit_once("above ").unwrap().1;
        let threshold = threshold.split(' ').next().unwrap().parse::<f32>().unwrap();
        assert!(
            text.contains(&format!("scores above {threshold:.4} ")),
            "{text}"
        );
    }
}

#[test]
fn init_overwrites_only_when_it_is_told_to() {
    let folder = folder();
    let file = folder.path().join("own.toml");
    std::fs::write(&file, "mine").unwrap();
    let init = [
        "init",
        "--bundle",
        "models/payments",
        "--topic",
        "a",
        "--out",
        "own.toml",
    ];
    let refused = in_folder(folder.path(), &init);
    assert!(refused.one_line(64).contains("--force"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    in_folder(folder.path(), &[&init[..], &["--force"]].concat()).with_code(0);
    assert!(std::fs::read_to_string(&file).unwrap().contains("[kafka]"));
}

#[test]
fn init_writes_nothing_that_a_start_would_refuse() {
    let folder = folder();
    for (bundle, topic, code, said) in [
        ("models/none", "a", 65, "manifest.json: cannot be read"),
        ("models/payments", "anomalies", 78, "both read and written"),
        (
            "models/payments",
            "dead-letters",
            78,
            "both read and written",
        ),
    ] {
        let ended = in_folder(
            folder.path(),
            &["init", "--bundle", bundle, "--topic", topic],
        );
        assert!(ended.with_code(code).contains(said), "{}", ended.stderr);
        assert!(!folder.path().join("residuald.toml").exists(), "{topic}");
    }
}

#[test]
fn every_verb_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    in_folder(folder.path(), &["man", "."]).with_code(0);
    let main = in_folder(folder.path(), &["man"]);
    main.with_code(0);
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(page("residuald.1"), main.stdout);
    let help = in_folder(folder.path(), &["--help"]).stdout;
    let (_, verbs) = help.split_once("Commands:\n").unwrap();
    let verbs = verbs.lines().take_while(|line| !line.is_empty());
    let named = verbs.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let named: Vec<_> = named.filter(|verb| !["", "help"].contains(verb)).collect();
    assert!(named.len() > 10, "{help}");
    for verb in named {
        let page = page(&format!("residuald-{verb}.1"));
        assert!(page.contains("\n.SH NOTES\n.nf\nExample"), "{verb}: {page}");
        assert!(
            page.contains(&format!("residuald {}", env!("CARGO_PKG_VERSION"))),
            "{page}"
        );
    }
    assert!(page("residuald-dead-letters-replay.1").contains("replay"));
    let nowhere = in_folder(folder.path(), &["man", "no/such/folder"]);
    assert!(nowhere.one_line(64).contains("no/such/folder"));
}

//! Names the settings in a message as its reader sets them: the daemon has settings, a verb has flags, and Python has arguments.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// A setting that flags and arguments have, too, after "set" and with its value.
static SETTING: LazyLock<Regex> = LazyLock::new(|| {
    let setting = r#"(set )?\binput\.(envelope|unwrap|allow_nan|max_unwrapped|bit_depth)\b"#;
    let value = r#"( = (\[[^\]]*\]|"[^"]*"|[a-z0-9]+))?"#;
    Regex::new(&format!("{setting}{value}")).expect("a valid pattern")
});

/// Who sets what a message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetBy {
    /// Flags of a verb: `--envelope connect`.
    Flags,
    /// Arguments in Python: `envelope=["connect"]`.
    Arguments,
}

impl SetBy {
    /// Returns a message about settings of the daemon with the names of the flags or arguments.
    pub fn named(self, message: &str) -> Cow<'_, str> {
        SETTING.replace_all(message, |found: &Captures<'_>| {
            let set = found.get(1).map_or("", |_| "give ");
            let value = found.get(4).map(|value| value.as_str());
            format!("{set}{}", self.setting(&found[2], value))
        })
    }

    fn setting(self, name: &str, value: Option<&str>) -> String {
        let flag = || format!("--{}", name.replace('_', "-"));
        match (self, value) {
            (SetBy::Flags, None | Some("true")) => flag(),
            (SetBy::Flags, Some(value)) => {
                let plain = value.replace(['"', '[', ']', ' '], "");
                format!("{} {plain}", flag())
            }
            (SetBy::Arguments, None) => name.to_owned(),
            (SetBy::Arguments, Some("true")) => format!("{name}=True"),
            (SetBy::Arguments, Some(value)) if name == "envelope" && value.starts_with('"') => {
                format!("{name}=[{value}]")
            }
            (SetBy::Arguments, Some(value)) => format!("{name}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_as_its_reader_sets_it() {
        for (message, flags, arguments) in [
            (
                "it looks like X: set input.envelope = \"connect\" and input.unwrap = \"payload.a\"",
                "it looks like X: give --envelope connect and --unwrap payload.a",
                "it looks like X: give envelope=[\"connect\"] and unwrap=\"payload.a\"",
            ),
            (
                "set input.envelope = [\"cloudevents\", \"debezium\"]",
                "give --envelope cloudevents,debezium",
                "give envelope=[\"cloudevents\", \"debezium\"]",
            ),
            (
                "or set input.allow_nan = true, which reads it as missing",
                "or give --allow-nan, which reads it as missing",
                "or give allow_nan=True, which reads it as missing",
            ),
            (
                "input.max_unwrapped is 5: raise it",
                "--max-unwrapped is 5: raise it",
                "max_unwrapped is 5: raise it",
            ),
            (
                "but input.bit_depth = 12 allows at most 4095",
                "but --bit-depth 12 allows at most 4095",
                "but bit_depth=12 allows at most 4095",
            ),
            ("input.enveloped", "input.enveloped", "input.enveloped"),
            ("field `a`", "field `a`", "field `a`"),
        ] {
            assert_eq!(SetBy::Flags.named(message), flags);
            assert_eq!(SetBy::Arguments.named(message), arguments);
        }
    }
}

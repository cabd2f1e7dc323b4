//! `[memory]`: the memory limit of the process.

use super::settings::Settings;
use crate::memory;

/// Returns the maximum memory of the process in bytes. If `None`, the system's limit applies.
pub(super) fn limit(s: &mut Settings) -> Option<u64> {
    let text = s.text("memory.limit");
    let limit = memory::parse(&text);
    if limit.is_none() && text != "auto" {
        s.problem(format!(
            "memory.limit = \"{text}\": expected \"auto\", or a size such as \"768MiB\" or \"2GiB\""
        ));
    }
    limit
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{SMALLEST, load};

    #[test]
    fn the_memory_limit_is_a_size_or_what_the_system_grants() {
        let limit = |flag: &str| load(SMALLEST, &[], &[flag]).map(|config| config.memory_limit);
        assert_eq!(limit("memory.limit=auto"), Ok(None));
        assert_eq!(limit("memory.limit=768MiB"), Ok(Some(768 << 20)));
        assert_eq!(limit("memory.limit=536870912"), Ok(Some(512 << 20)));
        let error = limit("memory.limit=plenty").unwrap_err();
        assert!(error.contains("memory.limit = \"plenty\""), "{error}");
    }
}

//! Makes glibc's allocator return large freed blocks to the system at once.

/// Must be called before threads start. Does nothing if the environment sets MALLOC_ variables.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    const LARGE: libc::c_int = 1 << 20;
    if std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"MALLOC_")) {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 64));
    // By default, freeing a large block raises the size up to which glibc keeps blocks, in each of up to eight arenas
    // per core.
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, 4 * LARGE),
        (libc::M_ARENA_MAX, cores as libc::c_int),
    ] {
        // SAFETY: mallopt takes two numbers.
        if unsafe { libc::mallopt(setting, value) } != 1 {
            tracing::debug!("mallopt({setting}, {value}) was refused");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}

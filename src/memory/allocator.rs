//! glibc's allocator keeps what is freed; here large blocks go back to the system at once.

/// To be called before threads start. What the environment says of it wins.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    const LARGE: libc::c_int = 1 << 20;
    if std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"MALLOC_")) {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 64));
    // Left alone, the first large block that is freed makes glibc keep all that are as large, one heap for each of eight
    // times as many arenas as there are cores.
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, 4 * LARGE),
        (libc::M_ARENA_MAX, cores as libc::c_int),
    ] {
        // SAFETY: it takes two numbers.
        if unsafe { libc::mallopt(setting, value) } != 1 {
            tracing::debug!("mallopt({setting}, {value}) is refused");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}

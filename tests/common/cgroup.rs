//! A cgroup of the test's own that limits memory, below the one that the test runs in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::process::signal;

/// Removed when it is dropped; what still runs in it is killed before.
pub struct Group {
    dir: PathBuf,
    /// v1 and v2 call their files differently.
    v1: bool,
}

impl Group {
    /// # Errors
    /// Why there can be none.
    pub fn limited_to(bytes: u64) -> Result<Group, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let path = |what: fn(&str) -> bool| {
            own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                what(controllers).then_some(parts.next()?.trim_start_matches('/').to_owned())
            })
        };
        // One for each test, which may run beside another.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("residuald-test-{}-{number}", std::process::id());
        let v1 = path(|controllers| controllers.split(',').any(|c| c == "memory"));
        let (dir, v1) = match v1 {
            Some(own) => (Path::new("/sys/fs/cgroup/memory").join(own), true),
            None => {
                let own = path(str::is_empty).unwrap_or_default();
                (Path::new("/sys/fs/cgroup").join(own), false)
            }
        };
        let group = Group {
            dir: dir.join(name),
            v1,
        };
        let problem = |e: std::io::Error| format!("{}: {e}", group.dir.display());
        fs::create_dir(&group.dir).map_err(problem)?;
        let limit = group
            .dir
            .join(group.file("memory.limit_in_bytes", "memory.max"));
        // In v2 the file is there only where the group above hands the controller down.
        fs::write(&limit, bytes.to_string()).map_err(|e| format!("{}: {e}", limit.display()))?;
        Ok(group)
    }

    fn file(&self, v1: &'static str, v2: &'static str) -> &'static str {
        if self.v1 { v1 } else { v2 }
    }

    /// Runs `program` in it: the command's arguments are the program's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.dir.join("cgroup.procs"))
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// The most that was taken, page cache included.
    pub fn peak(&self) -> u64 {
        let file = self.file("memory.max_usage_in_bytes", "memory.peak");
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Processes that the kernel has killed for memory.
    pub fn killed(&self) -> u64 {
        let file = self.file("memory.oom_control", "memory.events");
        let text = fs::read_to_string(self.dir.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count of kills").trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            signal(pid, "KILL");
        }
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

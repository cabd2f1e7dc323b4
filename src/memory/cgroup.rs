//! Finds the memory that the system allows: the lowest limit of the cgroup and its ancestors (v1 or v2), or the
//! machine's memory.

use std::fs;
use std::path::{Path, PathBuf};

use super::Limit;

/// A mount point of cgroups of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// The cgroup that is mounted at `at`. Without a cgroup namespace, it may differ from /.
    root: String,
    at: PathBuf,
    /// The names of the files with limits. In v2, `high` throttles the process before `max` kills it.
    files: &'static [&'static str],
}

/// Returns the limit of this process. `proc` is the mount point of procfs.
pub fn limit(proc: &Path) -> Option<Limit> {
    let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let (mounts, groups) = (read("self/mountinfo"), read("self/cgroup"));
    let machine = kib(&read("meminfo"), "MemTotal:").map(|bytes| Limit {
        bytes,
        from: "the machine's memory".to_owned(),
    });
    let limits = mounts.lines().filter_map(mount).filter_map(|mount| {
        let group = group(&groups, &mount)?;
        least(&mount, &group)
    });
    limits.chain(machine).min_by_key(|limit| limit.bytes)
}

/// Returns a value of /proc/self/status in bytes.
pub fn status_kib(proc: &Path, name: &str) -> Option<u64> {
    kib(&fs::read_to_string(proc.join("self/status")).ok()?, name)
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = line.split_whitespace().next()?;
    Some(number.parse::<u64>().ok()? << 10)
}

/// Parses a line of /proc/self/mountinfo, if it mounts cgroups that limit memory.
fn mount(line: &str) -> Option<Mount> {
    let (own, system) = line.split_once(" - ")?;
    let own: Vec<&str> = own.split(' ').collect();
    let system: Vec<&str> = system.split(' ').collect();
    let files: &[&str] = match *system.first()? {
        "cgroup2" => &["memory.max", "memory.high"],
        "cgroup" if system.get(2)?.split(',').any(|o| o == "memory") => &["memory.limit_in_bytes"],
        _ => return None,
    };
    Some(Mount {
        root: (*own.get(3)?).to_owned(),
        at: PathBuf::from(own.get(4)?),
        files,
    })
}

/// Returns the path below the mount point, from the lines `number:controllers:path` of /proc/self/cgroup.
fn group(groups: &str, mount: &Mount) -> Option<PathBuf> {
    let v2 = mount.files.len() > 1;
    let path = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let own = match v2 {
            true => controllers.is_empty(),
            false => controllers.split(',').any(|c| c == "memory"),
        };
        own.then_some(path)
    })?;
    // A path outside the mounted root belongs to another namespace, so the mounted root is used.
    let below = path.strip_prefix(&mount.root).unwrap_or_default();
    Some(PathBuf::from(below.trim_start_matches('/')))
}

fn least(mount: &Mount, group: &Path) -> Option<Limit> {
    let folders = group.ancestors().map(|above| mount.at.join(above));
    let files = folders.flat_map(|folder| mount.files.iter().map(move |file| folder.join(file)));
    let limits = files.filter_map(|file| {
        let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some(Limit {
            bytes,
            from: file.display().to_string(),
        })
    });
    limits.min_by_key(|limit| limit.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a /proc and a /sys/fs/cgroup in a folder. `{}` stands for that folder.
    fn system(mountinfo: &str, groups: &str, files: &[(&str, &str)]) -> Option<Limit> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let mut all = vec![
            ("proc/self/mountinfo", mountinfo.replace("{}", root)),
            ("proc/self/cgroup", groups.to_owned()),
            ("proc/meminfo", "MemTotal:  8388608 kB\n".to_owned()),
        ];
        all.extend(files.iter().map(|(path, text)| (*path, (*text).to_owned())));
        for (path, text) in all {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut limit = limit(&dir.path().join("proc"))?;
        limit.from = limit.from.replace(root, "");
        Some(limit)
    }

    const V2: &str = "31 23 0:28 / {}/cg rw,relatime - cgroup2 cgroup2 rw";
    const V1: &str = "35 31 0:32 / {}/cg/memory rw - cgroup cgroup rw,memory\n36 31 0:33 / {}/cg/cpu rw - cgroup cgroup rw,cpu";

    #[test]
    fn v2_is_read_up_to_its_root() {
        let groups = "0::/pod/container\n";
        let files = [
            ("cg/pod/container/memory.max", "max\n"),
            ("cg/pod/container/memory.high", "900000000\n"),
            ("cg/pod/memory.max", "1000000000\n"),
        ];
        let limit = system(V2, groups, &files).unwrap();
        assert_eq!(limit.bytes, 900_000_000);
        assert_eq!(limit.from, "/cg/pod/container/memory.high");
        let limit = system(V2, groups, &files[2..]).unwrap();
        assert_eq!(limit.from, "/cg/pod/memory.max");
    }

    #[test]
    fn v1_has_its_own_file_and_mount() {
        let groups = "4:memory:/docker/abc\n3:cpu:/\n0::/\n";
        let file = "cg/memory/docker/abc/memory.limit_in_bytes";
        let limit = system(V1, groups, &[(file, "536870912\n")]).unwrap();
        assert_eq!(limit.bytes, 512 << 20);
        // Docker mounts the container's own cgroup as the root.
        let mounted = V1.replace("0:32 / ", "0:32 /docker/abc ");
        let file = "cg/memory/memory.limit_in_bytes";
        let limit = system(&mounted, groups, &[(file, "536870912\n")]).unwrap();
        assert_eq!(limit.bytes, 512 << 20);
        let endless = system(V1, groups, &[(file, "9223372036854771712\n")]).unwrap();
        assert_eq!(endless.from, "the machine's memory");
    }

    #[test]
    fn without_a_cgroup_it_is_the_machines() {
        let limit = system("", "", &[]).unwrap();
        assert_eq!(
            (limit.bytes, limit.from.as_str()),
            (8 << 30, "the machine's memory")
        );
        assert_eq!(super::limit(Path::new("/nowhere")), None);
    }
}

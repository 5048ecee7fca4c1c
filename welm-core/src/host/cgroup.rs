//! Reads the limits of this process's control groups (cgroups), which are the limits of its container.
//!
//! A limit may be set at the process's own group or at any group above it. The files of a group are below the mount
//! point of its hierarchy. Version 2 has one hierarchy, version 1 has one for each controller, and a system may have
//! both. `/proc/self/cgroup` says which groups this process is in, `/proc/self/mountinfo` where hierarchies are
//! mounted. The two may not fit together. In a container, the path of the group may be the host's path, of which only
//! the end is mounted, or it may lie outside the mount (`/../other`). So all folders are read from the group, or from
//! the part of its path that exists, up to the mount point. A file that cannot be read sets no limit.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The folders of this process's groups: for each hierarchy from the process's own group upwards.
pub(crate) struct Cgroups {
    /// Version 2.
    unified: Vec<PathBuf>,
    /// Version 1, controller `memory`.
    memory: Vec<PathBuf>,
    /// Version 1, controller `cpu`.
    cpu: Vec<PathBuf>,
}

/// A line of `mountinfo`: folder `root` of a hierarchy is mounted at `point`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// Parses a line `31 23 0:28 ROOT POINT rw,relatime ... - KIND source OPTIONS`.
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let mut back = back.split(' ');
        Some(Mount { root: front.next()?, point: front.next()?, kind: back.next()?, options: back.nth(1)? })
    }
}

/// Replaces the octal escapes of `mountinfo`, such as `\040` for a space.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or("").to_string();
    for part in parts {
        match part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) if code.is_ascii() => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// The part of `path` below `root`; empty if `path` is not below it.
fn below(path: &str, root: &str) -> PathBuf {
    let rest = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
    let rest = if plain { rest } else { Path::new("") };
    rest.strip_prefix("/").unwrap_or(rest).to_path_buf()
}

impl Cgroups {
    /// The groups of this process.
    pub(crate) fn of_this_process() -> Self {
        Self::find(Path::new("/"))
    }

    /// The groups of this process, with `fs` as the root of the file system.
    fn find(fs: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(fs.join("proc/self").join(name)).unwrap_or_default();
        let (groups, mounts) = (read("cgroup"), read("mountinfo"));
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        // A line is `4:memory:/path`, or `0::/path` for version 2.
        let path = |controller: &str| {
            let line = |line: &'_ str| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                controllers.split(',').any(|c| c == controller).then(|| path.to_string())
            };
            groups.lines().find_map(line).unwrap_or_else(|| "/".into())
        };
        // Looks at the mount points in `mountinfo` and at the usual ones, because `mountinfo` may not show all mounts.
        let chain = |controller: &str, mounted: &dyn Fn(&Mount) -> bool, usual: &[&str]| {
            let path = path(controller);
            let mut folders: Vec<PathBuf> = Vec::new();
            let mut climb = |point: &str, rest: PathBuf| {
                let point = fs.join(point.trim_start_matches('/'));
                let group = point.join(rest);
                let above = group.ancestors().take_while(|folder| folder.starts_with(&point));
                folders.extend(above.filter(|folder| folder.is_dir()).map(Path::to_path_buf));
            };
            for mount in mounts.iter().filter(|m| mounted(m)) {
                climb(&unescaped(mount.point), below(&path, &unescaped(mount.root)));
            }
            usual.iter().for_each(|point| climb(point, below(&path, "/")));
            folders.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));
            folders.dedup();
            folders
        };
        let version_1 = |controller: &'static str| {
            move |m: &Mount| m.kind == "cgroup" && m.options.split(',').any(|option| option == controller)
        };
        let cpu = ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"];
        Cgroups {
            unified: chain("", &|m| m.kind == "cgroup2", &["sys/fs/cgroup", "sys/fs/cgroup/unified"]),
            memory: chain("memory", &version_1("memory"), &["sys/fs/cgroup/memory"]),
            cpu: chain("cpu", &version_1("cpu"), &cpu),
        }
    }

    /// Bytes that the process may still take before the first group reaches its limit; `None` if no group has a limit.
    ///
    /// Memory that the kernel drops before it kills a process does not count as used: cached files and reclaimable
    /// kernel memory, as in `MemAvailable` of a machine. (Files in `tmpfs` do count.) Swap does not count as memory,
    /// because a swapped model is too slow to use. `memory.high` counts as a limit, because the kernel slows down a
    /// group above it very much.
    pub(crate) fn memory(&self) -> Option<u64> {
        let unified = self.unified.iter().filter_map(|group| {
            let limits = ["memory.max", "memory.high"].iter().filter_map(|file| number(&group.join(file)));
            let stat = Stat::read(group);
            let dropped =
                ["inactive_file", "active_file", "slab_reclaimable"].iter().filter_map(|key| stat.get(key));
            let used = number(&group.join("memory.current"))?.saturating_sub(dropped.sum());
            Some(limits.min()?.saturating_sub(used))
        });
        let memory = self.memory.iter().enumerate().filter_map(|(above, group)| {
            // In old kernels, limits of groups above may be switched off.
            if above > 0 && number(&group.join("memory.use_hierarchy")) == Some(0) {
                return None;
            }
            let stat = Stat::read(group);
            // The second is the smallest limit of all groups above, also of those that are not mounted here.
            let limits =
                [number(&group.join("memory.limit_in_bytes")), stat.get("hierarchical_memory_limit")];
            let dropped = |total: &str, own: &str| stat.get(total).or_else(|| stat.get(own)).unwrap_or(0);
            let dropped = dropped("total_inactive_file", "inactive_file")
                .saturating_add(dropped("total_active_file", "active_file"));
            let used = number(&group.join("memory.usage_in_bytes"))?.saturating_sub(dropped);
            Some(limits.into_iter().flatten().min()?.saturating_sub(used))
        });
        unified.chain(memory).min()
    }

    /// The smallest CPU quota in whole processors, at least 1; `None` if there is no quota.
    pub(crate) fn cpus(&self) -> Option<usize> {
        // `max 100000` or `150000 100000`: quota and period in microseconds.
        let unified = self.unified.iter().filter_map(|group| {
            let text = fs::read_to_string(group.join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?))
        });
        // The quota is -1 if there is none.
        let cpu = self.cpu.iter().filter_map(|group| {
            Some((number(&group.join("cpu.cfs_quota_us"))?, number(&group.join("cpu.cfs_period_us"))?))
        });
        let whole = |(quota, period): (u64, u64)| Some(quota.checked_div(period)?.max(1) as usize);
        unified.chain(cpu).filter_map(whole).min()
    }
}

/// The number in a file; `None` for `max`, for -1, and for anything else that is not a number.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The file `memory.stat`: each line has a name and a number.
struct Stat(String);

impl Stat {
    fn read(group: &Path) -> Self {
        Stat(fs::read_to_string(group.join("memory.stat")).unwrap_or_default())
    }

    fn get(&self, key: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, as the root of a file system, and the groups found there.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = Cgroups::find(root.path());
        (root, found)
    }

    fn memory(files: &[(&str, &str)]) -> Option<u64> {
        system(files).1.memory()
    }

    fn cpus(files: &[(&str, &str)]) -> Option<usize> {
        system(files).1.cpus()
    }

    const V2: (&str, &str) =
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");

    #[test]
    fn a_limit_counts_without_what_the_kernel_would_drop() {
        let stat =
            "anon 300\nfile 5000\ninactive_file 3000\nactive_file 1500\nslab_reclaimable 100\nshmem 500\n";
        let own = |file: &str| format!("sys/fs/cgroup/app/{file}");
        let (max, current, stats) = (own("memory.max"), own("memory.current"), own("memory.stat"));
        let high = own("memory.high");
        let mut files = vec![V2, ("proc/self/cgroup", "0::/app\n")];
        assert_eq!(memory(&files), None);
        files.extend([(&*max, "10000\n"), (&*current, "6000\n")]);
        assert_eq!(memory(&files), Some(4_000));
        files.push((&stats, stat));
        assert_eq!(memory(&files), Some(10_000 - (6_000 - 4_600)));
        files.push((&high, "8000\n"));
        assert_eq!(memory(&files), Some(8_000 - 1_400));
        // The kernel could drop more than is used; then more is used than the limit allows.
        files[3].1 = "100\n";
        assert_eq!(memory(&files), Some(8_000));
        files[3].1 = "20000\n";
        assert_eq!(memory(&files), Some(0));
    }

    #[test]
    fn every_group_above_counts_with_its_own_use() {
        let files = [
            V2,
            ("proc/self/cgroup", "0::/pod/app\n"),
            ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/app/memory.current", "100\n"),
            ("sys/fs/cgroup/pod/memory.max", "5000\n"),
            ("sys/fs/cgroup/pod/memory.current", "2000\n"),
            ("sys/fs/cgroup/memory.max", "9000\n"),
            ("sys/fs/cgroup/memory.current", "8500\n"),
            ("sys/fs/cgroup/pod/other/memory.max", "1\n"),
            ("sys/fs/cgroup/pod/other/memory.current", "1\n"),
            ("sys/fs/memory.max", "1\n"),
            ("sys/fs/memory.current", "1\n"),
        ];
        assert_eq!(memory(&files), Some(500));
        assert_eq!(memory(&files[..6]), Some(3_000));
        assert_eq!(memory(&files[..4]), None);
    }

    #[test]
    fn what_is_mounted_need_not_be_the_path() {
        let point = [("mnt/my groups/memory.max", "1000\n"), ("mnt/my groups/memory.current", "1\n")];
        let inner = [("mnt/my groups/a/memory.max", "500\n"), ("mnt/my groups/a/memory.current", "1\n")];
        let mount = |root: &str| format!("9 1 0:2 {root} /mnt/my\\040groups rw shared:3 - cgroup2 none rw\n");
        for (root, path, inside) in [
            ("/", "/", false),
            ("/", "/a", true),
            ("/", "/a/gone/too", true), // only the first part of the path exists
            ("/docker/7", "/docker/7", false), // the host's path, of which the end is mounted
            ("/docker/7", "/docker/7/a", true),
            ("/docker/7", "/docker/77/a", false), // begins alike, but is another folder
            ("/docker/7", "/system", false),
            ("/..", "/", false),   // a namespace below the mount
            ("/", "/../b", false), // moved out of the namespace
            ("/", "/a/../..", false),
        ] {
            let (mount, path) = (mount(root), format!("0::{path}\n"));
            let mut files = vec![("proc/self/mountinfo", &*mount), ("proc/self/cgroup", &*path)];
            files.extend(point.iter().chain(&inner));
            assert_eq!(memory(&files), Some(if inside { 499 } else { 999 }), "{root} {path}");
        }
    }

    #[test]
    fn version_1_and_both_at_once() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\nhierarchical_memory_limit 2500\n";
        let files = [
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", "9:name=systemd:/x\n4:memory:/pod/app\n2:cpu,cpuacct:/fast\n0::/u\n"),
            ("sys/fs/cgroup/memory/pod/app/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/pod/app/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "4000\n"),
            ("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "3000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/fast/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/fast/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!((memory(&files), cpus(&files)), (Some(1_000), Some(2)));
        let with = |more: &[(&'static str, &'static str)]| [&files[..], more].concat();
        assert_eq!(
            memory(&with(&[("sys/fs/cgroup/memory/pod/memory.use_hierarchy", "0\n")])).unwrap() >> 60,
            7
        );
        assert_eq!(memory(&with(&[("sys/fs/cgroup/memory/pod/memory.use_hierarchy", "1\n")])), Some(1_000));
        // The limit of a group above that is not mounted here is in `memory.stat`.
        let stat = with(&[("sys/fs/cgroup/memory/pod/app/memory.stat", stat)]);
        assert_eq!(memory(&[&stat[..4], &stat[8..]].concat()), Some(2_500 - 700));
        // With both versions, the smaller limit counts.
        let both = with(&[
            ("sys/fs/cgroup/unified/u/memory.max", "700\n"),
            ("sys/fs/cgroup/unified/u/memory.current", "0\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!((memory(&both), cpus(&both)), (Some(700), Some(1)));
    }

    #[test]
    fn quotas_of_version_2() {
        let files = |own: &'static str, above: &'static str| {
            let own = ("sys/fs/cgroup/app/cpu.max", own);
            cpus(&[V2, ("proc/self/cgroup", "0::/app\n"), own, ("sys/fs/cgroup/cpu.max", above)])
        };
        assert_eq!(files("max 100000\n", "max 100000\n"), None);
        assert_eq!(files("350000 100000\n", "max 100000\n"), Some(3));
        assert_eq!(files("350000 100000\n", "200000 100000\n"), Some(2));
        assert_eq!(files("10000 100000\n", "200000 100000\n"), Some(1));
        assert_eq!(files("10000 0\n", ""), None);
    }

    #[test]
    fn what_cannot_be_read_sets_no_limit() {
        assert_eq!((memory(&[]), cpus(&[])), (None, None));
        let (max, current) =
            (("sys/fs/cgroup/memory.max", "1000\n"), ("sys/fs/cgroup/memory.current", "1\n"));
        // Without /proc, the usual mount points are used.
        assert_eq!(memory(&[max, current]), Some(999));
        for garbage in ["", "\n", "-1\n", "lots\n", "99999999999999999999999999\n", "\u{0}\u{1}", "1 2 3"] {
            let (max, current) =
                (("sys/fs/cgroup/memory.max", garbage), ("sys/fs/cgroup/memory.current", garbage));
            assert_eq!(memory(&[max, current]), None, "{garbage:?}");
            let stat = ("sys/fs/cgroup/memory.stat", garbage);
            let limited =
                [("sys/fs/cgroup/memory.max", "1000\n"), ("sys/fs/cgroup/memory.current", "1\n"), stat];
            assert_eq!(memory(&limited), Some(999), "{garbage:?}");
            let lines =
                [("proc/self/cgroup", garbage), ("proc/self/mountinfo", garbage), limited[0], limited[1]];
            assert_eq!(memory(&lines), Some(999), "{garbage:?}");
            assert_eq!(cpus(&[("sys/fs/cgroup/cpu.max", garbage)]), None, "{garbage:?}");
        }
        for line in ["0::", "::::", "0:", ":memory", "1 2 3 4 - cgroup2", "1 2 0:3 / /x rw - cgroup", " - "] {
            assert_eq!(memory(&[("proc/self/cgroup", line), ("proc/self/mountinfo", line)]), None, "{line}");
        }
        // A file that is not text, and a folder in the place of a file.
        let (root, _) =
            system(&[("sys/fs/cgroup/memory.current", "1\n"), ("sys/fs/cgroup/memory.max/x", "")]);
        fs::write(root.path().join("sys/fs/cgroup/memory.stat"), [0xFF, 0xFE]).unwrap();
        assert_eq!(Cgroups::find(root.path()).memory(), None);
    }

    #[test]
    fn escapes_of_mountinfo() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\9\04"), r"/a\9\04");
        assert_eq!(unescaped("/ä\\777é"), "/ä\\777é");
    }
}

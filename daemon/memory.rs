//! How much memory this machine has for a process.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that this process may use: those of the machine, or those of its control group
/// where these are fewer. `None` where the system does not say.
pub(crate) fn total_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total_of);
    let group = fs::read_to_string("/proc/self/cgroup").ok().as_deref().and_then(group_of);
    let limits = group.iter().flat_map(|group| group.ancestors()).filter_map(|group| {
        let limit = fs::read_to_string(group.join("memory.max")).ok()?;
        // The word `max` is no limit.
        limit.trim().parse().ok()
    });
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The folder of a process's group (version 2), of its `/proc/self/cgroup`.
fn group_of(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_system_are_understood() {
        let meminfo = "MemTotal:       24682916 kB\nMemFree:        14462888 kB\n";
        assert_eq!(total_of(meminfo), Some(24_682_916 << 10));
        assert_eq!(total_of("MemTotal: many kB\n"), None);
        let group = group_of("1:cpu:/x\n0::/system.slice/m40d.service\n");
        assert_eq!(group, Some("/sys/fs/cgroup/system.slice/m40d.service".into()));
        assert_eq!(group_of("1:cpu:/x\n"), None);
        assert!(total_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}

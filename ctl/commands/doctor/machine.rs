//! What the files of the kernel say of cards, their driver and processes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use m40_control::PciAddress;
use m40_control::paths::Env;
use rustix::fs::{Access, access, statvfs};

/// Most bytes that are read of a file: all of these are short.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Number of NVIDIA among makers of PCI devices.
const NVIDIA: u32 = 0x10de;
/// NVRTC's file, of the last CUDA that compiles for Maxwell.
const NVRTC: &str = "libnvrtc.so.12";
/// Where libraries are that programs find by themselves.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
];

/// A graphics card of NVIDIA's on the bus, with a driver or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gpu {
    pub address: PciAddress,
    /// Its number among NVIDIA's devices, which grow with the generations.
    pub device: u32,
    /// The kernel's driver that has it, such as `nvidia` or `nouveau`.
    pub driver: Option<String>,
    /// Lanes of its link now, and those that it has.
    pub lanes: Option<(u32, u32)>,
    /// Speed of the link now, and the highest, as the kernel writes it.
    pub speed: Option<(String, String)>,
}

/// NVIDIA's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Driver {
    pub version: String,
    /// Whether its kernel modules are those with open sources.
    pub open: bool,
}

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub path: PathBuf,
    pub state: NodeState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeState {
    Usable,
    Missing,
    /// This user may not read and write it.
    Denied,
}

/// The disk that a folder is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub dir: PathBuf,
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A process that is an m40d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    pub uid: u32,
}

/// The beginning of a file, if it is text.
fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// A number as sysfs writes it.
fn number(path: &Path) -> Option<u32> {
    let text = text(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// NVIDIA's cards, in the order of their addresses; `root` is `/`, but in tests.
pub(super) fn gpus(root: &Path) -> Vec<Gpu> {
    let entries = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    let mut gpus: Vec<_> = entries.filter_map(|entry| gpu(&entry.path())).collect();
    gpus.sort_by_key(|gpu| gpu.address);
    gpus
}

fn gpu(dir: &Path) -> Option<Gpu> {
    let is_display = number(&dir.join("class"))? >> 16 == 3;
    if number(&dir.join("vendor"))? != NVIDIA || !is_display {
        return None;
    }
    let pair = |now: &str, most: &str| Some((text(&dir.join(now))?, text(&dir.join(most))?));
    let driver = fs::read_link(dir.join("driver")).ok();
    let lanes = pair("current_link_width", "max_link_width");
    Some(Gpu {
        address: dir.file_name()?.to_str()?.parse().ok()?,
        device: number(&dir.join("device"))?,
        driver: driver.and_then(|driver| Some(driver.file_name()?.to_str()?.to_owned())),
        lanes: lanes.and_then(|(now, most)| Some((now.parse().ok()?, most.parse().ok()?))),
        speed: pair("current_link_speed", "max_link_speed"),
    })
}

/// The driver, if it is loaded.
pub(super) fn driver(root: &Path) -> Option<Driver> {
    let said = text(&root.join("proc/driver/nvidia/version"))?;
    let first = said.lines().next()?;
    let is_version =
        |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    let version = first.split_whitespace().find(is_version)?.to_owned();
    Some(Driver { version, open: first.contains("Open Kernel Module") })
}

/// The device files that CUDA opens for so many cards.
pub(super) fn nodes(root: &Path, gpus: usize) -> Vec<Node> {
    let cards = (0..gpus).map(|card| format!("nvidia{card}"));
    let names = ["nvidiactl".to_owned(), "nvidia-uvm".to_owned()].into_iter().chain(cards);
    let node = |name: String| {
        let path = root.join("dev").join(name);
        let state = match access(&path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => NodeState::Usable,
            Err(rustix::io::Errno::NOENT) => NodeState::Missing,
            Err(_) => NodeState::Denied,
        };
        Node { path, state }
    };
    names.map(node).collect()
}

/// NVRTC where m40d looks for it, and whether only this user has it.
pub(super) fn nvrtc(root: &Path, env: &Env) -> Option<(PathBuf, bool)> {
    let named = env.var("M40_NVRTC").map(PathBuf::from);
    let set = env.var("CUDA_HOME").map(|home| Path::new(home).join("lib64"));
    let searched = env.var("LD_LIBRARY_PATH").unwrap_or_default().split(':');
    let searched = searched.filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dirs = set.into_iter().chain([root.join("usr/lib/m40d")]).chain(searched);
    let system = LIBRARIES.iter().map(|dir| root.join(dir.trim_start_matches('/')));
    let files = named.into_iter().chain(dirs.chain(system).map(|dir| dir.join(NVRTC)));
    let cache = env.var("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(env.var("HOME")?).join(".cache")));
    let own = cache.map(|cache| cache.join("m40d/nvrtc-12.9").join(NVRTC));
    let of_all = files.into_iter().find(|file| file.is_file()).map(|file| (file, false));
    of_all.or_else(|| Some((own.filter(|file| file.is_file())?, true)))
}

/// The disk of a folder that may still have to be made.
pub(super) fn disk(dir: &Path) -> Option<Disk> {
    let there = dir.ancestors().find(|dir| dir.exists())?;
    let found = statvfs(there).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let (free_bytes, total_bytes) = (bytes(found.f_bavail), bytes(found.f_blocks));
    Some(Disk { dir: dir.to_path_buf(), free_bytes, total_bytes })
}

/// Bytes that a process may lock; `u64::MAX` where there is no limit.
pub(super) fn memlock(root: &Path, pid: &str) -> Option<u64> {
    let limits = text(&root.join("proc").join(pid).join("limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// All daemons, whoever runs them.
pub(super) fn daemons(root: &Path) -> Vec<Process> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let process = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let is_daemon = text(&entry.path().join("comm"))? == "m40d";
        is_daemon.then_some(())?;
        Some(Process { pid, uid: entry.metadata().ok()?.uid() })
    };
    let mut processes: Vec<_> = entries.filter_map(process).collect();
    processes.sort_by_key(|process| process.pid);
    processes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    #[test]
    fn cards_are_found_on_the_bus_without_a_driver() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let device = "sys/bus/pci/devices/0000:03:00.0";
        for (name, text) in [
            ("vendor", "0x10de\n"),
            ("class", "0x030200\n"),
            ("device", "0x17fd\n"),
            ("current_link_width", "8\n"),
            ("max_link_width", "16\n"),
            ("current_link_speed", "2.5 GT/s PCIe\n"),
            ("max_link_speed", "8.0 GT/s PCIe\n"),
        ] {
            write(root, &format!("{device}/{name}"), text);
        }
        // Its audio, and a card of another maker.
        for (address, vendor, class) in
            [("0000:03:00.1", "0x10de", "0x040300"), ("0000:00:02.0", "0x8086", "0x030000")]
        {
            write(root, &format!("sys/bus/pci/devices/{address}/vendor"), vendor);
            write(root, &format!("sys/bus/pci/devices/{address}/class"), class);
            write(root, &format!("sys/bus/pci/devices/{address}/device"), "0x1");
        }
        let gpu = Gpu {
            address: "0000:03:00.0".parse().unwrap(),
            device: 0x17fd,
            driver: None,
            lanes: Some((8, 16)),
            speed: Some(("2.5 GT/s PCIe".into(), "8.0 GT/s PCIe".into())),
        };
        assert_eq!(gpus(root), [gpu]);
        symlink("../../../bus/pci/drivers/nouveau", root.join(device).join("driver")).unwrap();
        assert_eq!(gpus(root)[0].driver.as_deref(), Some("nouveau"));
        assert_eq!(gpus(&root.join("nowhere")), []);
    }

    #[test]
    fn a_driver_says_its_version_and_whether_its_modules_are_open() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(driver(dir.path()), None);
        for (said, version, open) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  Wed Jan  7\nGCC: 12.2.0",
                "580.126.09",
                false,
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.48.01  Release",
                "590.48.01",
                true,
            ),
        ] {
            write(dir.path(), "proc/driver/nvidia/version", said);
            assert_eq!(driver(dir.path()), Some(Driver { version: version.into(), open }));
        }
        write(dir.path(), "proc/driver/nvidia/version", "nothing of use");
        assert_eq!(driver(dir.path()), None);
    }

    #[test]
    fn device_files_are_usable_missing_or_denied() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "dev/nvidiactl", "");
        let states: Vec<_> = nodes(dir.path(), 1).into_iter().map(|node| node.state).collect();
        assert_eq!(states, [NodeState::Usable, NodeState::Missing, NodeState::Missing]);
    }

    #[test]
    fn nvrtc_is_where_the_daemon_would_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home").display().to_string();
        let env = Env::new([("HOME".to_owned(), home)], false);
        assert_eq!(nvrtc(dir.path(), &env), None);
        write(dir.path(), "home/.cache/m40d/nvrtc-12.9/libnvrtc.so.12", "");
        assert!(nvrtc(dir.path(), &env).is_some_and(|(_, own)| own));
        write(dir.path(), "usr/lib/m40d/libnvrtc.so.12", "");
        let packaged = dir.path().join("usr/lib/m40d/libnvrtc.so.12");
        assert_eq!(nvrtc(dir.path(), &env), Some((packaged, false)));
    }

    #[test]
    fn processes_say_what_they_are_and_may() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proc/7/comm", "m40d\n");
        write(dir.path(), "proc/8/comm", "m40ctl\n");
        write(dir.path(), "proc/self/comm", "m40d\n");
        let limits = "Limit  Soft  Hard  Units\nMax locked memory         8388608              unlimited            bytes";
        write(dir.path(), "proc/7/limits", limits);
        let pids: Vec<_> = daemons(dir.path()).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [7]);
        assert_eq!(memlock(dir.path(), "7"), Some(8_388_608));
        assert_eq!(memlock(dir.path(), "8"), None);
        write(dir.path(), "proc/8/limits", "Max locked memory unlimited unlimited bytes");
        assert_eq!(memlock(dir.path(), "8"), Some(u64::MAX));
        assert!(disk(&dir.path().join("not/there/yet")).is_some_and(|disk| disk.total_bytes > 0));
    }
}

//! A stand-in for `libnvidia-ml.so.1` with one card, for tests on machines without any.
//!
//! What the card says is in a file, named by the variable [`CARD_VARIABLE`], which may be changed at any
//! time: each call reads it anew. A line is `name = value`, with names of [`Sheet`]'s documentation; what is
//! not there the card does not support. What is set is appended to the file beside it that has `.set` at the
//! end of its name. Tests use [`Sheet`] to write it, and [`library`] to find what is to be loaded.

mod functions;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The variable that names the file of what the card says.
pub const CARD_VARIABLE: &str = "M40_NVML_FAKE";

/// The library, built beside the program of the test.
///
/// # Panics
/// When the program does not know where it is.
pub fn library() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let name = "libm40_nvml_fake.so";
    let beside = program.ancestors().skip(1).map(|dir| dir.join(name));
    let found = beside.take(3).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not beside {}", program.display()))
}

/// What the card says, and the file in which it is.
///
/// | name | value |
/// |---|---|
/// | `address` | `0000:03:00.0` |
/// | `name`, `uuid`, `driver` | texts |
/// | `temperature`, `slowdown`, `shutdown` | degrees Celsius |
/// | `power`, `power_limit` | milliwatts |
/// | `energy` | millijoules |
/// | `sm_clock`, `sm_clock_max`, `memory_clock`, `memory_clock_max` | MHz |
/// | `throttle` | NVML's bits of reasons |
/// | `ecc`, `ecc_pending`, `persistence` | 0 or 1 |
/// | `ecc_corrected`, `ecc_uncorrected` | errors |
/// | `pcie_generation`, `pcie_width`, with `_max` too | of the link |
/// | `pcie_tx`, `pcie_rx` | KB/s |
/// | `performance_state` | 0 to 15 |
/// | `memory_total`, `memory_used` | bytes |
/// | `clocks_permitted` | whether application clocks may be set: 0 or 1 |
/// | `xid` | how many errors there were, a blank, and the number of the last |
/// | `lost` | whether it is off the bus: 0 or 1 |
#[derive(Debug, Clone)]
pub struct Sheet {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl Sheet {
    /// A card like a Tesla M40 that computes and is not hot, in this file.
    ///
    /// # Panics
    /// When the file cannot be written; so for every method here.
    pub fn m40(path: &Path) -> Self {
        let values = [
            ("address", "0000:03:00.0"),
            ("name", "Tesla M40 24GB"),
            ("uuid", "GPU-00000000-0000-0000-0000-000000000040"),
            ("driver", "535.183.01"),
            ("temperature", "54"),
            ("slowdown", "91"),
            ("shutdown", "94"),
            ("power", "187300"),
            ("power_limit", "250000"),
            ("sm_clock", "1112"),
            ("sm_clock_max", "1114"),
            ("memory_clock", "3004"),
            ("memory_clock_max", "3004"),
            ("throttle", "0"),
            ("ecc", "0"),
            ("ecc_pending", "0"),
            ("pcie_generation", "3"),
            ("pcie_generation_max", "3"),
            ("pcie_width", "16"),
            ("pcie_width_max", "16"),
            ("pcie_tx", "1500"),
            ("pcie_rx", "250"),
            ("persistence", "1"),
            ("performance_state", "0"),
            ("memory_total", "24026021888"),
            ("memory_used", "1000000"),
            ("clocks_permitted", "1"),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sheet = Self { path: path.to_path_buf(), values: values.into() };
        sheet.write();
        sheet
    }

    /// The card says something else from now on.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.values.insert(name.to_owned(), value.to_string());
        self.write();
    }

    /// It does not support that any more.
    pub fn remove(&mut self, name: &str) {
        self.values.remove(name);
        self.write();
    }

    /// What was set on the card, in order: `MEMORY GRAPHICS` of its application clocks, or `reset`.
    pub fn was_set(&self) -> Vec<String> {
        let text = fs::read_to_string(set_path(&self.path)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Somebody sets the card's application clocks: `MEMORY GRAPHICS` in MHz.
    pub fn has_set(&self, clocks: &str) {
        note(&self.path, clocks).expect("the folder of a test");
    }

    fn write(&self) {
        let line = |(name, value): (&String, &String)| format!("{name} = {value}\n");
        let text: String = self.values.iter().map(line).collect();
        // Whoever reads it must not find half of it.
        let new = self.path.with_extension("new");
        fs::write(&new, text).expect("the folder of a test");
        fs::rename(&new, &self.path).expect("the folder of a test");
    }
}

/// Where what was set is noted.
fn set_path(sheet: &Path) -> PathBuf {
    let mut name = sheet.as_os_str().to_owned();
    name.push(".set");
    name.into()
}

fn path() -> Option<PathBuf> {
    std::env::var_os(CARD_VARIABLE).map(PathBuf::from)
}

/// What the file says of that, if it does.
fn said(name: &str) -> Option<String> {
    let text = fs::read_to_string(path()?).ok()?;
    let of = |line: &str| line.split_once(" = ").filter(|(n, _)| *n == name).map(|(_, v)| v.into());
    text.lines().find_map(of)
}

/// Notes that something was set.
fn note(sheet: &Path, line: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(set_path(sheet))?;
    writeln!(file, "{line}")
}

//! Compiling kernels/emulate/rows.cpp and launching kernels in it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use m40_testkit::emulation::compile;

/// A launch in preparation: arguments in the kernel's order.
pub(crate) struct Launch {
    kernel: String,
    geometry: [u32; 3],
    arguments: Vec<String>,
    data: Vec<u8>,
    /// Bytes of each buffer that is written.
    written: Vec<usize>,
}

impl Launch {
    /// `shared`: bytes of dynamic shared memory of a block.
    pub(crate) fn new(kernel: impl Into<String>, grid: usize, threads: u32, shared: usize) -> Self {
        Self {
            kernel: kernel.into(),
            geometry: [grid as u32, threads, shared as u32],
            arguments: vec![],
            data: vec![],
            written: vec![],
        }
    }

    fn argument(mut self, kind: char, value: u64) -> Self {
        self.arguments.push(format!("{kind} {value}"));
        self
    }

    pub(crate) fn number(self, value: usize) -> Self {
        self.argument('s', value as u64)
    }

    pub(crate) fn float(self, value: f32) -> Self {
        self.argument('s', u64::from(value.to_bits()))
    }

    pub(crate) fn read(mut self, bytes: &[u8]) -> Self {
        self.data.extend(bytes);
        self.argument('r', bytes.len() as u64)
    }

    pub(crate) fn write(mut self, bytes: &[u8]) -> Self {
        self.data.extend(bytes);
        self.written.push(bytes.len());
        self.argument('w', bytes.len() as u64)
    }

    pub(crate) fn read_floats(self, x: &[f32]) -> Self {
        self.read(&bytes_of(x))
    }

    pub(crate) fn write_floats(self, x: &[f32]) -> Self {
        self.write(&bytes_of(x))
    }

    pub(crate) fn read_words(self, x: &[u32]) -> Self {
        self.read(&x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// The buffer that is argument `index`.
    pub(crate) fn same_as(self, index: usize) -> Self {
        self.argument('a', index as u64)
    }

    /// A buffer that the kernel has no use for.
    pub(crate) fn unused(self) -> Self {
        self.read(&[0; 16])
    }

    fn input(&self) -> Vec<u8> {
        let [grid, threads, shared] = self.geometry;
        let count = self.arguments.len();
        let mut head = format!("{} {grid} {threads} {shared} {count}\n", self.kernel);
        for argument in &self.arguments {
            writeln!(head, "{argument}").expect("to a string");
        }
        let mut input = head.into_bytes();
        input.extend(&self.data);
        input
    }
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Little-endian floats of bytes.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Runs the launches one after another: of each, the buffers it wrote. `None`, saying so, on a
/// machine without g++.
pub(crate) fn run(test: &str, launches: &[Launch]) -> Option<Vec<Vec<Vec<u8>>>> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM
        .get_or_init(|| compile("rows", env!("CARGO_TARGET_TMPDIR")).expect("it compiles"))
        .as_ref()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let input = folder.join(format!("rows-{test}.input"));
    let launched: Vec<u8> = launches.iter().flat_map(Launch::input).collect();
    fs::write(&input, launched).expect("Cargo's folder is writable");
    let input = File::open(input).expect("it has just been written");
    let done = Command::new(program).stdin(input).output().expect("it has just been compiled");
    assert!(done.status.success(), "{test}: {}", String::from_utf8_lossy(&done.stderr));
    let output = folder.join(format!("rows-{test}.output"));
    fs::write(output, &done.stdout).expect("Cargo's folder is writable");
    let mut rest = done.stdout.as_slice();
    let mut take = |bytes: usize| {
        let (buffer, left) = rest.split_at(bytes);
        rest = left;
        buffer.to_vec()
    };
    let outputs =
        launches.iter().map(|launch| launch.written.iter().map(|n| take(*n)).collect()).collect();
    assert!(rest.is_empty(), "{test}: more was written than expected");
    Some(outputs)
}

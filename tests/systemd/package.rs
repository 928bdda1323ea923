//! The Debian packages, made of the programs that cargo has built for the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// A version that is newer than any.
pub(crate) const NEWER: &str = "1000.0";

/// The package as `make package` makes it, but not compressed.
pub(crate) fn built() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    &BUILT.get_or_init(|| build("m40d", programs(), None)).1
}

/// The same with a newer version, in a folder that goes away with the value.
pub(crate) fn newer() -> (TempDir, PathBuf) {
    build("m40d", programs(), Some(NEWER))
}

/// That for programs in C as newer, of a library that is not the engine's.
pub(crate) fn newer_for_c() -> (TempDir, PathBuf) {
    let bin = tempfile::tempdir().expect("a temporary folder");
    let library = bin.path().join("libm40llm_c.so");
    std::fs::copy(m40_nvml_fake::library(), library).expect("a library");
    build("dev", bin.path(), Some(NEWER))
}

/// The folder with the programs.
pub(crate) fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_m40d")).parent().expect("a program is in a folder")
}

/// A script of `packaging`, for this package of what is in a folder.
pub(crate) fn script(name: &str, package: &str, bin: &Path) -> Command {
    let mut command =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name));
    command.arg(package).arg(bin);
    command
}

fn build(package: &str, bin: &Path, version: Option<&str>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = script("package", package, bin);
    command.arg(folder.path()).args(version).env("M40_DEB_COMPRESSION", "none");
    let output = command.output().expect("bash must be there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "packaging/package: {said}");
    let package = String::from_utf8(output.stdout).expect("a path");
    let package = PathBuf::from(package.trim_end());
    (folder, package)
}

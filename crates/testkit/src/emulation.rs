//! Kernels compiled for the host (kernels/emulate), with sanitizers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Compiles kernels/emulate/NAME.cpp into `folder` (a test's `CARGO_TARGET_TMPDIR`) unless that was
/// done since any source changed; `None`, saying so, on a machine without g++.
///
/// # Errors
/// What the compiler said.
///
/// # Panics
/// Without g++ under CI: it must be there.
pub fn compile(name: &str, folder: &str) -> Result<Option<PathBuf>, String> {
    let missing = Command::new("g++").arg("--version").output().err();
    if let Some(error) = missing {
        assert!(std::env::var_os("CI").is_none(), "g++ cannot be run: {error}");
        say(&format!(
            "emulated {name}: skipped: no g++ (apt install g++ runs kernels without a GPU)"
        ));
        return Ok(None);
    }
    let emulate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/emulate");
    let program = Path::new(folder).join(name);
    if changed(&program).is_some_and(|made| newest(&emulate.join("..")) < Some(made)) {
        return Ok(Some(program));
    }
    let output = Command::new("g++")
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o"])
        .arg(&program)
        .arg(emulate.join(format!("{name}.cpp")))
        .output()
        .expect("g++ has just been run");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(Some(program)) } else { Err(said.into_owned()) }
}

/// When a file was changed last.
fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

/// When a file of a folder, or of one in it, was changed last.
fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = folder.read_dir().expect("kernels/ is in the repository");
    let paths = entries.map(|entry| entry.expect("kernels/ can be listed").path());
    let times = paths.map(|path| if path.is_dir() { newest(&path) } else { changed(&path) });
    times.max().flatten()
}

/// Past the test harness, which holds back what a passing test prints.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

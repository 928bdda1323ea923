//! Kernels compiled for the host (kernels/emulate), with sanitizers.

mod emulator;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles kernels/emulate/NAME.cpp; `None`, saying so, on a machine without g++. Under CI it must
/// be there.
fn compile(name: &str) -> Option<PathBuf> {
    let missing = Command::new("g++").arg("--version").output().err();
    if let Some(error) = missing {
        assert!(std::env::var_os("CI").is_none(), "g++ cannot be run: {error}");
        say(&format!(
            "emulated {name}: skipped: no g++ (apt install g++ runs kernels without a GPU)"
        ));
        return None;
    }
    let emulate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/emulate");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new("g++")
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o"])
        .arg(&program)
        .arg(emulate.join(format!("{name}.cpp")))
        .output()
        .expect("g++ has just been run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// Past the test harness, which holds back what a passing test prints.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

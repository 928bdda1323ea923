//! Kernels compiled for the host (kernels/emulate), with sanitizers.

mod emulator;
mod matvec;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles kernels/emulate/NAME.cpp.
fn compile(name: &str) -> PathBuf {
    let emulate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/emulate");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new("g++")
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o"])
        .arg(&program)
        .arg(emulate.join(format!("{name}.cpp")))
        .output()
        .expect("g++ 12 or newer runs kernels without a GPU: install it (apt install g++)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

//! Kernels compiled for the host (kernels/emulate), with sanitizers.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::SystemTime;

/// Compiles kernels/emulate/NAME.cpp, and what is in the folder NAME there if there is one, into
/// `folder` (a test's `CARGO_TARGET_TMPDIR`) unless that was done since any source changed; `None`,
/// saying so, on a machine without g++.
///
/// # Errors
/// What the compiler said.
///
/// # Panics
/// Without g++ under CI: it must be there.
pub fn compile(name: &str, folder: &str) -> Result<Option<PathBuf>, String> {
    let program = Path::new(folder).join(name);
    if !has_compiler(name) {
        return Ok(None);
    }
    if changed(&program).is_some_and(|made| newest(&kernels()) < Some(made)) {
        return Ok(Some(program));
    }
    build(name, &program, &[]).map(Some)
}

/// The same of kernels for one program, which `text` describes as kernels/decode.cuh has it.
///
/// # Errors
/// As [`compile`]; or the file of the text is not written.
///
/// # Panics
/// As [`compile`].
pub fn compile_for(name: &str, folder: &str, text: &str) -> Result<Option<PathBuf>, String> {
    if !has_compiler(name) {
        return Ok(None);
    }
    let described = Path::new(folder).join(format!("{name}.program.cuh"));
    fs::write(&described, text).map_err(|error| format!("{}: {error}", described.display()))?;
    let define = format!("-DM40_PROGRAM=\"{}\"", described.display());
    let include = format!("-I{}", kernels().display());
    let program = Path::new(folder).join(format!("{name}.program"));
    build(name, &program, &[&define, &include]).map(Some)
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

fn has_compiler(name: &str) -> bool {
    let missing = Command::new("g++").arg("--version").output().err();
    let Some(error) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "g++ cannot be run: {error}");
    say(&format!("emulated {name}: skipped: no g++ (apt install g++ runs kernels without a GPU)"));
    false
}

/// Compiles the sources of a program side by side, with these options, and links them.
fn build(name: &str, program: &Path, options: &[&str]) -> Result<PathBuf, String> {
    let compiled = thread::scope(|scope| {
        let compile = |source: PathBuf| {
            scope.spawn(move || {
                let object = object(program, &source);
                let arguments = [OsStr::new("-c"), source.as_os_str()];
                run_compiler(options, &arguments, &object).map(|()| object)
            })
        };
        let running: Vec<_> = sources(name).into_iter().map(compile).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a compiler that fails is no panic"))
            .collect::<Result<Vec<_>, _>>()
    });
    let objects = compiled?;
    let objects: Vec<_> = objects.iter().map(|object| object.as_os_str()).collect();
    run_compiler(options, &objects, program)?;
    Ok(program.to_owned())
}

fn sources(name: &str) -> Vec<PathBuf> {
    let folder = kernels().join("emulate");
    let parts = folder.join(name).read_dir().into_iter().flatten();
    let parts = parts.map(|entry| entry.expect("kernels/ can be listed").path());
    let parts = parts.filter(|path| path.extension().is_some_and(|kind| kind == "cpp"));
    parts.chain([folder.join(format!("{name}.cpp"))]).collect()
}

/// Where a source of a program is compiled to.
fn object(program: &Path, source: &Path) -> PathBuf {
    let part = source.file_stem().expect("a source has a name");
    program.with_added_extension(part).with_added_extension("o")
}

fn run_compiler(options: &[&str], arguments: &[&OsStr], to: &Path) -> Result<(), String> {
    let output = Command::new("g++")
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .args(options)
        .args(arguments)
        .arg("-o")
        .arg(to)
        .output()
        .expect("g++ has just been run");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(said.into_owned()) }
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

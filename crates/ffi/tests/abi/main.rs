//! The interface as C sees it: the header is that of the sources, the library exports what is in it, and a
//! program in C loads a model, generates and makes vectors.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use m40_testkit::gguf::TinyModel;

const HEADER: &str = "include/m40llm.h";
/// Set by `make reference`.
const WRITE: &str = "M40_WRITE_REFERENCE";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The library, beside this program.
fn library() -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    this.with_file_name("libm40llm_c.so")
}

fn header() -> String {
    let config = cbindgen::Config::from_root_or_default(here());
    let made = cbindgen::Builder::new().with_crate(here()).with_config(config).generate();
    let mut text = vec![];
    made.expect("sources that cbindgen reads").write(&mut text);
    String::from_utf8(text).expect("text")
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Installs the library below a folder, as the package does.
fn install(below: &Path) {
    let mut install = Command::new(here().join("../../packaging/install"));
    install.arg("dev").arg(library().parent().expect("it lies in a folder"));
    run(install.env("DESTDIR", below).env("PREFIX", "/usr"));
}

/// The program in C, compiled with all warnings against what is installed below a folder.
fn client(below: &Path) -> PathBuf {
    let program = below.join("client");
    let usr = below.join("usr");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread", "-o"]);
    compiler.arg(&program).arg(here().join("tests/abi/client.c"));
    compiler.arg("-I").arg(usr.join("include")).arg("-L").arg(usr.join("lib")).arg("-lm40llm");
    run(&mut compiler);
    program
}

#[test]
fn the_header_is_that_of_the_sources() {
    let (path, made) = (here().join(HEADER), header());
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == made,
        "{HEADER} is not what the sources say: look at what `make reference` changes"
    );
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let mut nm = Command::new("nm");
    let output = run(nm.args(["-D", "--defined-only", "-j"]).arg(library()));
    let listed = String::from_utf8(output.stdout).unwrap();
    let mut exported: Vec<&str> = listed.lines().map(str::trim).collect();
    exported.sort_unstable();
    let text = header();
    let functions = text.lines().filter(|line| !line.starts_with("//") && !line.starts_with(" *"));
    let name = |line: &str| {
        let end = line.find('(')?;
        let start = line[..end].rfind([' ', '*'])? + 1;
        let name = &line[start..end];
        (name.starts_with("m40llm_") && !line.starts_with("typedef")).then(|| name.to_owned())
    };
    let mut declared: Vec<String> = functions.filter_map(name).collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}

#[test]
fn a_program_in_c_generates_and_embeds() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    std::fs::write(&model, TinyModel::new("llama").build()).unwrap();
    install(dir.path());
    let mut client = Command::new(client(dir.path()));
    client.env("LD_LIBRARY_PATH", dir.path().join("usr/lib"));
    let said = String::from_utf8(run(client.arg(&model)).stdout).unwrap();
    assert!(said.ends_with("ok\n"), "{said}");
}

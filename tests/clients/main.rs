//! The real `m40d` on a real model as clients see it that others wrote: programs in Python and
//! JavaScript beside this file use their packages, unchanged.
//!
//! `make clients` installs the packages. Where one of the two sets is missing its tests say that they were
//! skipped; with `M40_REQUIRE_CLIENTS=1` they fail instead.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use m40_testkit::models;

/// A language that has packages, and its list of them.
struct Language {
    name: &'static str,
    program: &'static str,
    list: &'static str,
    listed: &'static str,
    /// The variable that says where they are.
    var: &'static str,
}

const PYTHON: Language = Language {
    name: "python",
    program: "python3",
    list: "requirements.txt",
    listed: include_str!("requirements.txt"),
    var: "PYTHONPATH",
};
const NODE: Language = Language {
    name: "node",
    program: "node",
    list: "package-lock.json",
    listed: include_str!("package-lock.json"),
    var: "M40_NODE_PACKAGES",
};

impl Language {
    /// Where its packages are, if those that are listed are there.
    fn packages(&self) -> Option<PathBuf> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let cache = match set("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(set("HOME")?).join(".cache"),
        };
        let packages = cache.join("m40d/clients").join(self.name);
        let found = std::fs::read_to_string(packages.join(self.list)).ok()?;
        (found == self.listed).then_some(packages)
    }
}

/// Says something even where the test harness captures what passing tests print.
fn say(text: &str) {
    io::stderr().write_all(format!("clients: {text}\n").as_bytes()).expect("stderr is open");
}

/// A daemon with SmolLM2 under three names: `smollm2`, `tools`, whose template knows tools, and `other`.
fn daemon() -> Daemon {
    let builder = Builder::new(env!("CARGO_BIN_EXE_m40d"));
    let builder = builder.config("[limits]\nqueued_jobs_max = 1\n");
    let folder = builder.dir().join("models.d");
    std::fs::create_dir(&folder).expect("the folder of a test");
    let source = models::smollm2();
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/tools.jinja");
    for (name, more) in [
        ("smollm2", "preload = true".to_owned()),
        ("tools", format!("template = {{ file = {template:?} }}")),
        ("other", String::new()),
    ] {
        let text = format!("source = {source:?}\ncontext_tokens = 4096\n{more}\n");
        std::fs::write(folder.join(format!("{name}.toml")), text).expect("a manifest");
    }
    builder.start()
}

/// Runs a program of this folder, which fails the test if it fails.
#[track_caller]
fn run(language: &Language, program: &str, daemon: &Daemon) {
    let Some(packages) = language.packages() else {
        assert!(
            env::var_os("M40_REQUIRE_CLIENTS").is_none(),
            "the packages of {program} are missing: run `make clients`"
        );
        return say(&format!("{program}: skipped: run `make clients` to install its packages"));
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(program);
    let mut command = Command::new(language.program);
    // A proxy that this machine may have knows no way back to it.
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    command.env("M40_URL", format!("http://{}", daemon.http())).env(language.var, packages);
    command.env("PYTHONWARNINGS", "ignore");
    let output = command.arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", language.program));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{program}: {}\n{said}", output.status);
    say(&format!("{program}: {}", summary(&said)));
}

/// The line in which a program says how many tests it ran.
fn summary(said: &str) -> &str {
    let is_summary = |line: &&str| line.starts_with("Ran ") || line.starts_with("# pass ");
    said.lines().find(is_summary).unwrap_or("passed")
}

#[test]
fn the_python_package_openai_works_unchanged() {
    run(&PYTHON, "with_openai.py", &daemon());
}

#[test]
fn the_python_package_ollama_works_unchanged() {
    run(&PYTHON, "with_ollama.py", &daemon());
}

#[test]
fn the_python_package_anthropic_works_unchanged() {
    run(&PYTHON, "with_anthropic.py", &daemon());
}

#[test]
fn the_python_package_litellm_works_unchanged() {
    run(&PYTHON, "with_litellm.py", &daemon());
}

#[test]
fn the_python_package_langchain_ollama_works_unchanged() {
    run(&PYTHON, "with_langchain_ollama.py", &daemon());
}

#[test]
fn the_python_program_llm_works_unchanged() {
    run(&PYTHON, "with_llm.py", &daemon());
}

#[test]
fn the_npm_package_openai_works_unchanged() {
    run(&NODE, "with_openai.mjs", &daemon());
}

#[test]
fn the_npm_package_ollama_works_unchanged() {
    run(&NODE, "with_ollama.mjs", &daemon());
}

/// With a tiny model, whose answers are short whatever is asked.
#[test]
fn no_request_that_schemathesis_makes_is_a_failure_of_the_server() {
    let builder = Builder::new(env!("CARGO_BIN_EXE_m40d"));
    let folder = builder.dir().join("models.d");
    std::fs::create_dir(&folder).expect("the folder of a test");
    let model = builder.dir().join("tiny.gguf");
    std::fs::write(&model, TinyModel::new("llama").context(64).build()).expect("a model");
    let manifest = format!("source = {model:?}\npreload = true\n");
    std::fs::write(folder.join("smollm2.toml"), manifest).expect("a manifest");
    run(&PYTHON, "with_schemathesis.py", &builder.start());
}

#[test]
fn answers_to_random_schemas_are_valid() {
    run(&PYTHON, "random_schemas.py", &daemon());
}

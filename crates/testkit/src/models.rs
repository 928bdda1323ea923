//! The real models that tests use, in the folder where `make models` puts them.
//!
//! A test that needs a model fails when it is missing; it is never skipped, so that a green run
//! always means that the models ran.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// SmolLM2-135M-Instruct, Q4_1 with Q8_0: llama architecture, byte-level BPE, ChatML template.
pub const SMOLLM2_FILE: &str = "smollm2-135m-instruct-q4_1.gguf";

/// Gemma 3 270M, Q4_K_M: gemma3 architecture, SentencePiece-style vocabulary, no chat template.
pub const GEMMA3_FILE: &str = "gemma3-270m-q4_k_m.gguf";

/// The folder of the real models: `$M40_MODELS_DIR`, else `$XDG_CACHE_HOME/m40d`, else
/// `~/.cache/m40d`. `tests/models` downloads into the same place.
///
/// # Panics
/// When none of these variables nor `HOME` is set.
pub fn dir() -> PathBuf {
    dir_from(|name| std::env::var_os(name))
        .expect("set M40_MODELS_DIR: neither it nor XDG_CACHE_HOME nor HOME is set")
}

/// Path of SmolLM2-135M-Instruct.
///
/// # Panics
/// When the file is not there.
pub fn smollm2() -> PathBuf {
    existing(&dir(), SMOLLM2_FILE)
}

/// Path of Gemma 3 270M.
///
/// # Panics
/// When the file is not there.
pub fn gemma3() -> PathBuf {
    existing(&dir(), GEMMA3_FILE)
}

fn dir_from(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // An empty variable counts as unset, as the XDG base directory specification says.
    let set = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("M40_MODELS_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("m40d")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/m40d")))
}

fn existing(dir: &Path, file: &str) -> PathBuf {
    let path = dir.join(file);
    assert!(
        path.is_file(),
        "the model {} is missing: run `make models`, or set M40_MODELS_DIR to where it is",
        path.display()
    );
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vars: &[(&str, &str)], expected: Option<&str>) {
        let lookup =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, v)| OsString::from(v));
        assert_eq!(dir_from(lookup), expected.map(PathBuf::from));
    }

    #[test]
    fn looks_in_the_named_folder_then_in_the_cache_folders() {
        check(&[("M40_MODELS_DIR", "/m"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/h")], Some("/m"));
        check(&[("M40_MODELS_DIR", ""), ("XDG_CACHE_HOME", "/c")], Some("/c/m40d"));
        check(&[("HOME", "/h")], Some("/h/.cache/m40d"));
        check(&[], None);
    }

    #[test]
    fn names_the_cure_when_a_model_is_missing() {
        let panic = std::panic::catch_unwind(|| existing(Path::new("/nonexistent"), "x.gguf"));
        let message = *panic.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("make models"), "{message}");
    }
}

//! Completion in bash, whose words end at colons, as names of models do not: clap's own script has bash's.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap_complete::engine;
use clap_complete::env::EnvCompleter;

const SCRIPT: &str = r#"_m40ctl() {
    local typed=${COMP_LINE:0:COMP_POINT} words IFS=$' \t\n'
    read -d '' -a words <<<"$typed"
    [[ $typed != *[[:space:]] ]] || words+=('')
    mapfile -t COMPREPLY < <(VARIABLE=bash m40ctl -- "${words[@]}" 2>/dev/null)
    # What ends bash's words stays typed, and what is before it.
    local word=${words[-1]} ends="[${COMP_WORDBREAKS//[^:=]}]"
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*$ends}"}"}")
    [[ ${COMPREPLY-} != *[=/] ]] || compopt -o nospace
}
complete -o bashdefault -F _m40ctl m40ctl"#;

/// Bash 4 and newer.
pub(super) struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == self.name()
    }

    fn write_registration(
        &self,
        variable: &str,
        _name: &str,
        _program: &str,
        _completer: &str,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        writeln!(to, "{}", SCRIPT.replace("VARIABLE", variable))
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        let last = words.len().saturating_sub(1);
        for candidate in engine::complete(command, words, last, folder)? {
            writeln!(to, "{}", quoted(&candidate.get_value().to_string_lossy()))?;
        }
        Ok(())
    }
}

/// A word as bash reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/.,:=@%+-_~".contains(c);
    let quote = |c| if is_plain(c) { vec![c] } else { vec!['\\', c] };
    word.chars().flat_map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bash_would_take_apart_is_quoted() {
        assert_eq!(quoted("qwen3:8b-q4_K@x"), "qwen3:8b-q4_K@x");
        assert_eq!(quoted("a b$(c)'"), "a\\ b\\$\\(c\\)\\'");
    }
}

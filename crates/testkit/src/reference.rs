//! Files of a repository that are made of its code: help texts and man pages.

use std::path::Path;

/// Set by `make reference`, which has the files written anew.
const WRITE: &str = "M40_WRITE_REFERENCE";

/// Holds `file`, below the folder `root`, to what it ought to be.
///
/// # Panics
/// When it is something else, with the first line that differs; or when it cannot be written.
#[track_caller]
pub fn check(root: &str, file: &str, expected: &str) {
    let path = Path::new(root).join(file);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, expected).expect("the repository can be written to");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differ =
        found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let line = 1 + differ.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    assert!(
        found == expected,
        "{file}:{line} is not what the code says now: look at the change that `make reference` \
         makes\nfound    {:?}\nexpected {:?}",
        found.lines().nth(line - 1),
        expected.lines().nth(line - 1),
    );
}

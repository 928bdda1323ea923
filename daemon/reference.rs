//! The help text and the man page of `m40d` that are in the repository: these tests hold them to the
//! command line and the exit codes. `make reference` writes them anew.

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use m40_testkit::reference::check;

use crate::Args;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const HELP: &str = "tests/data/m40d-help.txt";
const MAN: &str = "packaging/man/m40d.8";
/// What clap takes for a width where there is no terminal.
const COLUMNS: usize = 100;

const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGTERM, SIGINT",
        "take no more requests, let answers that run finish within `shutdown_grace_s` of `[limits]`, \
         cut the rest short with an error that says why, and exit; a second one ends the wait",
    ),
    (
        "SIGHUP",
        "reread the manifests, the API keys and the certificate, and check the configuration",
    ),
];

const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "CONFIGURATION_DIRECTORY, STATE_DIRECTORY, CACHE_DIRECTORY, RUNTIME_DIRECTORY",
        "folders that are used instead of those below; systemd sets them",
    ),
    ("CREDENTIALS_DIRECTORY", "where files are that the configuration names without a path"),
    (
        "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY",
        "through whom models are fetched, unless the configuration says it",
    ),
    ("CUDA_VISIBLE_DEVICES", "which GPU is the first; CUDA's documentation has its meaning"),
    ("M40_NVML", "the library that is asked how the card is, in place of libnvidia-ml.so.1"),
    ("M40_NVRTC", "NVRTC 12, the library that compiles kernels, where it is not where m40d looks"),
];

const FILES: [(&str, &str); 5] = [
    ("/etc/m40d/m40d.toml", "the configuration; for a user ~/.config/m40d/m40d.toml"),
    ("/etc/m40d/models.d", "manifests; for a user ~/.config/m40d/models.d"),
    ("/var/lib/m40d", "models; for a user ~/.local/state/m40d"),
    ("/var/cache/m40d", "compiled kernels, which may be deleted; for a user ~/.cache/m40d"),
    ("/run/m40d/control.sock", "the control socket; for a user $XDG_RUNTIME_DIR/m40d/control.sock"),
];

const UNITS: [(&str, &str); 5] = [
    ("m40d.service", "the daemon; its comments say what it may do, and how secrets come to it"),
    (
        "m40d.socket",
        "HTTP and, by m40d-control.socket, the control socket in the hands of systemd, so that \
         restarts refuse no connection; its comments say how to enable it",
    ),
    (
        "m40d@.service",
        "an instance for each GPU: `m40d@1` is the one for GPU 1, with files of its own in \
         /etc/m40d-1, /var/lib/m40d-1 and /run/m40d-1",
    ),
    (
        "m40d@.socket",
        "what m40d.socket is, for an instance: `m40d@1.socket` listens on port 11441 of this machine, and \
         by m40d-control@1.socket in /run/m40d-1",
    ),
    ("m40d-nvidia@.service", "makes the device nodes of a GPU before m40d starts"),
];

#[test]
fn the_help_text_is_the_one_in_the_repository() {
    let help = Args::command().term_width(COLUMNS).render_long_help();
    check(ROOT, HELP, &format!("$ m40d --help\n{help}"));
}

#[test]
fn the_man_page_is_the_one_in_the_repository() {
    check(ROOT, MAN, &man_page());
}

fn man_page() -> String {
    let man = Man::new(Args::command());
    let mut page = Vec::new();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    let page = String::from_utf8(page).unwrap();
    // Each section says again what an apostrophe is.
    let is_preamble = |line: &&str| line.starts_with(".ie ") || line.starts_with(".el ");
    let preamble = page.lines().filter(is_preamble).take(2);
    let text = page.lines().filter(|line| !is_preamble(line));
    let heading = ".TH M40D 8 \"\" m40d \"System administration\"";
    let lines = preamble.chain([heading]).chain(text).map(|line| format!("{line}\n"));
    lines.collect::<String>() + &ending()
}

fn ending() -> String {
    let mut page = Roff::new();
    list(&mut page, "SIGNALS", &SIGNALS);
    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit_codes() {
        page.control("TP", ["6"]).text([roman(code)]).text(prose(meaning));
    }
    list(&mut page, "ENVIRONMENT", &ENVIRONMENT);
    list(&mut page, "FILES", &FILES);
    list(&mut page, "UNITS", &UNITS);
    see_also(&mut page, [("m40d.toml", "(5), "), ("m40d-manifest", "(5), "), ("m40ctl", "(1)")]);
    page.to_roff()
}

/// The table at the beginning of `exit.rs`.
fn exit_codes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = include_str!("exit.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let cells = rows.filter_map(|row| row.trim().trim_matches('|').split_once(" | "));
    let cells = cells.map(|(code, meaning)| (code.trim(), meaning.trim()));
    cells.filter(|(code, _)| code.parse::<u8>().is_ok())
}

/// A section of terms and what they mean.
pub(crate) fn list(page: &mut Roff, heading: &str, terms: &[(&str, &str)]) {
    page.control("SH", [heading]);
    for (term, meaning) in terms {
        page.control("TP", []).text([bold(*term)]).text(prose(meaning));
    }
}

/// The last section: other pages, with what comes after the name of each.
pub(crate) fn see_also(page: &mut Roff, pages: [(&str, &str); 3]) {
    let pages = pages.map(|(name, rest)| [bold(name), roman(rest)]);
    page.control("SH", ["SEE ALSO"]).text(pages.concat());
}

/// Text in which what is between backticks is bold.
pub(crate) fn prose(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

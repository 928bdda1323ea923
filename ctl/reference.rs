//! The help texts and the man page that are in the repository: these tests hold them to what the
//! command line is. `make reference` writes them anew.

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use m40_testkit::reference;

use crate::cli::Cli;
use crate::error::Kind;

const HELP: &str = "tests/data/m40ctl-help.txt";
const MAN: &str = "packaging/man/m40ctl.1";
/// What clap takes for a width where there is no terminal.
const COLUMNS: usize = 100;

#[track_caller]
fn check(file: &str, expected: &str) {
    reference::check(env!("CARGO_MANIFEST_DIR"), file, expected);
}

/// The commands below `m40ctl`, each before those below it, `help` excepted.
fn commands(root: &Command) -> Vec<&Command> {
    let own = root.get_subcommands().filter(|command| command.get_name() != "help");
    own.flat_map(|command| std::iter::once(command).chain(commands(command))).collect()
}

fn built() -> Command {
    let mut root = Cli::command().term_width(COLUMNS);
    root.build();
    root
}

#[test]
fn help_texts_are_those_in_the_repository() {
    let root = built();
    let all = std::iter::once(&root).chain(commands(&root));
    let texts = all.map(|command| {
        let mut command = command.clone();
        let name = command.get_bin_name().unwrap_or("m40ctl").to_owned();
        format!("$ {name} --help\n{}", command.render_long_help())
    });
    check(HELP, &texts.collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_man_page_is_the_one_in_the_repository() {
    check(MAN, &man_page());
}

/// One page with a section for each command.
fn man_page() -> String {
    let root = built();
    let man = Man::new(root.clone());
    let mut page = Vec::new();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    let sections = commands(&root).into_iter().map(section);
    let commands = format!(".SH COMMANDS\n{}", sections.collect::<String>());
    // What defines an apostrophe is needed once.
    let page = String::from_utf8(page).unwrap();
    let (preamble, page) = page.split_at(page.find(".SH").unwrap());
    let page = page.to_owned() + &commands + &ending();
    format!("{preamble}.TH M40CTL 1 \"\" m40d \"User commands\"\n{}", without_preamble(&page))
}

fn without_preamble(roff: &str) -> String {
    let lines = roff.lines().filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What a command does and takes; what all take is said above.
fn section(command: &Command) -> String {
    let mut command = command.clone();
    let usage = command.render_usage().to_string();
    let name = command.get_bin_name().unwrap_or_default().to_owned();
    let of_all: Vec<_> = command
        .get_arguments()
        .filter(|argument| argument.is_global_set() || argument.get_id() == "help")
        .map(|argument| argument.get_id().clone())
        .collect();
    for id in of_all {
        command = command.mut_arg(id, |argument| argument.hide(true));
    }
    let mut heading = Roff::new();
    heading.control("SS", [name.as_str()]);
    heading.text([bold(usage.trim_start_matches("Usage: "))]);
    let man = Man::new(command.clone());
    let mut rest = Vec::new();
    man.render_description_section(&mut rest).unwrap();
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut rest).unwrap();
    }
    let text = heading.to_roff() + &String::from_utf8(rest).unwrap();
    // The sections of a page about this command alone are paragraphs of this one.
    let lines = without_preamble(&text);
    let lines = lines.lines().map(|line| if line.starts_with(".SH ") { ".PP" } else { line });
    lines.map(|line| format!("{line}\n")).collect()
}

fn ending() -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    roff.control("TP", ["6"]).text([roman("0")]).text([roman("done")]);
    for kind in Kind::ALL {
        let code = kind.exit_code().to_string();
        roff.control("TP", ["6"]).text([roman(code)]).text([roman(kind.meaning())]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in [
        ("M40_SOCKET", "the control socket, where --socket does not name it"),
        (
            "NO_COLOR",
            "if it is set to anything, text has no colours where --color does not ask for them",
        ),
    ] {
        roff.control("TP", []).text([roman(name)]).text([roman(meaning)]);
    }
    roff.control("SH", ["FILES"]);
    for (name, meaning) in [
        ("/run/m40d/control.sock", "the control socket of the system's daemon"),
        ("$XDG_RUNTIME_DIR/m40d/control.sock", "that of a user's own, which is preferred"),
        (
            "~/.local/state/m40ctl/history",
            "what was typed in chats: the last 1000 messages, which only their user can read; \
             $XDG_STATE_HOME moves it, m40ctl run --no-history does without, and deleting it does no harm",
        ),
    ] {
        roff.control("TP", []).text([roman(name)]).text([roman(meaning)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let pages = [("m40d", "(8), "), ("m40d.toml", "(5), "), ("m40d-manifest", "(5)")];
    roff.text(pages.map(|(page, rest)| [bold(page), roman(rest)]).concat());
    roff.to_roff()
}

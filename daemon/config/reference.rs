//! The man page of the configuration file, which is made of the file that is shipped: a test holds the one
//! to the other. `make reference` writes it anew.

use clap_mangen::roff::{Roff, bold, italic, roman};
use m40_testkit::reference::check;

use crate::reference::{list, prose, see_also};

const MAN: &str = "packaging/man/m40d.toml.5";
const SHIPPED: &str = include_str!("../../etc/m40d.toml");

const FILES: [(&str, &str); 3] = [
    ("/etc/m40d/m40d.toml", "of the system's daemon"),
    ("~/.config/m40d/m40d.toml", "of a user's own; `XDG_CONFIG_HOME` moves it"),
    ("/etc/m40d-N/m40d.toml", "of the instance `m40d@N`, for GPU N"),
];

/// A key as the file has it.
struct Key {
    name: &'static str,
    value: &'static str,
    /// Whether the value is the default, not an example.
    is_default: bool,
}

/// What a comment says of the keys below it.
struct Entry {
    comment: Vec<&'static str>,
    keys: Vec<Key>,
}

struct Section {
    heading: &'static str,
    entries: Vec<Entry>,
}

#[test]
fn the_man_page_is_the_one_in_the_repository() {
    check(env!("CARGO_MANIFEST_DIR"), MAN, &man_page());
}

fn sections() -> Vec<Section> {
    let known = super::raw::all_keys();
    let key = |line: &'static str| {
        let is_default = !line.starts_with('#');
        let (name, value) = line.trim_start_matches("# ").split_once(" = ")?;
        known.iter().any(|key| key == name).then_some(Key { name, value, is_default })
    };
    let mut sections: Vec<Section> = Vec::new();
    let mut comment = Vec::new();
    for line in SHIPPED.lines() {
        if line.starts_with('[') {
            sections.push(Section { heading: line, entries: Vec::new() });
        } else if let (Some(key), Some(section)) = (key(line), sections.last_mut()) {
            match section.entries.last_mut() {
                Some(entry) if comment.is_empty() => entry.keys.push(key),
                _ => {
                    let comment = std::mem::take(&mut comment);
                    section.entries.push(Entry { comment, keys: vec![key] });
                }
            }
        } else if let Some(text) = line.strip_prefix('#') {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
        } else {
            comment.clear();
        }
    }
    sections
}

fn man_page() -> String {
    let mut page = Roff::new();
    page.control("SH", ["NAME"]).text([roman("m40d.toml - configuration of m40d")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text(prose(
        "A TOML file, of which every key may be left out, as may the file: then what is below counts. \
         A key that m40d does not know is an error. `m40d --check-config` checks the file, and the \
         manifests, which say what models there are.",
    ));
    page.control("PP", []).text(prose(
        "Changed keys count after a restart; what is in the files of keys and certificates after a \
         reload (`m40ctl reload`, `systemctl reload m40d`).",
    ));
    page.control("PP", []).text([
        bold("key = value"),
        roman(" is a key with its default, "),
        bold("key"),
        roman(" = "),
        italic("value"),
        roman(" one that has none which is fixed, with an example."),
    ]);
    for section in sections() {
        page.control("SH", [section.heading]);
        for entry in &section.entries {
            write_entry(&mut page, entry);
        }
    }
    list(&mut page, "FILES", &FILES);
    see_also(&mut page, [("m40d", "(8), "), ("m40d-manifest", "(5), "), ("m40ctl", "(1)")]);
    format!(".TH M40D.TOML 5 \"\" m40d \"File formats\"\n{}", page.to_roff())
}

fn write_entry(page: &mut Roff, entry: &Entry) {
    for (i, key) in entry.keys.iter().enumerate() {
        page.control(if i == 0 { "TP" } else { "TQ" }, []);
        if key.is_default {
            page.text([bold(format!("{} = {}", key.name, key.value))]);
        } else {
            page.text([bold(key.name), roman(" = "), italic(key.value)]);
        }
    }
    for line in &entry.comment {
        match line.strip_prefix("  ") {
            Some(example) => page.control("br", []).text([italic(example)]).control("br", []),
            None => page.text(prose(line)),
        };
    }
}

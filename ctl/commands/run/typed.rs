//! What is typed in a chat: a message, or a command that begins with a slash.

use std::path::PathBuf;

/// What goes around a message of several lines.
const QUOTES: &str = "\"\"\"";

/// The commands, with what follows them and what they do.
pub(super) const COMMANDS: [(&str, &str, &str); 10] = [
    ("/help", "", "this list"),
    ("/clear", "", "forget what was said"),
    ("/system", "[TEXT]", "instructions before all that is said; none without TEXT"),
    ("/set", "NAME [VALUE]", "set a parameter; without VALUE as the daemon has it"),
    ("/show", "", "the model, its instructions and parameters"),
    ("/save", "FILE", "write the conversation to a file"),
    ("/load", "FILE", "go on with a conversation from a file"),
    ("/verbose", "", "print counts and rates after each answer, or no longer"),
    ("/bye", "", "leave, as Ctrl-D does"),
    ("/exit", "", "the same"),
];

/// What a person wants.
#[derive(Debug, PartialEq)]
pub(super) enum Typed {
    Nothing,
    Message(String),
    Help,
    Clear,
    System(Option<String>),
    Set { name: String, value: String },
    Show,
    Save(PathBuf),
    Load(PathBuf),
    Verbose,
    Leave,
}

/// Understands what was typed. A space before a slash makes a message of it, and so do several lines,
/// which were pasted: only instructions have as many.
///
/// # Errors
/// What is wrong with a command.
pub(super) fn understand(typed: &str) -> Result<Typed, String> {
    if typed.trim().is_empty() {
        return Ok(Typed::Nothing);
    }
    let is_pasted = typed.trim().contains('\n') && !typed.starts_with("/system");
    if !typed.starts_with('/') || is_pasted {
        return Ok(Typed::Message(unquoted(typed.trim()).to_owned()));
    }
    let (command, rest) = typed.split_once(char::is_whitespace).unwrap_or((typed, ""));
    let rest = rest.trim();
    let file = || match rest {
        "" => Err(format!("{command} needs a file: {command} FILE")),
        _ => Ok(PathBuf::from(rest)),
    };
    let alone = |typed| match rest {
        "" => Ok(typed),
        _ => Err(format!("{command} takes nothing after it")),
    };
    match command {
        "/help" | "/?" => alone(Typed::Help),
        "/clear" => alone(Typed::Clear),
        "/system" => {
            Ok(Typed::System(Some(unquoted(rest).to_owned()).filter(|text| !text.is_empty())))
        }
        "/set" => {
            let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Ok(Typed::Set { name: name.to_owned(), value: value.trim().to_owned() })
        }
        "/show" => alone(Typed::Show),
        "/save" => file().map(Typed::Save),
        "/load" => file().map(Typed::Load),
        "/verbose" => alone(Typed::Verbose),
        "/bye" | "/exit" | "/quit" => alone(Typed::Leave),
        _ => Err(format!(
            "there is no command {command}: /help lists them, and a space before it sends it as it is"
        )),
    }
}

/// Whether more lines belong to what was typed so far.
pub(super) fn is_unfinished(typed: &str) -> bool {
    let text = typed.trim();
    let text = text.strip_prefix("/system").map_or(text, str::trim_start);
    match text.strip_prefix(QUOTES) {
        Some(text) => !text.ends_with(QUOTES),
        None => false,
    }
}

/// The text between quotes, without the line ends that are next to them, or the text as it is.
fn unquoted(text: &str) -> &str {
    let inner = text.strip_prefix(QUOTES).and_then(|text| text.strip_suffix(QUOTES));
    match inner {
        Some(inner) => {
            let inner = inner.strip_prefix('\n').unwrap_or(inner);
            inner.strip_suffix('\n').unwrap_or(inner)
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(typed: &str) -> String {
        match understand(typed) {
            Ok(Typed::Message(text)) => text,
            other => panic!("{typed:?} is {other:?}"),
        }
    }

    #[test]
    fn what_begins_with_a_slash_is_a_command() {
        let set = |name: &str, value: &str| Typed::Set { name: name.into(), value: value.into() };
        for (typed, expected) in [
            ("/help", Typed::Help),
            ("/clear ", Typed::Clear),
            ("/system  be brief ", Typed::System(Some("be brief".into()))),
            ("/system \"\"\"\na\nb\n\"\"\"", Typed::System(Some("a\nb".into()))),
            ("/system", Typed::System(None)),
            ("/set top_k  40", set("top_k", "40")),
            ("/set stop", set("stop", "")),
            ("/save a b.json", Typed::Save("a b.json".into())),
            ("/load x", Typed::Load("x".into())),
            ("/bye", Typed::Leave),
            (" \n", Typed::Nothing),
        ] {
            assert_eq!(understand(typed), Ok(expected), "{typed:?}");
        }
        for wrong in ["/frobnicate", "/save", "/clear all", "/usr/bin/env"] {
            let error = understand(wrong).unwrap_err();
            assert!(error.contains(wrong.split(' ').next().unwrap()), "{error}");
        }
        assert_eq!(message(" /usr/bin/env is what?"), "/usr/bin/env is what?");
        assert_eq!(message("/* code\n   with a comment */"), "/* code\n   with a comment */");
    }

    #[test]
    fn every_command_of_the_list_is_understood() {
        for (command, takes, _) in COMMANDS {
            assert!(understand(&format!("{command} {takes}").replace("[TEXT]", "x")).is_ok());
        }
    }

    #[test]
    fn quotes_go_around_several_lines() {
        assert_eq!(message("\"\"\"\n one\ntwo\n\"\"\""), " one\ntwo");
        assert_eq!(message("\"\"\"one\"\"\""), "one");
        assert_eq!(message("a \"\"\" b"), "a \"\"\" b");
        for unfinished in ["\"\"\"", "\"\"\"a", " \"\"\"\na\n\"\"", "/system \"\"\"a", "\"\"\"\"\""]
        {
            assert!(is_unfinished(unfinished), "{unfinished:?}");
        }
        for finished in ["\"\"\"\"\"\"", "\"\"\"a\nb\"\"\" ", "a \"\"\"", "", "/system x"] {
            assert!(!is_unfinished(finished), "{finished:?}");
        }
    }
}

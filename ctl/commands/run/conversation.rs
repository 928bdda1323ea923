//! A conversation: what was said, and how to go on. It can be kept in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use m40_control::{ModelRef, RunMessage, RunParams, RunRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{CommandError, Kind};

/// Largest file that is taken for a conversation.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What was said so far, and how the next answer is to be made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conversation {
    /// Instructions that go before all that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How to answer.
    #[serde(default)]
    pub params: RunParams,
    /// What was said, by `user` and `assistant` in turn.
    pub messages: Vec<RunMessage>,
}

impl Conversation {
    /// The request for an answer to this question.
    pub(super) fn request(&self, model: &ModelRef, question: &str) -> RunRequest {
        let system = self.system.iter().map(|system| message("system", system));
        let messages = system.chain(self.messages.iter().cloned());
        let messages = messages.chain([message("user", question)]).collect();
        RunRequest { model: model.clone(), messages, params: self.params.clone() }
    }

    /// The question was asked and the answer given.
    pub(super) fn add(&mut self, question: String, answer: String) {
        self.messages.push(message("user", &question));
        self.messages.push(message("assistant", &answer));
    }

    /// Writes it into a file that only its owner can read. An existing file is replaced only where
    /// `replace` says that it may be.
    pub(super) fn save(&self, path: &Path, replace: bool) -> Result<(), CommandError> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if replace {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let mut file = options.open(path).map_err(|error| {
            let failed = about(path, &error);
            let there = error.kind() == io::ErrorKind::AlreadyExists;
            if there { failed.hint("name a file that is not there yet") } else { failed }
        })?;
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        writeln!(file, "{text}").map_err(|error| about(path, &error))
    }

    /// Reads what [`save`](Self::save) has written.
    pub(super) fn load(path: &Path) -> Result<Self, CommandError> {
        let file = File::open(path).map_err(|error| about(path, &error))?;
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
        if read.map_err(|error| about(path, &error))? as u64 > FILE_BYTES_MAX {
            let message = format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display());
            return Err(
                CommandError::new(Kind::BadData, message).hint("is it one that /save wrote?")
            );
        }
        serde_json::from_str(&text).map_err(|error| {
            let message = format!("{} is no saved conversation: {error}", path.display());
            CommandError::new(Kind::BadData, message).hint("name one that /save wrote")
        })
    }
}

fn about(path: &Path, error: &io::Error) -> CommandError {
    CommandError::new(Kind::Io, format!("{}: {error}", path.display()))
}

fn message(role: &str, content: &str) -> RunMessage {
    RunMessage { role: role.to_owned(), content: content.to_owned() }
}

/// The parameters with one set to what a person typed for it: a number, `true`, a text, or a list of
/// texts as JSON has it. Nothing typed leaves it to the daemon again.
pub(super) fn set(params: &RunParams, name: &str, typed: &str) -> Result<RunParams, CommandError> {
    let wrong =
        |message: String, hint: &str| Err(CommandError::new(Kind::Usage, message).hint(hint));
    if !RunParams::NAMES.contains(&name) {
        let hint = format!("there are {}", RunParams::NAMES.join(", "));
        return wrong(format!("there is no parameter {name:?}"), &hint);
    }
    let mut value = serde_json::from_str(typed).unwrap_or_else(|_| typed.into());
    if typed.is_empty() {
        value = Value::Null;
    } else if name == "stop" && !value.is_array() {
        value = vec![typed].into();
    }
    let all = serde_json::to_value(params).and_then(serde_json::from_value);
    let changed = all.and_then(|mut all: Map<String, Value>| {
        all.insert(name.to_owned(), value);
        serde_json::from_value(all.into())
    });
    changed.or_else(|error| wrong(format!("{name} cannot be {typed:?}"), &error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_request_has_instructions_history_and_question_in_order() {
        let mut conversation =
            Conversation { system: Some("be brief".into()), ..Conversation::default() };
        conversation.add("hi".into(), "hello".into());
        let request = conversation.request(&ModelRef::Name("m".into()), "why?");
        let said: Vec<_> =
            request.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected =
            [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "why?")];
        assert_eq!(said, expected);
    }

    #[test]
    fn parameters_are_set_by_name_and_unset_by_nothing() {
        let none = RunParams::default();
        let some = set(&none, "top_k", "40").unwrap();
        assert_eq!(some, RunParams { top_k: Some(40), ..RunParams::default() });
        assert_eq!(set(&some, "top_k", "").unwrap(), none);
        let stops = |typed: &str| set(&none, "stop", typed).unwrap().stop.unwrap();
        assert_eq!(stops("###"), ["###"]);
        assert_eq!(stops("12"), ["12"]);
        assert_eq!(stops(r#"["a", "b"]"#), ["a", "b"]);
        assert_eq!(set(&none, "ignore_eos", "true").unwrap().ignore_eos, Some(true));
        for (name, typed) in [("top_k", "-1"), ("seed", "x"), ("heat", "1"), ("temperature", "hot")]
        {
            let error = set(&none, name, typed).unwrap_err();
            assert!(error.kind == Kind::Usage && error.hint.is_some(), "{error}");
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn a_saved_conversation_comes_back_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.json");
        let mut conversation = Conversation::default();
        conversation.add("a\n\"\u{e9}".into(), "b".into());
        conversation.save(&path, false).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Conversation::load(&path).unwrap(), conversation);

        let again = conversation.save(&path, false).unwrap_err();
        assert!(again.hint.is_some() && again.message.contains("chat.json"), "{again}");
        conversation.save(&path, true).unwrap();

        std::fs::write(&path, "[]").unwrap();
        assert_eq!(Conversation::load(&path).unwrap_err().kind, Kind::BadData);
        assert_eq!(Conversation::load(&dir.path().join("none")).unwrap_err().kind, Kind::Io);
    }
}

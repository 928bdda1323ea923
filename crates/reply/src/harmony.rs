//! Reads answers in harmony, the format of gpt-oss: messages with a header that says who is spoken to.
//!
//! ```text
//! <|channel|>analysis<|message|>reasoning<|end|><|start|>assistant<|channel|>final<|message|>content
//! <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
//! ```
//! The prompt ends with `<|start|>assistant`.

use crate::Tools;
use crate::json::{Followed, Scan};
use crate::pieces::{Pieces, drain, find};

pub(crate) const START: &str = "<|start|>";
pub(crate) const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
pub(crate) const MESSAGE: &str = "<|message|>";
pub(crate) const END: &str = "<|end|>";
/// What ends a message.
const ENDS: [&str; 3] = [END, "<|call|>", "<|return|>"];
/// What a message goes to.
pub(crate) const MESSAGE_ENDS: [&str; 5] = [ENDS[0], ENDS[1], ENDS[2], START, CHANNEL];
/// What a header begins with; the prompt has the start of the first.
const BEGINNINGS: [&str; 3] = [START, CHANNEL, "to="];
/// The tools of a request are in this namespace.
const NAMESPACE: &str = "functions.";

/// All that is syntax.
pub(crate) const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, ENDS[0], ENDS[1], ENDS[2]];

/// Longest header.
const HEADER_MAX: usize = 512;

/// The state of one answer.
#[derive(Debug)]
pub(crate) struct Harmony {
    tools: Tools,
    /// What was written and not told yet.
    held: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A header comes, or the end of a message.
    Between,
    Content,
    Reasoning,
    Arguments(Scan),
    /// Arguments that are no JSON, up to the end.
    Broken,
}

/// What a message is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Content,
    Reasoning,
    Call(String),
}

/// What a text begins with.
enum Header {
    Unsure,
    /// The end of a message, of so many bytes.
    End(usize),
    /// No header, or that of a call that is none; it has so many bytes.
    No(usize),
    /// What is before the message has so many bytes.
    Is(Kind, usize),
}

impl Harmony {
    /// For an answer to a prompt that ends so.
    pub(crate) fn new(tools: &Tools, prompt_tail: &str) -> Self {
        // A prompt may have begun the message too.
        let header = prompt_tail.rfind(START).map(|at| &prompt_tail[at..]);
        let begun = header.filter(|header| !ENDS.iter().any(|end| header.contains(end)));
        let kind = begun.and_then(|header| header.find(MESSAGE).map(|end| kind(&header[..end])));
        let state = match kind.flatten() {
            None => State::Between,
            Some(Kind::Reasoning) => State::Reasoning,
            Some(_) => State::Content,
        };
        Self { tools: tools.clone(), held: String::new(), state }
    }

    /// Takes more text, or the end.
    pub(crate) fn read(&mut self, text: &str, end: bool, pieces: &mut Pieces) {
        self.held.push_str(text);
        while !self.held.is_empty() && self.step(end, pieces) {}
    }

    /// Whether there may be more to do.
    fn step(&mut self, end: bool, pieces: &mut Pieces) -> bool {
        match &mut self.state {
            State::Between => match header(&self.held, &self.tools, end) {
                Header::Unsure => return false,
                Header::End(length) => drop(self.held.drain(..length)),
                Header::No(length) => {
                    pieces.content(&drain(&mut self.held, length));
                    self.state = State::Content;
                }
                Header::Is(kind, length) => {
                    self.held.drain(..length);
                    self.state = match kind {
                        Kind::Content => State::Content,
                        Kind::Reasoning => State::Reasoning,
                        Kind::Call(name) => {
                            pieces.call(name);
                            State::Arguments(Scan::new())
                        }
                    };
                }
            },
            State::Content | State::Reasoning => return self.message(end, pieces),
            State::Arguments(scan) => match scan.follow(&self.held) {
                Followed::Within => pieces.arguments(&std::mem::take(&mut self.held)),
                Followed::Broken => self.state = State::Broken,
                Followed::Whole(length) => {
                    pieces.arguments(&drain(&mut self.held, length));
                    pieces.call_end();
                    self.state = State::Between;
                }
            },
            State::Broken => pieces.arguments(&std::mem::take(&mut self.held)),
        }
        true
    }

    fn message(&mut self, end: bool, pieces: &mut Pieces) -> bool {
        let (at, found) = find(&self.held, &MESSAGE_ENDS, end);
        let text = drain(&mut self.held, at);
        match self.state {
            State::Reasoning => pieces.reasoning(&text),
            _ => pieces.content(&text),
        }
        if found {
            self.state = State::Between;
        }
        found
    }
}

/// Reads a header at the start of a text.
fn header(text: &str, tools: &Tools, end: bool) -> Header {
    let last = end || text.len() > HEADER_MAX;
    let text = &text[..text.floor_char_boundary(HEADER_MAX)];
    let rest = text.trim_start();
    let lead = text.len() - rest.len();
    if let Some(end) = ENDS.iter().find(|end| rest.starts_with(**end)) {
        return Header::End(lead + end.len());
    }
    let unsure = |no: usize| if last { Header::No(no) } else { Header::Unsure };
    let first = rest.chars().next().map_or(text.len(), |first| lead + first.len_utf8());
    let may_be = |mark: &&str| rest.starts_with(*mark) || mark.starts_with(rest);
    if !BEGINNINGS.iter().chain(&ENDS).any(may_be) {
        return Header::No(first);
    }
    let Some(message) = rest.find(MESSAGE) else { return unsure(first) };
    let body = lead + message + MESSAGE.len();
    match kind(&rest[..message]) {
        None => Header::No(first),
        Some(Kind::Call(name)) if tools.get(&name).is_none() => Header::No(body),
        Some(Kind::Call(name)) => {
            let arguments = text[body..].trim_start();
            match arguments.chars().next() {
                None => unsure(body),
                Some('{') => Header::Is(Kind::Call(name), text.len() - arguments.len()),
                Some(_) => Header::No(body),
            }
        }
        Some(kind) => Header::Is(kind, body),
    }
}

/// What a header without its end says; `None` where it is none.
fn kind(header: &str) -> Option<Kind> {
    let header = header.strip_prefix(START).unwrap_or(header);
    let (role, rest) = header.split_once(CHANNEL).unwrap_or((header, "final"));
    let rest = rest.split(CONSTRAIN).next().unwrap_or_default();
    let mut recipient = None;
    for word in role.split_whitespace() {
        match word.strip_prefix("to=") {
            Some(to) => recipient = Some(to),
            None if word == "assistant" => {}
            None => return None,
        }
    }
    let mut words = rest.split_whitespace();
    let channel = words.next()?;
    recipient = words.find_map(|word| word.strip_prefix("to=")).or(recipient);
    match (recipient, channel) {
        (Some(to), _) => Some(Kind::Call(to.strip_prefix(NAMESPACE).unwrap_or(to).to_owned())),
        (None, "analysis") => Some(Kind::Reasoning),
        (None, "final" | "commentary") => Some(Kind::Content),
        (None, _) => None,
    }
}

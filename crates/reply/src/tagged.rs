//! Reads answers in which reasoning and calls stand between marks in plain text.

use crate::Tools;
use crate::call::{self, After, Head, Not, Tail};
use crate::format::Think;
use crate::json::{Followed, Scan};
use crate::pieces::{Pieces, drain, find};
use crate::syntax::Syntax;
use crate::xml::{Parameters, Read};

/// Most bytes that are held back before it is sure that they are a call, or belong to one.
const HELD_MAX: usize = 16 << 10;

/// The state of one answer.
#[derive(Debug)]
pub(crate) struct Tagged {
    think: Option<Think>,
    /// Empty where there are no tools.
    syntaxes: &'static [Syntax],
    openings: Vec<&'static str>,
    tools: Tools,
    /// What was written and not told yet.
    held: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Content begins, or something else.
    Start(Before),
    Content,
    Reasoning {
        begun: bool,
    },
    Arguments(Scan, After),
    Parameters(Parameters, After),
    /// The arguments are complete.
    After(After),
    /// A separator is there, after which another call may come.
    Next(After),
    /// Arguments that are no JSON, up to the end.
    Broken,
}

/// What is before content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Reasoning or a call, with blank lines after it.
    Other,
}

/// Whether a step came to an end of what there is.
enum Step {
    Again,
    Wait,
}

impl Tagged {
    /// For an answer to a prompt that ends so.
    pub(crate) fn new(
        think: Option<Think>,
        syntaxes: &'static [Syntax],
        tools: &Tools,
        prompt_tail: &str,
    ) -> Self {
        let tail = prompt_tail.trim_end();
        let opened = think.is_some_and(|think| tail.ends_with(think.open));
        let closed = think.is_some_and(|think| tail.ends_with(think.close));
        let state = match (opened, closed) {
            (true, _) => State::Reasoning { begun: false },
            (false, true) => State::Start(Before::Other),
            (false, false) => State::Start(Before::Nothing),
        };
        let syntaxes: &[_] = if tools.is_empty() { &[] } else { syntaxes };
        let openings = syntaxes.iter().flat_map(Syntax::openings).collect();
        Self { think, syntaxes, openings, tools: tools.clone(), held: String::new(), state }
    }

    /// Takes more text, or the end.
    pub(crate) fn read(&mut self, text: &str, end: bool, pieces: &mut Pieces) {
        self.held.push_str(text);
        while !self.held.is_empty() {
            if let Step::Wait = self.step(end, pieces) {
                break;
            }
        }
    }

    fn step(&mut self, end: bool, pieces: &mut Pieces) -> Step {
        match &mut self.state {
            State::Start(before) => {
                let before = *before;
                self.start(before, end, pieces)
            }
            State::Content => self.content(end, pieces),
            State::Reasoning { .. } => self.reasoning(end, pieces),
            State::Arguments(scan, after) => {
                let after = *after;
                match scan.follow(&self.held) {
                    Followed::Within => pieces.arguments(&std::mem::take(&mut self.held)),
                    Followed::Broken => self.state = State::Broken,
                    Followed::Whole(length) => {
                        pieces.arguments(&drain(&mut self.held, length));
                        pieces.call_end();
                        self.state = State::After(after);
                    }
                }
                Step::Again
            }
            State::Parameters(parameters, after) => {
                let after = *after;
                match parameters.read(&mut self.held, end, pieces) {
                    Read::Again => {}
                    Read::Wait => return Step::Wait,
                    Read::Whole => {
                        pieces.call_end();
                        self.state = State::After(after);
                    }
                    Read::Broken => self.state = State::Broken,
                }
                Step::Again
            }
            State::After(after) => {
                let after = *after;
                self.after(after, end)
            }
            State::Next(after) => {
                let after = *after;
                let head = |text: &str, tools: &Tools| call::next_head(after, text, tools);
                match self.decide(0, end, head) {
                    Ok(head) => self.begin_call(0, head, pieces),
                    Err(Not::Yet) => return Step::Wait,
                    Err(Not::Ever) => self.state = State::Content,
                }
                Step::Again
            }
            State::Broken => {
                pieces.arguments(&std::mem::take(&mut self.held));
                Step::Again
            }
        }
    }

    /// Reads the first that is no white space.
    fn start(&mut self, before: Before, end: bool, pieces: &mut Pieces) -> Step {
        let first = self.held.len() - self.held.trim_start().len();
        let rest = &self.held[first..];
        if rest.is_empty() && !end {
            return Step::Wait;
        }
        if let Some(think) = self.think.filter(|_| before == Before::Nothing) {
            if rest.starts_with(think.open) {
                self.held.drain(..first + think.open.len());
                self.state = State::Reasoning { begun: false };
                return Step::Again;
            }
            if think.open.starts_with(rest) && !end {
                return Step::Wait;
            }
        }
        match self.call_at(first, end, |syntax| syntax.open.is_empty()) {
            Ok(head) => self.begin_call(first, head, pieces),
            Err(Not::Yet) => return Step::Wait,
            Err(Not::Ever) => {
                if before == Before::Other {
                    let blank = if first == self.held.len() {
                        first
                    } else {
                        self.held[..first].rfind('\n').map_or(0, |at| at + 1)
                    };
                    self.held.drain(..blank);
                }
                self.state = State::Content;
            }
        }
        Step::Again
    }

    fn content(&mut self, end: bool, pieces: &mut Pieces) -> Step {
        let (at, opens) = find(&self.held, &self.openings, end);
        // White space before a call goes with it.
        let text = &self.held[..at];
        let sure =
            if self.openings.is_empty() || (end && !opens) { at } else { text.trim_end().len() };
        pieces.content(&drain(&mut self.held, sure));
        if !opens {
            return Step::Wait;
        }
        let at = at - sure;
        match self.call_at(at, end, |syntax| !syntax.open.is_empty()) {
            Ok(head) => self.begin_call(at, head, pieces),
            Err(Not::Yet) => return Step::Wait,
            Err(Not::Ever) => {
                let first = self.held[at..].chars().next().map_or(0, char::len_utf8);
                pieces.content(&drain(&mut self.held, at + first));
            }
        }
        Step::Again
    }

    fn reasoning(&mut self, end: bool, pieces: &mut Pieces) -> Step {
        if let State::Reasoning { begun: begun @ false } = &mut self.state {
            let space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..space);
            if self.held.is_empty() {
                return Step::Wait;
            }
            *begun = true;
        }
        let close = self.think.map_or("", |think| think.close);
        let (at, closes) = find(&self.held, &[close], end);
        let text = &self.held[..at];
        let sure = if end && !closes { at } else { text.trim_end().len() };
        pieces.reasoning(&drain(&mut self.held, sure));
        if !closes {
            return Step::Wait;
        }
        self.held.drain(..at - sure + close.len());
        self.state = State::Start(Before::Other);
        Step::Again
    }

    /// Tells of a call that begins at this byte.
    fn begin_call(&mut self, from: usize, head: Head, pieces: &mut Pieces) {
        let (at, state) = match head {
            Head::Streams { name, at, after } => {
                pieces.call(name);
                (at, State::Arguments(Scan::new(), after))
            }
            Head::Tags { name, at, after } => {
                let parameters = self.tools.get(&name).map(Parameters::new);
                pieces.call(name);
                (at, parameters.map_or(State::Broken, |read| State::Parameters(read, after)))
            }
            Head::Whole { calls, at, after } => {
                for (name, arguments) in calls {
                    pieces.call(name);
                    pieces.arguments(&arguments);
                    pieces.call_end();
                }
                (at, State::After(after))
            }
        };
        self.held.drain(..from + at);
        self.state = state;
    }

    /// Passes what is left of a call.
    fn after(&mut self, after: After, end: bool) -> Step {
        match self.decide(0, end, |text, _| after.tail(text)) {
            Ok(Tail::End(length)) => {
                self.held.drain(..length);
                self.state = State::Start(Before::Other);
            }
            Ok(Tail::Next(at)) => {
                self.held.drain(..at);
                self.state = State::Next(after);
            }
            Err(Not::Yet) => return Step::Wait,
            // It was the beginning of what belongs to a call.
            Err(Not::Ever) if end => self.held.clear(),
            Err(Not::Ever) => self.state = State::Content,
        }
        Step::Again
    }

    /// The call that begins at this byte of what is held.
    fn call_at(&self, at: usize, end: bool, may: impl Fn(&Syntax) -> bool) -> Result<Head, Not> {
        let mut not = Not::Ever;
        for syntax in self.syntaxes.iter().filter(|syntax| may(syntax)) {
            match self.decide(at, end, |text, tools| call::head(syntax, text, tools)) {
                Ok(head) => return Ok(head),
                Err(Not::Yet) => not = Not::Yet,
                Err(Not::Ever) => {}
            }
        }
        Err(not)
    }

    /// Reads what is held from this byte on; what is not sure at the end, or after very much, never is.
    fn decide<T>(
        &self,
        at: usize,
        end: bool,
        read: impl FnOnce(&str, &Tools) -> Result<T, Not>,
    ) -> Result<T, Not> {
        let text = &self.held[at..];
        let most = text.floor_char_boundary(HELD_MAX);
        let last = end || text.len() > HELD_MAX;
        read(&text[..most], &self.tools).map_err(|not| if last { Not::Ever } else { not })
    }
}

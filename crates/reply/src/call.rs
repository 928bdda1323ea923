//! Where a call begins and ends in a text of which more may come.

use crate::Tools;
use crate::json::{Followed, Scan};
use crate::python;
use crate::syntax::{Shape, Syntax};
use crate::xml;

/// Why a text does not begin with what was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Not {
    /// It may, with more text.
    Yet,
    Ever,
}

/// A call at the start of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// Its arguments begin at `at`.
    Streams { name: String, at: usize, after: After },
    /// The tags of its arguments begin at `at`.
    Tags { name: String, at: usize, after: After },
    /// Calls with all of their arguments, up to `at`.
    Whole { calls: Vec<(String, String)>, at: usize, after: After },
}

/// What may follow the arguments of a call and is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct After {
    syntax: &'static Syntax,
    /// The rest of the object that the arguments are in.
    object: bool,
    /// More calls, or the end of their array.
    list: bool,
}

/// What follows the arguments of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// So many bytes belong to the call.
    End(usize),
    /// At this byte is a separator, after which another call may come.
    Next(usize),
}

/// Looks for a call at the start of a text.
pub(crate) fn head(syntax: &'static Syntax, text: &str, tools: &Tools) -> Result<Head, Not> {
    let mut cursor = Cursor { text, at: 0 };
    if let Some(outer) = syntax.outer {
        cursor.may_pass(outer)?;
    }
    cursor.pass(syntax.open)?;
    match syntax.shape {
        Shape::Object => {
            let list = syntax.opens_list || cursor.may_pass("[")?;
            object(After { syntax, object: true, list }, cursor, tools)
        }
        Shape::Named { before, id, between } => {
            cursor.pass(before)?;
            let name = cursor.word()?;
            if tools.get(name).is_none() {
                return Err(Not::Ever);
            }
            if let Some(id) = id
                && cursor.may_pass(id)?
            {
                cursor.word()?;
            }
            cursor.pass(between)?;
            let after = After { syntax, object: false, list: false };
            Ok(Head::Streams { name: name.to_owned(), at: cursor.begin_object()?, after })
        }
        Shape::Xml => {
            let name = cursor.word()?;
            if tools.get(name).is_none() {
                return Err(Not::Ever);
            }
            cursor.pass(">")?;
            cursor.pass_one_ahead(&[xml::PARAMETER, xml::FUNCTION_END, xml::CALL_END])?;
            let after = After { syntax, object: false, list: false };
            Ok(Head::Tags { name: name.to_owned(), at: cursor.at, after })
        }
        Shape::Python => {
            let body = cursor.rest();
            let close = syntax.closes.first().and_then(|close| body.find(close));
            let length = close.ok_or(Not::Yet)?;
            let calls = python::calls(&body[..length], tools).ok_or(Not::Ever)?;
            let after = After { syntax, object: false, list: false };
            Ok(Head::Whole { calls, at: cursor.at + length, after })
        }
    }
}

/// Looks for another call at a separator.
pub(crate) fn next_head(after: After, text: &str, tools: &Tools) -> Result<Head, Not> {
    // Separators are of one byte.
    object(After { object: true, ..after }, Cursor { text, at: 1 }, tools)
}

fn object(after: After, mut cursor: Cursor<'_>, tools: &Tools) -> Result<Head, Not> {
    let (mut name, mut arguments) = (None, None);
    cursor.pass("{")?;
    loop {
        // As it is written: nobody spells these with escapes.
        let key = cursor.value()?;
        cursor.pass(":")?;
        match key.trim_matches('"') {
            "name" if name.is_none() => {
                let tool = cursor.string()?;
                tools.get(&tool).ok_or(Not::Ever)?;
                name = Some(tool);
            }
            "arguments" | "parameters" if arguments.is_none() => {
                let at = cursor.begin_object()?;
                if let Some(name) = name {
                    return Ok(Head::Streams { name, at, after });
                }
                arguments = Some(cursor.value()?.to_owned());
            }
            "id" | "type" => {
                cursor.value()?;
            }
            _ => return Err(Not::Ever),
        }
        if let (Some(name), Some(arguments)) = (&mut name, &mut arguments) {
            let calls = vec![(std::mem::take(name), std::mem::take(arguments))];
            return Ok(Head::Whole { calls, at: cursor.at, after });
        }
        cursor.pass(",")?;
    }
}

impl After {
    /// What of the text after the arguments belongs to the call. What is left out is not missed.
    pub(crate) fn tail(&self, text: &str) -> Result<Tail, Not> {
        let mut cursor = Cursor { text, at: 0 };
        if self.object {
            cursor.may(Cursor::end_object)?;
        }
        let separator = if self.list { Some(',') } else { self.syntax.separator };
        let mut ahead = cursor;
        ahead.skip_space();
        match ahead.rest().chars().next() {
            None => return Err(Not::Yet),
            next if next == separator => return Ok(Tail::Next(ahead.at)),
            Some(']') if self.list => cursor.at = ahead.at + 1,
            Some(_) => {}
        }
        for close in self.syntax.closes {
            cursor.may_pass(close)?;
        }
        Ok(Tail::End(cursor.at))
    }
}

/// A place in a text, up to which all belongs to a syntax. What fails leaves it anywhere.
#[derive(Clone, Copy)]
struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Passes this text, and white space before it.
    fn pass(&mut self, wanted: &str) -> Result<(), Not> {
        self.skip_space();
        let rest = self.rest();
        if rest.starts_with(wanted) {
            self.at += wanted.len();
            Ok(())
        } else if wanted.starts_with(rest) {
            Err(Not::Yet)
        } else {
            Err(Not::Ever)
        }
    }

    /// Passes what need not be there, and says whether it was.
    fn may(&mut self, pass: impl FnOnce(&mut Self) -> Result<(), Not>) -> Result<bool, Not> {
        let before = *self;
        match pass(self) {
            Ok(()) => Ok(true),
            Err(Not::Yet) => Err(Not::Yet),
            Err(Not::Ever) => {
                *self = before;
                Ok(false)
            }
        }
    }

    fn may_pass(&mut self, wanted: &str) -> Result<bool, Not> {
        self.may(|cursor| cursor.pass(wanted))
    }

    /// Passes a JSON value, and white space before it.
    fn value(&mut self) -> Result<&'t str, Not> {
        self.skip_space();
        let rest = self.rest();
        match Scan::new().follow(rest) {
            Followed::Within => Err(Not::Yet),
            Followed::Broken => Err(Not::Ever),
            Followed::Whole(length) => {
                self.at += length;
                Ok(&rest[..length])
            }
        }
    }

    fn string(&mut self) -> Result<String, Not> {
        serde_json::from_str(self.value()?).map_err(|_| Not::Ever)
    }

    /// Whether one of these follows, which is not passed.
    fn pass_one_ahead(&self, wanted: &[&str]) -> Result<(), Not> {
        let mut not = Not::Ever;
        for wanted in wanted {
            let mut ahead = *self;
            match ahead.pass(wanted) {
                Ok(()) => return Ok(()),
                Err(Not::Yet) => not = Not::Yet,
                Err(Not::Ever) => {}
            }
        }
        Err(not)
    }

    /// Where an object begins, which is not passed.
    fn begin_object(&self) -> Result<usize, Not> {
        let mut ahead = *self;
        ahead.pass("{")?;
        Ok(ahead.at - 1)
    }

    /// Passes the end of an object after a value in it, and what else it has.
    fn end_object(&mut self) -> Result<(), Not> {
        while !self.may_pass("}")? {
            self.pass(",")?;
            self.string()?;
            self.pass(":")?;
            self.value()?;
        }
        Ok(())
    }

    /// Passes a name or identifier, whose end must be in sight.
    fn word(&mut self) -> Result<&'t str, Not> {
        self.skip_space();
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        match rest.find(|c| !is_part(c)) {
            None => Err(Not::Yet),
            Some(0) => Err(Not::Ever),
            Some(length) => {
                self.at += length;
                Ok(&rest[..length])
            }
        }
    }
}

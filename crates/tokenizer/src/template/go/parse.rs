//! The text of a template to what it does.

use std::collections::BTreeSet;

use super::super::TemplateError;

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// How deep blocks and parentheses may be in each other.
const DEPTH_MAX: usize = 64;

const KEYWORDS: [&str; 12] = [
    "if", "else", "end", "range", "with", "break", "continue", "define", "template", "block",
    "and", "or",
];

/// Whether a word at the start of an action is one of this language.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// A step of a template. `line` is where it begins, from 1.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    /// Writes a value, or gives variables one.
    Print {
        pipe: Pipe,
        line: usize,
    },
    If {
        pipe: Pipe,
        then: Vec<Self>,
        other: Vec<Self>,
        line: usize,
    },
    With {
        pipe: Pipe,
        then: Vec<Self>,
        other: Vec<Self>,
        line: usize,
    },
    Range {
        pipe: Pipe,
        body: Vec<Self>,
        other: Vec<Self>,
        line: usize,
    },
    Break,
    Continue,
}

impl Node {
    /// `{{ .Response }}`.
    pub(super) fn response() -> Self {
        let calls = vec![vec![Operand::Field(vec!["Response".to_owned()])]];
        Self::Print { pipe: Pipe { variables: vec![], declares: false, calls }, line: 0 }
    }
}

/// `$x, $y := a b | c`: calls, each with the value before as its last argument.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) variables: Vec<String>,
    /// Whether the variables are new, and not others' that have another value from here on.
    pub(super) declares: bool,
    pub(super) calls: Vec<Vec<Operand>>,
}

#[derive(Debug)]
pub(super) enum Operand {
    /// Of the value at hand; itself, without a name.
    Field(Vec<String>),
    /// `$` has an empty name.
    Variable(String, Vec<String>),
    Group(Box<Pipe>, Vec<String>),
    Function(Function),
    Text(String),
    Integer(i64),
    Bool(bool),
    Nil,
}

/// Functions that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    And,
    Or,
    Not,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Len,
    Index,
    Slice,
    Print,
    Json,
    CurrentDate,
}

impl Function {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "and" => Self::And,
            "or" => Self::Or,
            "not" => Self::Not,
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "lt" => Self::Lt,
            "le" => Self::Le,
            "gt" => Self::Gt,
            "ge" => Self::Ge,
            "len" => Self::Len,
            "index" => Self::Index,
            "slice" => Self::Slice,
            "print" => Self::Print,
            "json" => Self::Json,
            "currentDate" => Self::CurrentDate,
            _ => return None,
        })
    }
}

/// The steps of a template, and the names of all fields in it.
pub(super) fn parse(source: &str) -> Result<(Vec<Node>, BTreeSet<String>), TemplateError> {
    let (fields, counted) = (BTreeSet::new(), (0, 1));
    let mut parser = Parser { source, at: 0, counted, trims: false, fields };
    match parser.nodes(0, false)? {
        (nodes, End::OfText) => Ok((nodes, parser.fields)),
        (_, End::Else) => Err(parser.error("an else without an if")),
        (_, End::OfBlock) => Err(parser.error("an end of nothing")),
    }
}

/// What a list of steps ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    OfText,
    /// Inside the action, behind the word.
    Else,
    /// Behind the action.
    OfBlock,
}

struct Parser<'s> {
    source: &'s str,
    at: usize,
    /// A place, and its line.
    counted: (usize, usize),
    /// Whether the text that follows begins without its white space.
    trims: bool,
    fields: BTreeSet<String>,
}

impl<'s> Parser<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn line(&mut self) -> usize {
        let (at, line) = self.counted;
        let more = self.source.get(at..self.at).map_or(0, |text| text.matches('\n').count());
        self.counted = (self.at.max(at), line + more);
        self.counted.1
    }

    fn error(&mut self, message: impl Into<String>) -> TemplateError {
        TemplateError::Syntax { line: self.line(), message: message.into() }
    }

    fn nodes(&mut self, depth: usize, loops: bool) -> Result<(Vec<Node>, End), TemplateError> {
        if depth > DEPTH_MAX {
            return Err(self.error("blocks are too deep in each other"));
        }
        let mut nodes = vec![];
        loop {
            let Some(text) = self.text() else { return Ok((nodes, End::OfText)) };
            if !text.is_empty() {
                nodes.push(Node::Text(text.to_owned()));
            }
            if self.at == self.source.len() {
                return Ok((nodes, End::OfText));
            }
            let line = self.open();
            if self.comment()? {
                continue;
            }
            match self.word() {
                "if" => {
                    let pipe = self.value(depth)?;
                    let (then, other) = self.branches(depth, loops, "if")?;
                    nodes.push(Node::If { pipe, then, other, line });
                }
                "with" => {
                    let pipe = self.value(depth)?;
                    let (then, other) = self.branches(depth, loops, "with")?;
                    nodes.push(Node::With { pipe, then, other, line });
                }
                "range" => {
                    let pipe = self.pipe(depth)?;
                    let (body, other) = self.branches(depth, true, "range")?;
                    nodes.push(Node::Range { pipe, body, other, line });
                }
                "else" => return Ok((nodes, End::Else)),
                "end" => {
                    self.close()?;
                    return Ok((nodes, End::OfBlock));
                }
                word @ ("break" | "continue") => {
                    if !loops {
                        return Err(self.error(format!("{word} is not in a range")));
                    }
                    self.close()?;
                    nodes.push(if word == "break" { Node::Break } else { Node::Continue });
                }
                word @ ("define" | "template" | "block") => {
                    return Err(self.error(format!("{word} is not supported")));
                }
                word => {
                    self.at -= word.len();
                    let pipe = self.value(depth)?;
                    self.close()?;
                    nodes.push(Node::Print { pipe, line });
                }
            }
        }
    }

    /// The steps of a block up to its end, and those behind an else.
    fn branches(
        &mut self,
        depth: usize,
        loops: bool,
        block: &str,
    ) -> Result<(Vec<Node>, Vec<Node>), TemplateError> {
        self.close()?;
        let (then, end) = self.nodes(depth + 1, loops)?;
        match end {
            End::OfBlock => Ok((then, vec![])),
            End::OfText => Err(self.error(format!("{block} has no end"))),
            End::Else => Ok((then, self.other(depth, loops)?)),
        }
    }

    /// What is behind an else: steps up to the end, or another block that ends with the same.
    fn other(&mut self, depth: usize, loops: bool) -> Result<Vec<Node>, TemplateError> {
        if depth >= DEPTH_MAX {
            return Err(self.error("blocks are too deep in each other"));
        }
        let line = self.line();
        match self.word() {
            "" => {
                self.close()?;
                let (other, end) = self.nodes(depth + 1, loops)?;
                if end != End::OfBlock {
                    return Err(self.error("else has no end"));
                }
                Ok(other)
            }
            "if" => {
                let pipe = self.value(depth)?;
                let (then, other) = self.branches(depth + 1, loops, "else if")?;
                Ok(vec![Node::If { pipe, then, other, line }])
            }
            "with" => {
                let pipe = self.value(depth)?;
                let (then, other) = self.branches(depth + 1, loops, "else with")?;
                Ok(vec![Node::With { pipe, then, other, line }])
            }
            word => Err(self.error(format!("{word:?} behind else"))),
        }
    }

    /// Text up to the next action, without the white space that is not of it; none at the end.
    fn text(&mut self) -> Option<&'s str> {
        let rest = self.rest();
        if rest.is_empty() {
            return None;
        }
        let end = rest.find("{{").unwrap_or(rest.len());
        self.at += end;
        let mut text = &rest[..end];
        if self.trims {
            text = text.trim_start_matches(is_space);
        }
        let action = self.rest().strip_prefix("{{-");
        if action.is_some_and(|action| action.starts_with(is_space)) {
            text = text.trim_end_matches(is_space);
        }
        self.trims = false;
        Some(text)
    }

    /// Goes into an action, whose line this is.
    fn open(&mut self) -> usize {
        let line = self.line();
        self.at += 2;
        let marked = self.rest().strip_prefix('-').is_some_and(|rest| rest.starts_with(is_space));
        self.at += usize::from(marked);
        self.space();
        line
    }

    /// Goes behind the end of an action.
    fn close(&mut self) -> Result<(), TemplateError> {
        let spaced =
            self.source[..self.at].ends_with(is_space) || self.rest().starts_with(is_space);
        self.space();
        let spaced = spaced || self.source[..self.at].ends_with(is_space);
        if spaced && self.rest().starts_with("-}}") {
            self.trims = true;
            self.at += 3;
            return Ok(());
        }
        if self.rest().starts_with("}}") {
            self.at += 2;
            return Ok(());
        }
        let found: String = self.rest().chars().take(12).collect();
        Err(self.error(format!("{found:?} where an action should end")))
    }

    /// Goes behind an action that is a comment.
    fn comment(&mut self) -> Result<bool, TemplateError> {
        let Some(comment) = self.rest().strip_prefix("/*") else { return Ok(false) };
        let Some(end) = comment.find("*/") else {
            return Err(self.error("a comment has no end"));
        };
        self.at += end + 4;
        self.close()?;
        Ok(true)
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(is_space).len();
    }

    /// Takes a word of letters and digits, which may be empty, and the space before it.
    fn word(&mut self) -> &'s str {
        self.space();
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn takes(&mut self, what: &str) -> bool {
        self.space();
        let takes = self.rest().starts_with(what);
        self.at += if takes { what.len() } else { 0 };
        takes
    }

    /// A pipe that one variable may have the value of.
    fn value(&mut self, depth: usize) -> Result<Pipe, TemplateError> {
        let pipe = self.pipe(depth)?;
        match pipe.variables.len() {
            0 | 1 => Ok(pipe),
            _ => Err(self.error("a value is given to two variables")),
        }
    }

    fn pipe(&mut self, depth: usize) -> Result<Pipe, TemplateError> {
        let (variables, declares) = self.variables()?;
        let mut calls = vec![];
        loop {
            let call = self.call(depth)?;
            if call.is_empty() {
                return Err(self.error("a value is missing"));
            }
            if !calls.is_empty() && !matches!(call[0], Operand::Function(_)) {
                return Err(self.error("only a function takes the value of a pipe"));
            }
            calls.push(call);
            if !self.takes("|") {
                return Ok(Pipe { variables, declares, calls });
            }
        }
    }

    /// Variables that a pipe gives its value, `$i, $x :=`, and whether they are new.
    fn variables(&mut self) -> Result<(Vec<String>, bool), TemplateError> {
        let begin = self.at;
        let mut names = vec![];
        while names.len() < 2 && self.takes("$") {
            names.push(self.name()?.to_owned());
            if !self.takes(",") {
                break;
            }
        }
        for (mark, declares) in [(":=", true), ("=", false)] {
            if !names.is_empty() && self.takes(mark) {
                return Ok((names, declares));
            }
        }
        self.at = begin;
        Ok((vec![], false))
    }

    /// A function and its arguments, or a value.
    fn call(&mut self, depth: usize) -> Result<Vec<Operand>, TemplateError> {
        let mut operands = vec![];
        while let Some(operand) = self.operand(depth)? {
            operands.push(operand);
        }
        if operands.len() > 1 && !matches!(operands[0], Operand::Function(_)) {
            return Err(self.error("what is not a function has arguments"));
        }
        Ok(operands)
    }

    fn operand(&mut self, depth: usize) -> Result<Option<Operand>, TemplateError> {
        self.space();
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        Ok(Some(match first {
            '.' => Operand::Field(self.names()?),
            '$' => {
                self.at += 1;
                let name = self.name()?.to_owned();
                Operand::Variable(name, self.names()?)
            }
            '(' => {
                if depth >= DEPTH_MAX {
                    return Err(self.error("parentheses are too deep in each other"));
                }
                self.at += 1;
                let pipe = self.value(depth + 1)?;
                if !self.takes(")") {
                    return Err(self.error("a parenthesis has no end"));
                }
                Operand::Group(Box::new(pipe), self.names()?)
            }
            '"' | '`' => Operand::Text(self.quoted(first)?),
            '0'..='9' => self.integer()?,
            '-' if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.integer()?,
            c if c.is_alphabetic() => match self.word() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                name => match Function::named(name) {
                    Some(function) => Operand::Function(function),
                    None => return Err(self.error(format!("there is no function {name:?}"))),
                },
            },
            _ => return Ok(None),
        }))
    }

    /// Names behind dots, `.A.B`, of which there may be none; a dot alone is none either.
    fn names(&mut self) -> Result<Vec<String>, TemplateError> {
        let mut names = vec![];
        while self.rest().starts_with('.') {
            self.at += 1;
            let name = self.name()?.to_owned();
            if name.is_empty() {
                break;
            }
            self.fields.insert(name.clone());
            names.push(name);
        }
        Ok(names)
    }

    /// A name that follows at once, or none.
    fn name(&mut self) -> Result<&'s str, TemplateError> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        if end > NAME_BYTES_MAX {
            return Err(self.error(format!("a name of more than {NAME_BYTES_MAX} bytes")));
        }
        Ok(&rest[..end])
    }

    fn integer(&mut self) -> Result<Operand, TemplateError> {
        let rest = self.rest();
        let end = rest[1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
        let digits = &rest[..end.map_or(rest.len(), |end| end + 1)];
        self.at += digits.len();
        let number = digits.parse().map_err(|_| self.error(format!("{digits} is no whole number")));
        Ok(Operand::Integer(number?))
    }

    /// A text in quotes, or in backquotes as it is.
    fn quoted(&mut self, quote: char) -> Result<String, TemplateError> {
        self.at += 1;
        let mut text = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\n' if quote == '"' => break,
                '\\' if quote == '"' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, c @ ('\\' | '"' | '\''))) => text.push(c),
                    _ => return Err(self.error("an escape that is not supported")),
                },
                c => text.push(c),
            }
        }
        Err(self.error("a text has no end"))
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

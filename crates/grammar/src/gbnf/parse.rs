//! The text of a GBNF grammar to its rules.

use std::collections::HashMap;
use std::fmt::Write;

use super::syntax::{Rules, Term};
use crate::GrammarError;

/// Rules of a grammar.
const MAX_RULES: usize = 4096;
/// Parentheses in parentheses.
const MAX_DEPTH: usize = 24;
/// What `{m,n}` may say.
const MAX_REPEATS: u32 = 2000;
/// What is to be added where a rule is missing its beginning.
const RULE: &str = "write `name ::= ...`";

/// Reads a grammar from its rule `root`.
pub(super) fn parse(text: &str) -> Result<Rules, GrammarError> {
    let mut parser = Parser { text, at: 0, rules: HashMap::new(), terms: vec![], named_at: vec![] };
    parser.space();
    while parser.peek().is_some() {
        parser.rule()?;
        parser.space();
    }
    parser.finish()
}

struct Parser<'t> {
    text: &'t str,
    /// Bytes that were read.
    at: usize,
    /// Numbers of rules by name.
    rules: HashMap<&'t str, usize>,
    /// What each stands for, as far as they were read.
    terms: Vec<Option<Term>>,
    /// Where each was named first.
    named_at: Vec<usize>,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn expect(&mut self, text: &str, why: &str) -> Result<(), GrammarError> {
        if self.eat(text) { Ok(()) } else { Err(self.error(self.at, why)) }
    }

    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            self.take(char::is_whitespace);
            if self.peek() != Some('#') {
                return;
            }
            self.take(|c| c != '\n');
        }
    }

    fn take(&mut self, is: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !is(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn error(&self, at: usize, reason: impl Into<String>) -> GrammarError {
        let before = &self.text[..at];
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count() + 1;
        GrammarError::Gbnf { line, column, reason: reason.into() }
    }

    fn name(&mut self) -> &'t str {
        self.take(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    }

    /// The number of a rule, from when it is first named.
    fn number(&mut self, name: &'t str, at: usize) -> Result<usize, GrammarError> {
        if let Some(number) = self.rules.get(name) {
            return Ok(*number);
        }
        if self.terms.len() == MAX_RULES {
            return Err(self.error(at, format!("there are more than {MAX_RULES} rules")));
        }
        self.terms.push(None);
        self.named_at.push(at);
        self.rules.insert(name, self.terms.len() - 1);
        Ok(self.terms.len() - 1)
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let at = self.at;
        let name = self.name();
        if name.is_empty() {
            return Err(self.error(at, format!("a rule must begin with its name: {RULE}")));
        }
        self.space();
        self.expect("::=", &format!("the rule {name} has no `::=`: {RULE}"))?;
        let number = self.number(name, at)?;
        if self.terms[number].is_some() {
            return Err(
                self.error(at, format!("there is a rule {name} before: give one a new name"))
            );
        }
        self.terms[number] = Some(self.choice(0)?);
        Ok(())
    }

    fn choice(&mut self, depth: usize) -> Result<Term, GrammarError> {
        if depth > MAX_DEPTH {
            let reason = format!("more than {MAX_DEPTH} parentheses in each other: use rules");
            return Err(self.error(self.at, reason));
        }
        let mut terms = vec![self.sequence(depth)?];
        while self.eat("|") {
            terms.push(self.sequence(depth)?);
        }
        Ok(if terms.len() == 1 { terms.swap_remove(0) } else { Term::Choice(terms) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Term, GrammarError> {
        let mut terms = vec![];
        loop {
            self.space();
            let Some(mut term) = self.term(depth)? else { break };
            self.space();
            while let Some((least, most)) = self.repetition()? {
                term = Term::Repeat(Box::new(term), least, most);
                self.space();
            }
            terms.push(term);
        }
        Ok(Term::Sequence(terms))
    }

    /// None at the end of a sequence.
    fn term(&mut self, depth: usize) -> Result<Option<Term>, GrammarError> {
        let at = self.at;
        let term = match self.peek() {
            None | Some('|' | ')') => return Ok(None),
            Some('"') => self.literal()?,
            Some('[') => self.class()?,
            Some('<') => self.token()?,
            Some('.') => {
                self.next();
                Term::Class("(?s:.)".to_owned())
            }
            Some('(') => {
                self.next();
                let term = self.choice(depth + 1)?;
                self.expect(")", "a parenthesis is open: write )")?;
                term
            }
            Some(_) => {
                let name = self.name();
                if name.is_empty() {
                    let reason = "expected \"text\", [a class], ( ), a rule's name or a <token>";
                    return Err(self.error(at, reason));
                }
                if self.begins_rule() {
                    self.at = at;
                    return Ok(None);
                }
                Term::Rule(self.number(name, at)?)
            }
        };
        Ok(Some(term))
    }

    /// Whether the name that was read is that of the next rule.
    fn begins_rule(&mut self) -> bool {
        let at = self.at;
        self.space();
        let begins = self.rest().starts_with("::=");
        self.at = at;
        begins
    }

    fn token(&mut self) -> Result<Term, GrammarError> {
        let at = self.at;
        self.next();
        let name = self.take(|c| c != '>' && c != '<' && !c.is_whitespace());
        let whole = !name.is_empty() && self.eat(">");
        let token = || Term::Token(self.text[at..self.at].to_owned());
        whole.then(token).ok_or_else(|| self.error(at, "a token is written <name> or <[id]>"))
    }

    fn literal(&mut self) -> Result<Term, GrammarError> {
        let at = self.at;
        self.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error(at, "a text has no end: write \"")),
                Some('"') => break,
                Some(_) => text.push(self.character()?),
            }
        }
        self.next();
        Ok(Term::Literal(text))
    }

    fn class(&mut self) -> Result<Term, GrammarError> {
        let at = self.at;
        self.next();
        let mut class = String::from(if self.eat("^") { "[^" } else { "[" });
        let empty = class.len();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error(at, "a class has no end: write ]")),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let ranges = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = if ranges {
                self.next();
                self.character()?
            } else {
                first
            };
            if last < first {
                return Err(
                    self.error(at, format!("the class has a range {first}-{last}: swap them"))
                );
            }
            let (first, last) = (u32::from(first), u32::from(last));
            write!(class, "\\u{{{first:x}}}-\\u{{{last:x}}}").expect("a String takes it");
        }
        self.next();
        if class.len() == empty {
            return Err(self.error(at, "the class is empty: name the characters, or write ."));
        }
        class.push(']');
        Ok(Term::Class(class))
    }

    /// A character of a text or a class, which may be escaped.
    fn character(&mut self) -> Result<char, GrammarError> {
        let at = self.at;
        let unfinished = "the grammar ends within a text or a class";
        let first = self.next().ok_or_else(|| self.error(at, unfinished))?;
        if first != '\\' {
            return Ok(first);
        }
        let escaped = self.next().ok_or_else(|| self.error(at, unfinished))?;
        let digits = match escaped {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' => return Ok(escaped),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => {
                let reason = format!(
                    "there is no escape \\{escaped}: there are \\n \\r \\t \\\\ \\\" \\[ \\] \\x41 \
                     \\u0041 \\U00000041"
                );
                return Err(self.error(at, reason));
            }
        };
        let code = self.rest().get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let character = code.and_then(char::from_u32);
        self.at += if character.is_some() { digits } else { 0 };
        character.ok_or_else(|| {
            self.error(
                at,
                format!("\\{escaped} must have {digits} hexadecimal digits of a character"),
            )
        })
    }

    fn repetition(&mut self) -> Result<Option<(u32, Option<u32>)>, GrammarError> {
        let at = self.at;
        let bounds = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.next();
                let bounds = self.bounds()?;
                self.space();
                self.expect("}", "a repetition is written {2}, {2,} or {2,5}")?;
                return Ok(Some(bounds));
            }
            _ => return Ok(None),
        };
        self.at = at + 1;
        Ok(Some(bounds))
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        let at = self.at;
        let least = self.count()?.unwrap_or(0);
        self.space();
        let most = if self.eat(",") { self.count()? } else { Some(least) };
        if most.is_some_and(|most| most < least || most == 0) {
            let reason = format!("at least {least} and at most {} cannot be", most.unwrap_or(0));
            return Err(self.error(at, reason));
        }
        Ok((least, most))
    }

    fn count(&mut self) -> Result<Option<u32>, GrammarError> {
        self.space();
        let at = self.at;
        let digits = self.take(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return Ok(None);
        }
        let count = digits.parse().ok().filter(|count| *count <= MAX_REPEATS);
        let reason = || format!("{digits} is too often: at most {MAX_REPEATS} times");
        count.map(Some).ok_or_else(|| self.error(at, reason()))
    }

    fn finish(mut self) -> Result<Rules, GrammarError> {
        let missing = "there is no rule root: write `root ::= ...` for where to begin";
        let root = *self.rules.get("root").ok_or_else(|| self.error(0, missing))?;
        let mut names = vec![""; self.terms.len()];
        self.rules.iter().for_each(|(name, number)| names[*number] = name);
        let terms = std::mem::take(&mut self.terms);
        let term = |(number, term): (usize, Option<Term>)| {
            let reason = || format!("there is no rule {}: write `{0} ::= ...`", names[number]);
            term.ok_or_else(|| self.error(self.named_at[number], reason()))
        };
        Ok(Rules {
            terms: terms.into_iter().enumerate().map(term).collect::<Result<_, _>>()?,
            root,
        })
    }
}

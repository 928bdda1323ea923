//! GBNF, llama.cpp's grammars, to Lark.
//!
//! GBNF has characters where Lark has terminals, which the parser matches as far as they go. So what a
//! grammar has of regular parts becomes terminals as large as can be: a rule that does not come back to
//! itself is one, and so are neighbours in a sequence. Only between a terminal and a rule that does come
//! back can the difference be seen: a class that is repeated before such a rule takes all that it can,
//! and leaves the rule nothing to begin with. Whatever is matched is in the language of the grammar.

mod parse;
mod syntax;

use std::fmt::Write;

use self::syntax::{Rules, Term};
use crate::GrammarError;

/// The Lark grammar of the same texts.
pub(crate) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = parse::parse(text)?;
    let regular = regular(&rules);
    let mut writer = Writer { regular: &regular, terminals: 0, lines: String::new() };
    for (number, term) in rules.terms.iter().enumerate() {
        let (name, term) = if regular[number] {
            (terminal_of_rule(number), writer.terminal(term))
        } else {
            (format!("r{number}"), writer.rule(term))
        };
        writer.line(&name, &term);
    }
    let root = Term::Rule(rules.root);
    let start = if regular[rules.root] { writer.terminal(&root) } else { writer.rule(&root) };
    writer.line("start", &start);
    Ok(writer.lines)
}

fn terminal_of_rule(number: usize) -> String {
    format!("R{number}")
}

/// Of each rule, whether a regular expression could do for it: it never comes back to itself, nor
/// names a token.
fn regular(rules: &Rules) -> Vec<bool> {
    let mut known = vec![None; rules.terms.len()];
    for number in 0..rules.terms.len() {
        look(rules, number, &mut known);
    }
    known.into_iter().map(|regular| regular == Some(true)).collect()
}

/// Rules that are being looked at count as not regular: whoever meets one comes back to it.
fn look(rules: &Rules, number: usize, known: &mut [Option<bool>]) -> bool {
    if let Some(regular) = known[number] {
        return regular;
    }
    known[number] = Some(false);
    let regular = rules.terms[number].all(&mut |term| match term {
        Term::Rule(other) => look(rules, *other, known),
        Term::Token(_) => false,
        _ => true,
    });
    known[number] = Some(regular);
    regular
}

struct Writer<'a> {
    regular: &'a [bool],
    /// Terminals that stand for no rule of their own.
    terminals: usize,
    lines: String,
}

impl Writer<'_> {
    fn line(&mut self, name: &str, term: &str) {
        writeln!(self.lines, "{name}: {term}").expect("a String takes all that is written");
    }

    fn is_regular(&self, term: &Term) -> bool {
        term.all(&mut |term| match term {
            Term::Rule(number) => self.regular[*number],
            Term::Token(_) => false,
            _ => true,
        })
    }

    /// A regular term as a part of a terminal.
    fn terminal(&self, term: &Term) -> String {
        match term {
            Term::Literal(text) => literal(text),
            Term::Class(class) => format!("/{class}/"),
            Term::Rule(number) => terminal_of_rule(*number),
            Term::Token(name) => name.clone(),
            Term::Sequence(terms) => joined(terms.iter().map(|term| self.terminal(term)), " "),
            Term::Choice(terms) => joined(terms.iter().map(|term| self.terminal(term)), " | "),
            Term::Repeat(term, least, most) => repeated(&self.terminal(term), *least, *most),
        }
    }

    /// A term as a part of a rule, its regular parts as terminals.
    fn rule(&mut self, term: &Term) -> String {
        if self.is_regular(term) {
            return self.name(std::slice::from_ref(term), " ");
        }
        match term {
            Term::Sequence(terms) => self.parts(terms, " "),
            Term::Choice(terms) => self.parts(terms, " | "),
            Term::Repeat(term, least, most) => repeated(&self.rule(term), *least, *most),
            Term::Rule(number) => format!("r{number}"),
            Term::Token(name) => name.clone(),
            // These are regular.
            Term::Literal(_) | Term::Class(_) => self.terminal(term),
        }
    }

    /// Terms with a separator between them; regular neighbours are one terminal.
    fn parts(&mut self, terms: &[Term], separator: &str) -> String {
        let mut parts = vec![];
        let mut rest = terms;
        while !rest.is_empty() {
            let regular = rest.iter().take_while(|term| self.is_regular(term)).count();
            let (these, others) = rest.split_at(regular.max(1));
            parts.push(match regular {
                0 => self.rule(&these[0]),
                _ => self.name(these, separator),
            });
            rest = others;
        }
        joined(parts.into_iter(), separator)
    }

    /// The name of a terminal for these terms.
    fn name(&mut self, terms: &[Term], separator: &str) -> String {
        if let [Term::Rule(number)] = terms {
            return terminal_of_rule(*number);
        }
        let name = format!("T{}", self.terminals);
        self.terminals += 1;
        let parts: Vec<_> = terms.iter().map(|term| self.terminal(term)).collect();
        self.line(&name, &joined(parts.into_iter(), separator));
        name
    }
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    let parts: Vec<_> = parts.collect();
    match &parts[..] {
        [] => "\"\"".to_owned(),
        [part] => part.clone(),
        _ => format!("({})", parts.join(separator)),
    }
}

fn repeated(term: &str, least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => format!("({term})*"),
        (1, None) => format!("({term})+"),
        (0, Some(1)) => format!("({term})?"),
        (least, None) => format!("(({term})~{least} ({term})*)"),
        (least, Some(most)) => format!("({term})~{least}..{most}"),
    }
}

/// As JSON writes it; the parser wants DEL escaped, too.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

//! What a GBNF grammar says.

/// All rules, by number.
#[derive(Debug)]
pub(super) struct Rules {
    /// What each stands for.
    pub(super) terms: Vec<Term>,
    /// The number of `root`.
    pub(super) root: usize,
}

/// What a rule, or a part of one, stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Term {
    /// This text.
    Literal(String),
    /// One character of a class, written as in a regular expression.
    Class(String),
    /// What another rule stands for.
    Rule(usize),
    /// A token, by its name in angle brackets.
    Token(String),
    /// One after the other.
    Sequence(Vec<Term>),
    /// One of these.
    Choice(Vec<Term>),
    /// At least so often, and at most.
    Repeat(Box<Term>, u32, Option<u32>),
}

impl Term {
    /// Whether all parts that have no parts are so.
    pub(super) fn all(&self, is: &mut dyn FnMut(&Self) -> bool) -> bool {
        match self {
            Self::Sequence(terms) | Self::Choice(terms) => terms.iter().all(|term| term.all(is)),
            Self::Repeat(term, ..) => term.all(is),
            Self::Literal(_) | Self::Class(_) | Self::Rule(_) | Self::Token(_) => is(self),
        }
    }
}

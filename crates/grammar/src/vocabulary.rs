//! A model's tokens as a trie of bytes, which masks are made of, and compiling grammars for them.

use std::fmt;
use std::sync::Arc;
use std::thread;

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use m40_tokenizer::Tokenizer;

use crate::error::shown;
use crate::{Constraint, Grammar, GrammarError, gbnf, lark, schema};

/// Longer tokens are never chosen inside a grammar: the trie is as deep as the longest.
const MAX_TOKEN_BYTES: usize = 512;
/// What the trie can number.
const MAX_TRIE_BYTES: usize = 1 << 22;
/// Text of a grammar: ten times the largest in use.
const MAX_TEXT_BYTES: usize = 1 << 18;
/// The compiler recurses from rule to rule, and from term to term. Pages that it does not touch cost
/// nothing.
const STACK_BYTES: usize = 256 << 20;
/// States that a constraint's lexer keeps, 1 to 2 KB each.
const MAX_LEXER_STATES: usize = 20_000;
/// Symbols of all rules of a grammar.
const MAX_GRAMMAR_SIZE: usize = 200_000;

/// The tokens of a model, ready for grammars. Clones are handles to the same.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    tokenizer: Arc<Tokenizer>,
    factory: ParserFactory,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.0.tokenizer.vocab_size();
        f.debug_struct("Vocabulary").field("tokens", &tokens).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Takes tens of milliseconds for 50,000 tokens, and some tens of bytes for each.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`], if the tokens are longer than any model's.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let unusable = |reason: String| GrammarError::Vocabulary { reason };
        let trie = trie(&tokenizer)?;
        let tokens: TokEnv = Arc::new(Tokens { trie, tokenizer: tokenizer.clone() });
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
            .map_err(|error| unusable(shown(error)))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.verbose_errors = false;
        Ok(Self(Arc::new(Inner { tokenizer, factory })))
    }

    /// Prepares a grammar for answers in these tokens. What it asks for is bounded in size, depth and
    /// work, whoever wrote it.
    ///
    /// # Errors
    /// See [`GrammarError`]: all but [`GrammarError::Vocabulary`] and [`GrammarError::Stuck`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("m40-grammar".into()).stack_size(STACK_BYTES);
            let running = thread
                .spawn_scoped(scope, || self.compile_here(grammar))
                .map_err(|error| GrammarError::NoThread { reason: error.to_string() })?;
            // The parser catches its panics; another is a mistake of ours, not of the request.
            running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Needs much stack.
    fn compile_here(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let tokenizer = &self.0.tokenizer;
        let of_form = |form| move |reason| GrammarError::Grammar { form, reason };
        let start = match grammar {
            Grammar::Json => self
                .start(TopLevelGrammar::from_json_schema(schema::any_object()))
                .map_err(of_form("grammar of JSON")),
            Grammar::JsonSchema(asked) => self
                .start(TopLevelGrammar::from_json_schema(schema::prepare(asked)?))
                .map_err(|reason| schema::refused(asked, reason)),
            Grammar::Regex(regex) => {
                bounded("the regular expression", regex)?;
                self.start(TopLevelGrammar::from_regex(regex))
                    .map_err(of_form("regular expression"))
            }
            Grammar::Lark(text) => {
                bounded("the Lark grammar", text)?;
                let text = lark::resolve(text, tokenizer)?;
                self.start(TopLevelGrammar::from_lark(text)).map_err(of_form("Lark grammar"))
            }
            Grammar::Gbnf(text) => {
                bounded("the GBNF grammar", text)?;
                let text = lark::resolve(&gbnf::to_lark(text)?, tokenizer)?;
                self.start(TopLevelGrammar::from_lark(text)).map_err(of_form("GBNF grammar"))
            }
        }?;
        Ok(Constraint::new(start, self.clone()))
    }

    fn start(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let parser = self.0.factory.create_parser(grammar);
        Ok(Matcher::new(Ok(parser.map_err(|error| shown(format!("{error:#}")))?)))
    }

    /// Whether both are handles to the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn bounded(what: &'static str, text: &str) -> Result<(), GrammarError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(GrammarError::TooLarge { what, limit: MAX_TEXT_BYTES, unit: "bytes" });
    }
    Ok(())
}

/// What each token writes. Control tokens write nothing: where a grammar names one, it is by its id.
fn trie(tokenizer: &Tokenizer) -> Result<TokTrie, GrammarError> {
    let vocab = tokenizer.vocab_size() as u32;
    let text = |id| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let marked = bytes.len() > 1 && bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER;
        let none = tokenizer.is_control(id) || marked || bytes.len() > MAX_TOKEN_BYTES;
        if none { vec![] } else { bytes.into_owned() }
    };
    let texts: Vec<Vec<u8>> = (0..vocab).map(text).collect();
    let bytes: usize = texts.iter().map(Vec::len).sum();
    if bytes >= MAX_TRIE_BYTES {
        let reason =
            format!("its tokens have {bytes} bytes, and at most {MAX_TRIE_BYTES} are read");
        return Err(GrammarError::Vocabulary { reason });
    }
    let trie = TokTrie::from(&TokRxInfo::new(vocab, INVALID_TOKEN), &texts);
    match tokenizer.ends_of_generation() {
        [] => Ok(trie),
        ends => Ok(trie.with_eos_tokens(ends)),
    }
}

/// The model's tokenizer, as the parser wants it: where the grammar leaves one way on, the tokens of
/// that are those that the model would see in a prompt.
struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let whole = std::str::from_utf8(bytes).ok().map(|text| self.tokenizer.encode_within(text));
        // Some tokenizers add a space, or leave out what they have no token for.
        let exact = whole.filter(|ids| self.trie.decode(ids) == bytes);
        exact.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}

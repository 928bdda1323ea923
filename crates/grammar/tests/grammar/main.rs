//! Which texts grammars let by, token for token, with the vocabularies of tiny and of real models.

mod gbnf;
mod hostile;
mod json;
mod kept;
mod texts;

use std::sync::{Arc, LazyLock};

use m40_gguf::Gguf;
use m40_grammar::{Constraint, Grammar, GrammarError, Progress, Vocabulary};
use m40_testkit::gguf::TinyModel;
use m40_tokenizer::Tokenizer;

/// A model's tokens, as text and for grammars.
struct Model {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Vocabulary,
}

/// 288 tokens of byte-level BPE.
static TINY: LazyLock<Model> = LazyLock::new(|| Model::tiny("llama"));

impl Model {
    fn tiny(architecture: &str) -> Self {
        Self::of(TinyModel::new(architecture).builder().build())
    }

    fn of(file: Vec<u8>) -> Self {
        let file = Gguf::parse(file).expect("the file is whole");
        let tokenizer = Arc::new(Tokenizer::from_gguf(&file).expect("it has a vocabulary"));
        let vocabulary = Vocabulary::new(tokenizer.clone()).expect("an ordinary one");
        Self { tokenizer, vocabulary }
    }

    fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        self.vocabulary.compile(grammar)
    }

    /// Tokens that may come next.
    fn allowed(&self, progress: &mut Progress) -> Vec<u32> {
        let mut logits = vec![0.0; self.tokenizer.vocab_size()];
        progress.mask(&mut logits).expect("there is a way on");
        (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(token, _)| token).collect()
    }

    /// Goes through `tokens` as far as they may come; true if all did, and the end may.
    fn takes(&self, grammar: &Grammar, tokens: &[u32]) -> bool {
        let constraint = self.compile(grammar).unwrap_or_else(|error| panic!("{error}"));
        let mut progress = constraint.start();
        for token in tokens {
            if !self.allowed(&mut progress).contains(token) {
                return false;
            }
            progress.accept(*token).expect("it may come");
        }
        let ends = self.tokenizer.ends_of_generation();
        self.allowed(&mut progress).iter().any(|token| ends.contains(token))
    }

    /// Whether an answer may be this text, each of its bytes a token, as no other way of writing it is
    /// forced on these grammars.
    fn writes(&self, grammar: &Grammar, text: &str) -> bool {
        self.takes(grammar, &self.tokenizer.encode_within(text))
    }
}

/// Checks that answers may be each of `good`, and none of `bad`.
fn check(grammar: &Grammar, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(TINY.writes(grammar, text), "{grammar:?} must take {text:?}");
    }
    for text in bad {
        assert!(!TINY.writes(grammar, text), "{grammar:?} must not take {text:?}");
    }
}

/// What is said of a grammar that is refused: one line.
fn refusal(grammar: &Grammar) -> (GrammarError, String) {
    let error = TINY.compile(grammar).map(|_| ()).expect_err("it must be refused");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 900, "{text}");
    (error, text)
}

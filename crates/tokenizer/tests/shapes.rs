//! The vocabularies of models of real sizes (`m40_testkit::shapes`) work whole.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use m40_gguf::Gguf;
use m40_testkit::shapes::Shape;
use m40_tokenizer::{Special, Tokenizer};

const TEXT: &str = "Hello world, naïve 12345 <tags>\n\tand ünïcode: 你好";

fn tokenizer(shape: Shape) -> Tokenizer {
    // The width is nothing to the tokenizer.
    let thin = Shape { layers: 1, hidden: 256, feed_forward: 256, heads: 4, kv_heads: 2, ..shape };
    let file = tempfile::NamedTempFile::new().unwrap();
    thin.write(file.path(), 2).unwrap();
    let gguf = Gguf::parse(std::fs::read(file.path()).unwrap()).unwrap();
    Tokenizer::from_gguf(&gguf).unwrap()
}

#[test]
fn every_shape_encodes_any_text_with_a_vocabulary_of_its_size() {
    for shape in Shape::all() {
        let (name, vocab) = (shape.name, shape.vocab);
        let tokenizer = tokenizer(shape);
        assert_eq!(tokenizer.vocab_size(), vocab, "{name}");
        let ids = tokenizer.encode(TEXT, Special::default());
        assert_eq!(tokenizer.decode(&ids, false), TEXT, "{name}");
        assert!(tokenizer.eos().is_some() && tokenizer.eot().is_some(), "{name}");
    }
}

#[test]
fn every_token_of_a_shape_has_a_text_of_its_own() {
    let tokenizer = tokenizer(Shape::by_name("1.5b").unwrap());
    let texts = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token_bytes(id).unwrap());
    let texts: std::collections::HashSet<_> = texts.collect();
    assert_eq!(texts.len(), tokenizer.vocab_size());
    let last = tokenizer.vocab_size() as u32 - 1;
    assert!(tokenizer.decode(&[last - 1, last], false).trim().split(' ').count() == 2);
}

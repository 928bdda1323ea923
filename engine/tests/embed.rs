//! Vectors of texts.

use std::thread;

use m40_testkit::gguf::{TinyEncoder, TinyModel};
use m40_testkit::tiny_encoders;

use super::*;
use crate::{BenchOptions, EmbedError, EmbedText, Pooling, Special};

fn text(tokens: &[u32]) -> EmbedText {
    EmbedText { tokens: tokens.to_vec(), second: None }
}

/// Texts of many lengths, up to the context of tiny models.
fn texts() -> Vec<EmbedText> {
    let tokens = |n: u32| (0..n).map(|i| 5 + (i * 7 + n) % 80).collect::<Vec<_>>();
    [1, 3, 64, 65, 150, 2, 192, 30, 7].map(|n| text(&tokens(n))).to_vec()
}

fn embed(model: &Model, texts: &[EmbedText], pooling: Option<Pooling>) -> Vec<Vec<f32>> {
    model.embed(texts, pooling, &CancelToken::new()).unwrap()
}

fn error(model: &Model, texts: &[EmbedText], pooling: Option<Pooling>) -> EmbedError {
    model.embed(texts, pooling, &CancelToken::new()).unwrap_err()
}

#[test]
fn a_vector_does_not_depend_on_the_texts_beside_it() {
    let decoder = TinyModel::new("llama").context(600).builder();
    for file in [TinyEncoder::bert().builder(), TinyEncoder::nomic_bert().builder(), decoder] {
        let model = Tiny::new(&file).load();
        let mut texts = texts();
        if model.info().generates {
            // Of more than a slice.
            texts.push(text(&[9; 590]));
        }
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            let together = embed(&model, &texts, Some(pooling));
            assert_eq!(together.len(), texts.len());
            for (text, vector) in texts.iter().zip(&together) {
                assert_eq!(vector.len(), model.info().embedding as usize);
                let alone = embed(&model, std::slice::from_ref(text), Some(pooling));
                assert!(alone[0] == *vector, "{pooling} of {} tokens", text.tokens.len());
            }
        }
    }
}

#[test]
fn the_file_says_how_a_vector_is_made_and_else_it_is_the_mean() {
    let of = |model: &Model, pooling| embed(model, &[text(&[7, 8, 9])], pooling);
    let bert = Tiny::new(&TinyEncoder::bert().builder()).load();
    assert_eq!(of(&bert, None), of(&bert, Some(Pooling::Cls)));
    assert_ne!(of(&bert, None), of(&bert, Some(Pooling::Mean)));
    let open = Tiny::new(&TinyEncoder::bert().pooling(None).builder()).load();
    assert_eq!(of(&open, None), of(&open, Some(Pooling::Mean)));
    let llama = tiny();
    assert_eq!(of(&llama, None), of(&llama, Some(Pooling::Mean)));
    assert_ne!(of(&llama, None), of(&llama, Some(Pooling::Last)));
}

#[test]
fn a_mean_is_the_mean_of_what_texts_that_end_sooner_have_last() {
    // Of a causal model the hidden state of a token does not depend on what follows.
    let model = tiny();
    let tokens = [11, 40, 80, 33];
    let last = |n: usize| embed(&model, &[text(&tokens[..n])], Some(Pooling::Last)).remove(0);
    let states: Vec<Vec<f32>> = (1..=4).map(last).collect();
    let mean = embed(&model, &[text(&tokens)], Some(Pooling::Mean)).remove(0);
    for (d, mean) in mean.iter().enumerate() {
        let expected = states.iter().map(|state| state[d]).sum::<f32>() / 4.0;
        assert!((mean - expected).abs() < 1e-5, "{mean} {expected}");
    }
}

#[test]
fn a_cross_encoder_judges_pairs_and_sees_where_the_second_text_begins() {
    let model = Tiny::new(&TinyEncoder::cross_encoder().builder()).load();
    assert_eq!((model.info().classes, model.pooling()), (1, Pooling::Rank));
    let pair = |second| EmbedText { tokens: vec![2, 10, 11, 3, 20, 21, 3], second };
    let texts = [pair(Some(4)), pair(Some(5)), pair(None)];
    let scores = embed(&model, &texts, None);
    assert!(scores.iter().all(|score| score.len() == 1));
    assert!(scores[0] != scores[1] && scores[1] != scores[2], "{scores:?}");
    // The same model has vectors of texts, too.
    assert_eq!(embed(&model, &texts, Some(Pooling::Cls))[0].len(), 128);
}

#[test]
fn what_cannot_be_embedded_is_refused_with_the_figures() {
    let model = Tiny::new(&TinyEncoder::bert().builder()).load();
    let good = text(&[5, 6]);
    let long = error(&model, &[good.clone(), text(&[5; 193])], None);
    assert_eq!(long, EmbedError::TooLong { index: 1, tokens: 193, context: 192 });
    assert!(long.to_string().contains("text 1 has 193 tokens, the context holds 192"), "{long}");
    assert_eq!(error(&model, &[good.clone(), text(&[])], None), EmbedError::Empty { index: 1 });
    let vocab = model.info().vocab;
    let unknown = EmbedError::UnknownToken { token: vocab, vocab };
    assert_eq!(error(&model, &[text(&[5, vocab])], None), unknown);
    assert_eq!(
        error(&model, std::slice::from_ref(&good), Some(Pooling::Rank)),
        EmbedError::NoClassifier
    );
    let cancelled = CancelToken::new();
    cancelled.cancel();
    assert_eq!(model.embed(&[good], None, &cancelled), Err(EmbedError::Cancelled));
    assert_eq!(embed(&model, &[], None), Vec::<Vec<f32>>::new());
}

#[test]
fn an_encoder_generates_nothing() {
    let model = Tiny::new(&TinyEncoder::bert().builder()).load();
    assert!(!model.info().generates);
    let params = GenerateParams::default();
    let generated =
        model.session().generate(&[5], &params, &CancelToken::new(), &mut |_| panic!("a piece"));
    assert_eq!(generated, Err(GenerateError::Encoder));
    let bench = model.bench(&BenchOptions::default(), &mut |_| panic!("a line"));
    assert_eq!(bench, Err(GenerateError::Encoder));
}

#[test]
fn an_encoder_takes_memory_for_a_whole_text_and_none_for_sessions() {
    let tiny = Tiny::new(&TinyEncoder::bert().builder());
    let model = tiny.load();
    let parts = model.footprint().parts();
    // 3 pages of 64 tokens, of keys and values of 2 layers, 128 wide, as f16.
    assert_eq!(parts.kv, 3 * 64 * 2 * 2 * 128 * 2);
    assert!(parts.scratch >= 192 * 128 * 4);
    assert_eq!(model.session_bytes(), 0);
    assert_eq!(
        engine().footprint(&tiny.path, &ModelOptions::default()).unwrap(),
        *model.footprint()
    );
}

#[test]
fn texts_mark_their_beginning_and_end_as_the_model_was_trained() {
    let model = Tiny::new(&TinyEncoder::bert().builder()).load();
    let tokens = model.tokenizer().encode("The cat sat.", Special { add: true, parse: false });
    let texts: Vec<_> = tokens.iter().map(|&id| model.tokenizer().decode(&[id], true)).collect();
    assert_eq!(texts, ["[CLS]", "the", "cat", "sat", ".", "[SEP]"]);
    let plain = model.tokenizer().encode("[SEP]", Special { add: false, parse: false });
    assert!(!plain.contains(&3), "what a text says is no mark: {plain:?}");
}

#[test]
fn answers_and_vectors_of_one_model_go_on_side_by_side() {
    let model = tiny();
    let params = GenerateParams {
        max_tokens: Some(40),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ignore_eos: true,
        ..GenerateParams::default()
    };
    let generate = || {
        let mut text = String::new();
        let done = model.session().generate(&[9, 10, 11], &params, &CancelToken::new(), &mut |c| {
            text.push_str(&c.text);
        });
        (text, done.unwrap().completion_tokens)
    };
    let (alone, vectors) = (generate(), embed(&model, &texts(), None));
    thread::scope(|scope| {
        let answers = [0; 3].map(|_| scope.spawn(generate));
        let embeddings = [0; 3].map(|_| scope.spawn(|| embed(&model, &texts(), None)));
        answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), alone));
        embeddings.into_iter().for_each(|found| assert_eq!(found.join().unwrap(), vectors));
    });
}

#[test]
fn every_tiny_encoder_loads_and_embeds() {
    for (name, model) in tiny_encoders::recipes() {
        let model = Tiny::new(&model.builder()).load();
        let vectors = embed(&model, &texts(), Some(Pooling::Mean));
        assert!(vectors.iter().flatten().all(|x| x.is_finite()), "{name}");
    }
}

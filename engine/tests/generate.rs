//! What a generation gives, and when it ends.

use std::sync::LazyLock;

use m40_testkit::gguf::Vocabulary;
use m40_testkit::models;

use super::*;

static SMOLLM2: LazyLock<Model> =
    LazyLock::new(|| engine().load(&models::smollm2(), &ModelOptions::default()).unwrap());

/// What SmolLM2 says of France: ` Paris.\n\nThe`, and what then is likeliest hangs on the processor.
fn france(params: &GenerateParams) -> Answer {
    let prompt = SMOLLM2.tokenizer().encode_prompt("The capital of France is");
    generate(&mut SMOLLM2.session(), &prompt, params)
}

#[test]
fn a_stop_text_ends_the_output_before_it_wherever_tokens_end() {
    let whole = france(&greedy(9));
    const COMMON: &str = " Paris.\n\nThe ";
    assert!(whole.text.starts_with(COMMON), "{:?}", whole.text);
    assert_eq!(whole.finish(), FinishReason::Length);
    for (stop, text) in [
        (" Paris", ""),
        ("aris.\n", " P"),
        (&whole.text[8..COMMON.len() + 3], " Paris.\n"),
        (&whole.text[COMMON.len() + 2..][..6], &whole.text[..COMMON.len() + 2]),
    ] {
        let stop = vec!["never".into(), stop.into()];
        let found = france(&GenerateParams { stop, ..greedy(9) });
        assert_eq!((found.text.as_str(), found.finish()), (text, FinishReason::Stop));
        assert_eq!(found.completion.stopped_by, Some(1));
        assert!(found.completion.completion_tokens < 9);
    }
}

#[test]
fn text_held_back_for_a_stop_text_that_does_not_come_is_shown_at_the_end() {
    let stop = vec![" has another".into()];
    assert_eq!(france(&GenerateParams { stop, ..greedy(9) }).text, france(&greedy(9)).text);
}

#[test]
fn a_stop_token_ends_the_output_without_being_part_of_it() {
    let whole = france(&greedy(9));
    let stop_tokens = vec![whole.ids()[2]];
    let found = france(&GenerateParams { stop_tokens, ..greedy(9) });
    assert_eq!(found.finish(), FinishReason::Stop);
    assert_eq!(found.ids(), whole.ids()[..2]);
    assert_eq!(found.completion.completion_tokens, 2);
    assert_eq!(found.completion.tokens, found.ids(), "the answer tells its tokens");
    assert!(whole.text.starts_with(&found.text) && found.text.starts_with(" Paris"));
}

#[test]
fn a_question_in_the_chat_template_is_answered_to_its_end() {
    let messages = serde_json::json!([{"role": "user", "content": "Say just the word yes."}]);
    let input = crate::TemplateInput::new(&messages);
    let text = SMOLLM2.chat_template().render(&input).unwrap();
    let prompt = SMOLLM2.tokenizer().encode_prompt(&text);
    let params = GenerateParams { ignore_eos: false, ..greedy(100) };
    let found = generate(&mut SMOLLM2.session(), &prompt, &params);
    assert_eq!(found.finish(), FinishReason::Stop, "{}", found.text);
    assert!(!found.text.is_empty() && !found.text.contains("<|im_end|>"), "{}", found.text);
}

/// Greedy, with this much added to the logits of one token.
fn biased(token: u32, bias: f32, max_tokens: u32) -> GenerateParams {
    let mut params = greedy(max_tokens);
    params.sampling.logit_bias = vec![(token, bias)];
    params
}

#[test]
fn the_models_own_end_ends_the_output_unless_ignored() {
    let model = tiny();
    for end in [Vocabulary::EOS, Vocabulary::IM_END] {
        let mut params = biased(end, 99.0, 5);
        let found = generate(&mut model.session(), &prompt(4, 0), &params);
        assert_eq!((found.finish(), found.ids()), (FinishReason::Length, vec![end; 5]));
        assert_eq!(found.text, "", "control tokens have no text");
        params.ignore_eos = false;
        let found = generate(&mut model.session(), &prompt(4, 0), &params);
        assert_eq!((found.finish(), found.ids()), (FinishReason::Stop, vec![]));
        assert_eq!(found.completion.completion_tokens, 0);
    }
}

#[test]
fn control_tokens_have_text_where_it_is_asked_for() {
    let model = tiny();
    let mut params = biased(Vocabulary::IM_END, 99.0, 3);
    params.keep_special = vec![Vocabulary::EOS];
    assert_eq!(generate(&mut model.session(), &prompt(4, 0), &params).text, "");
    params.keep_special.push(Vocabulary::IM_END);
    let found = generate(&mut model.session(), &prompt(4, 0), &params);
    assert_eq!(found.text, "<|im_end|>".repeat(3));
}

#[test]
fn as_many_tokens_come_as_were_asked_for() {
    let model = tiny();
    for max in [0, 1, 2, 7] {
        let found = generate(&mut model.session(), &prompt(4, 1), &greedy(max));
        assert_eq!(found.finish(), FinishReason::Length);
        assert_eq!(found.completion.completion_tokens, max);
        assert_eq!(found.completion.prompt_tokens, 4);
        assert_eq!(found.logprobs.len(), max as usize);
    }
}

#[test]
fn the_end_of_the_context_ends_the_output() {
    let file = Tiny::new(&TinyModel::new("llama").builder());
    let options = ModelOptions { context: Some(16), ..ModelOptions::default() };
    let model = engine().load(&file.path, &options).unwrap();
    let params = GenerateParams { max_tokens: None, ..greedy(0) };
    for length in [1, 14, 15] {
        let found = generate(&mut model.session(), &prompt(length, 2), &params);
        assert_eq!(found.finish(), FinishReason::Length);
        assert_eq!(found.completion.completion_tokens as usize, 16 - length);
    }
    for length in [16, 17, 1000] {
        let found = try_generate(&mut model.session(), &prompt(length, 2), &params);
        let expected = GenerateError::PromptTooLong { prompt_tokens: length, context: 16 };
        assert_eq!(found.map(|a| a.text).unwrap_err(), expected);
    }
}

#[test]
fn what_cannot_be_generated_is_refused_before_anything_is_computed() {
    let model = tiny();
    let mut session = model.session();
    let held = prompt(5, 3);
    generate(&mut session, &held, &greedy(1));
    let mut error = |prompt: &[u32], params: &GenerateParams| {
        let found = try_generate(&mut session, prompt, params).map(|a| a.text).unwrap_err();
        assert_eq!(session.tokens(), held, "{found}");
        let text = found.to_string();
        assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
        (found, text)
    };
    assert_eq!(error(&[], &greedy(1)).0, GenerateError::EmptyPrompt);
    let unknown = GenerateError::UnknownToken { token: 288, vocab: 288 };
    assert_eq!(error(&[7, 288, 8], &greedy(1)).0, unknown);
    let (found, text) = error(&[7], &GenerateParams { logprobs: Some(21), ..greedy(1) });
    assert_eq!(found, GenerateError::TooManyLogprobs { asked: 21, max: 20 });
    assert!(text.contains("21") && text.contains("20"), "{text}");
    let mut params = greedy(1);
    params.sampling.temperature = -1.0;
    let (found, text) = error(&[7], &params);
    assert!(matches!(found, GenerateError::Sampling(_)));
    assert!(text.contains("temperature") && text.contains("-1"), "{text}");
    let (_, text) = error(&prompt(256, 0), &greedy(1));
    assert!(text.contains("256") && text.contains("shorten the prompt"), "{text}");
}

#[test]
fn banning_every_token_is_an_error_and_the_session_goes_on() {
    let model = tiny();
    let mut session = model.session();
    let mut params = greedy(3);
    params.sampling.logit_bias = (0..288).map(|id| (id, -100.0)).collect();
    let found = try_generate(&mut session, &prompt(4, 4), &params).map(|a| a.text);
    assert_eq!(found.unwrap_err(), GenerateError::NoToken);
    let found = generate(&mut session, &prompt(4, 4), &greedy(3));
    assert_eq!(found.ids(), generate(&mut model.session(), &prompt(4, 4), &greedy(3)).ids());
}

#[test]
fn log_probabilities_are_of_the_plain_distribution_likeliest_first() {
    let model = tiny();
    let params = GenerateParams { logprobs: Some(20), ..greedy(6) };
    let found = generate(&mut model.session(), &prompt(4, 5), &params);
    assert_eq!(found.logprobs.len(), 6);
    for token in &found.logprobs {
        assert_eq!(token.top.len(), 20);
        assert!(token.top.is_sorted_by(|a, b| a.2 >= b.2), "{token:?}");
        assert_eq!((token.top[0].0, token.top[0].2), (token.id, token.logprob), "the likeliest");
        assert!(token.top.iter().map(|t| t.2.exp()).sum::<f32>() <= 1.0 + 1e-5);
        for (id, bytes, _) in &token.top {
            let expected = model.tokenizer().token_bytes(*id).unwrap_or_default();
            assert_eq!(*bytes, *expected);
        }
    }
    // Bias, penalties and temperature change the choice, not what is reported.
    let last = found.logprobs[0].top[19].clone();
    let mut params = biased(last.0, 90.0, 1);
    params.sampling.temperature = 0.01;
    let forced = generate(&mut model.session(), &prompt(4, 5), &params);
    assert_eq!((forced.ids(), forced.logprobs[0].logprob), (vec![last.0], last.2));
    assert!(forced.logprobs[0].top.is_empty(), "none but the chosen was asked for");
    // Nothing is reported unless asked for.
    let params = GenerateParams { logprobs: None, ..greedy(6) };
    assert!(generate(&mut model.session(), &prompt(4, 5), &params).logprobs.is_empty());
}

#[test]
fn biases_and_penalties_reach_the_choice() {
    let model = tiny();
    let answer = |params| generate(&mut model.session(), &prompt(4, 6), &params).ids();
    let plain = answer(greedy(40));
    assert_eq!(answer(biased(77, 100.0, 3)), [77, 77, 77]);
    assert!(!answer(biased(plain[0], -100.0, 40)).contains(&plain[0]));
    let distinct = |ids: &[u32]| ids.iter().collect::<std::collections::HashSet<_>>().len();
    for set in [
        (|p: &mut SamplingParams| p.repeat_penalty = 50.0) as fn(&mut SamplingParams),
        |p| p.presence_penalty = 50.0,
        |p| p.frequency_penalty = 50.0,
    ] {
        let mut params = greedy(40);
        set(&mut params.sampling);
        params.sampling.repeat_last_n = 100;
        let ids = answer(params);
        assert_eq!(distinct(&ids), 40, "{ids:?}");
        assert!(ids.iter().all(|id| !prompt(4, 6).contains(id)), "the prompt counts too");
    }
    let mut params = biased(77, 100.0, 3);
    params.sampling.frequency_penalty = 50.0;
    params.sampling.repeat_last_n = 0;
    assert_eq!(answer(params), [77; 3], "a window of 0 turns penalties off");
}

#[test]
fn a_seed_fixes_the_answer_whatever_else_runs() {
    let model = tiny();
    let drawn = |seed| {
        let mut params = greedy(24);
        params.sampling = SamplingParams { seed, top_k: 0, ..SamplingParams::default() };
        params
    };
    let answer = |session: &mut Session, seed| generate(session, &prompt(9, 7), &drawn(seed)).ids();
    let first = answer(&mut model.session(), Some(1));
    assert_eq!(first, answer(&mut model.session(), Some(1)));
    assert_ne!(first, answer(&mut model.session(), Some(2)));

    let mut session = model.session();
    generate(&mut session, &prompt(30, 8), &drawn(Some(9)));
    assert_eq!(first, answer(&mut session, Some(1)), "a used session");
    assert_ne!(answer(&mut session, None), answer(&mut session, None), "no seed is a fresh one");
}

#[test]
fn embeddings_beyond_the_vocabulary_have_no_text() {
    // Tensors for 385 tokens, a tokenizer of 288: files are padded so.
    let padded = TinyModel::new("llama").vocabulary(Vocabulary::spm()).builder();
    let small = Vocabulary::bpe("llama-bpe");
    let file = padded
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", small.pre.as_str())
        .meta("tokenizer.ggml.tokens", small.tokens)
        .meta("tokenizer.ggml.token_type", small.types)
        .meta("tokenizer.ggml.merges", small.merges)
        .without_meta("tokenizer.ggml.scores")
        .without_meta("tokenizer.ggml.unknown_token_id");
    let model = Tiny::new(&file).load();
    assert_eq!((model.info().vocab, model.tokenizer().vocab_size()), (385, 288));
    let found = generate(&mut model.session(), &prompt(4, 9), &biased(384, 100.0, 3));
    assert_eq!((found.ids(), found.text.as_str()), (vec![384; 3], ""));
    assert!(found.logprobs[0].bytes.is_empty());
}

//! Answers that are held to a grammar.

mod schemas;

use std::thread;

use m40_testkit::models;
use serde_json::{Value, json};

use super::*;
use crate::Grammar;

/// Each token as likely as the model has it.
fn drawn(seed: u64, max_tokens: u32) -> GenerateParams {
    let plain = SamplingParams::greedy();
    GenerateParams {
        sampling: SamplingParams { temperature: 1.0, seed: Some(seed), ..plain },
        max_tokens: Some(max_tokens),
        ..GenerateParams::default()
    }
}

fn held(model: &Model, grammar: &Grammar, params: GenerateParams) -> GenerateParams {
    let constraint = model.grammar(grammar).unwrap_or_else(|error| panic!("{error}: {grammar:?}"));
    GenerateParams { constraint: Some(constraint), ..params }
}

/// A tiny model with room for long answers.
fn roomy() -> Model {
    Tiny::new(&TinyModel::new("llama").context(2048).builder()).load()
}

#[test]
fn two_hundred_random_schemas_are_met_by_a_model_that_knows_nothing() {
    let model = roomy();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut cut = 0;
    for number in 0..200 {
        let schema = schemas::random(&mut rng);
        let params = held(&model, &Grammar::JsonSchema(schema.clone()), drawn(number, 1500));
        let found = generate(&mut model.session(), &prompt(3, number as u32), &params);
        if found.finish() == FinishReason::Length {
            cut += 1;
            continue;
        }
        let value: Value = serde_json::from_str(&found.text).unwrap_or_else(|error| {
            panic!("{error}: {:?} for {schema}", found.text);
        });
        let validator = jsonschema::validator_for(&schema).unwrap();
        assert!(validator.is_valid(&value), "{value} for {schema}");
    }
    assert!(cut <= 4, "{cut} answers did not end");
}

#[test]
fn a_real_model_writes_what_a_schema_asks_for_and_stops_there() {
    let model = engine().load(&models::smollm2(), &ModelOptions::default()).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "country": {"enum": ["France", "Spain"]},
            "rivers": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
            "capital": {"type": "boolean"},
        },
        "required": ["city", "country", "rivers", "capital"],
        "additionalProperties": false,
    });
    let messages = json!([{"role": "user", "content": "Describe Paris as JSON."}]);
    let text = model.chat_template().render(&crate::TemplateInput::new(&messages)).unwrap();
    let prompt = model.tokenizer().encode_prompt(&text);
    let grammar = Grammar::JsonSchema(schema.clone());
    for params in [GenerateParams { ignore_eos: false, ..greedy(200) }, drawn(1, 200)] {
        let found = generate(&mut model.session(), &prompt, &held(&model, &grammar, params));
        assert_eq!(found.finish(), FinishReason::Stop, "{}", found.text);
        let value: Value = serde_json::from_str(&found.text).unwrap();
        assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&value), "{value}");
        assert_eq!(value["country"], "France");
    }
    let yes = Grammar::Regex("(yes|no)".into());
    let found = generate(&mut model.session(), &prompt, &held(&model, &yes, greedy(9)));
    assert!(["yes", "no"].contains(&found.text.as_str()), "{}", found.text);
    assert_eq!(found.finish(), FinishReason::Stop);
}

#[test]
fn log_probabilities_are_of_what_the_model_would_have_said() {
    let model = tiny();
    let params = GenerateParams { logprobs: Some(3), ..greedy(1) };
    let free = generate(&mut model.session(), &prompt(4, 6), &params);
    let free = free.logprobs[0].clone();
    let other = free.top[2].clone();
    let text = format!("start: <[{}]>", other.0);
    let found =
        generate(&mut model.session(), &prompt(4, 6), &held(&model, &Grammar::Lark(text), params));
    let told = &found.logprobs[0];
    assert_eq!((told.id, told.logprob), (other.0, other.2));
    assert_eq!(told.top, free.top);
    assert_eq!(found.finish(), FinishReason::Stop);
}

#[test]
fn an_answer_ends_where_its_grammar_does_even_past_the_models_own_ends() {
    let model = roomy();
    let digits = Grammar::Regex("[0-9]{5}".into());
    let found = generate(&mut model.session(), &prompt(4, 1), &held(&model, &digits, greedy(100)));
    assert_eq!((found.text.len(), found.finish()), (5, FinishReason::Stop));
    assert!(found.text.bytes().all(|byte| byte.is_ascii_digit()), "{}", found.text);
    let cut = generate(&mut model.session(), &prompt(4, 1), &held(&model, &digits, greedy(3)));
    assert_eq!((&found.text[..3], cut.finish()), (&*cut.text, FinishReason::Length));
    let stop = vec![found.text[1..3].to_owned()];
    let stopped = GenerateParams { stop, ..held(&model, &digits, greedy(100)) };
    let stopped = generate(&mut model.session(), &prompt(4, 1), &stopped);
    assert_eq!((&*stopped.text, stopped.finish()), (&found.text[..1], FinishReason::Stop));
}

#[test]
fn answers_side_by_side_share_a_constraint_and_not_their_way_in_it() {
    let model = roomy();
    let params = |seed| held(&model, &Grammar::Json, drawn(seed, 60));
    let alone: Vec<_> =
        (0..6).map(|i| generate(&mut model.session(), &prompt(5, 0), &params(i)).text).collect();
    let constraint = params(0).constraint;
    let together: Vec<_> = thread::scope(|scope| {
        let answer = |seed| {
            let (model, constraint) = (&model, constraint.clone());
            scope.spawn(move || {
                let params = GenerateParams { constraint, ..drawn(seed, 60) };
                generate(&mut model.session(), &prompt(5, 0), &params).text
            })
        };
        let threads: Vec<_> = (0..6).map(answer).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert!(alone.iter().any(|text| *text != alone[0]));
}

#[test]
fn a_constraint_of_another_model_is_refused() {
    let (model, other) = (tiny(), tiny());
    let params = held(&other, &Grammar::Json, greedy(5));
    let found = try_generate(&mut model.session(), &prompt(4, 0), &params).map(|a| a.text);
    assert_eq!(found.unwrap_err(), GenerateError::ForeignConstraint);
}

#[test]
fn what_the_grammar_leaves_and_the_request_bans_is_no_token() {
    let model = tiny();
    let a = model.tokenizer().encode_within("a")[0];
    let mut params = held(&model, &Grammar::Regex("a".into()), greedy(5));
    params.sampling.logit_bias = vec![(a, -100.0)];
    let found = try_generate(&mut model.session(), &prompt(4, 0), &params).map(|a| a.text);
    assert_eq!(found.unwrap_err(), GenerateError::NoToken);
}

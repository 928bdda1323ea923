//! `POST /run`: an answer for a person at a terminal.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream;
use m40_control::{ApiError, ErrorCode, ModelRef, RunEvent, RunParams, RunRequest};
use m40_reply::Piece;
use m40_sched::sampler::SamplingParams;
use m40llm::GenerateParams;
use serde_json::json;

use super::{Context, Refused, lines};
use crate::generation::{self, Answer, Chat, Event, Input, Question};
use crate::http::{check_stops, read_json};
use crate::models::Urgency;

pub(super) async fn run(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let request: RunRequest = read_json(&headers, body, context.body_limits).await?;
    let definition = match &request.model {
        ModelRef::Name(name) => context.models.definition(Some(name)),
        ModelRef::File(_) => None,
    };
    let defaults = definition.map(|definition| definition.sampling.params()).unwrap_or_default();
    let params = params(request.params, defaults)?;
    let messages = request.messages.iter().map(|message| json!(message)).collect();
    let ticket = context.models.ask_for(&request.model, Urgency::default()).await?;
    let input = Input::Chat(Chat { messages, ..Chat::default() });
    let question = Question { input, params, ..Question::default() };
    let mut answer = Answer::new(&context.models, ticket, question)?;
    answer.started().await?;
    let first = Some(RunEvent::Loaded { model: answer.model().to_owned() });
    let events = stream::unfold((answer, first), |(mut answer, first)| async move {
        let event = match first {
            Some(first) => first,
            None => event(answer.next().await?),
        };
        Some((event, (answer, None)))
    });
    Ok(lines(events))
}

/// What the engine is asked for; `defaults` say what the request leaves out.
fn params(asked: RunParams, defaults: SamplingParams) -> Result<GenerateParams, ApiError> {
    let refuse = |message| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    if asked.max_tokens == Some(0) {
        return refuse("max_tokens is 0, the least is 1".to_owned());
    }
    let stop = asked.stop.unwrap_or_default();
    if let Err(message) = check_stops(&stop) {
        return refuse(format!("stop: {message}"));
    }
    let sampling = SamplingParams {
        temperature: asked.temperature.unwrap_or(defaults.temperature),
        top_k: asked.top_k.unwrap_or(defaults.top_k),
        top_p: asked.top_p.unwrap_or(defaults.top_p),
        min_p: asked.min_p.unwrap_or(defaults.min_p),
        typical_p: asked.typical_p.unwrap_or(defaults.typical_p),
        repeat_penalty: asked.repeat_penalty.unwrap_or(defaults.repeat_penalty),
        repeat_last_n: asked.repeat_last_n.unwrap_or(defaults.repeat_last_n),
        presence_penalty: asked.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: asked.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        seed: asked.seed.or(defaults.seed),
        logit_bias: defaults.logit_bias,
    };
    if let Err(error) = sampling.validate() {
        return refuse(error.to_string());
    }
    Ok(GenerateParams {
        sampling,
        max_tokens: asked.max_tokens,
        stop,
        ignore_eos: asked.ignore_eos.unwrap_or(false),
        ..GenerateParams::default()
    })
}

fn event(event: Event) -> RunEvent {
    match event {
        Event::Delta(delta) => RunEvent::Text { text: text(delta.pieces) },
        Event::Done(completion) => RunEvent::Done { stats: generation::stats(&completion) },
        Event::Failed(error) => RunEvent::Error { error: error.into() },
    }
}

// A person sees what a model says to itself, and that it would call something.
fn text(pieces: Vec<Piece>) -> String {
    let shown = pieces.into_iter().map(|piece| match piece {
        Piece::Content(text) | Piece::Reasoning(text) | Piece::Arguments(text) => text,
        Piece::Call { name } => name,
        Piece::CallEnd => String::new(),
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_reaches_the_engine_and_the_rest_is_the_manifests() {
        let defaults = SamplingParams { top_k: 7, min_p: 0.5, ..SamplingParams::default() };
        let asked = RunParams {
            max_tokens: Some(3),
            temperature: Some(0.0),
            top_k: Some(9),
            stop: Some(vec!["x".into()]),
            ..RunParams::default()
        };
        let params = params(asked, defaults).unwrap();
        assert_eq!((params.sampling.top_k, params.sampling.min_p), (9, 0.5));
        assert_eq!((params.sampling.temperature, params.max_tokens), (0.0, Some(3)));
        assert_eq!(params.stop, ["x"]);
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        let none = RunParams::default;
        for (asked, name) in [
            (RunParams { max_tokens: Some(0), ..none() }, "max_tokens"),
            (RunParams { temperature: Some(-1.0), ..none() }, "temperature"),
            (RunParams { top_p: Some(f32::NAN), ..none() }, "top_p"),
            (RunParams { stop: Some(vec![String::new()]), ..none() }, "stop"),
            (RunParams { stop: Some(vec!["x".into(); 17]), ..none() }, "stop"),
        ] {
            let error = params(asked, SamplingParams::default()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.starts_with(name), "{error}");
        }
    }
}

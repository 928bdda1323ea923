//! `POST /v1/completions`: texts and tokens to go on from, as they are.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::chat::StreamOptions;
use super::completion_reply::Reply;
use super::{Answers, answers, sse};
use crate::generation::{Input, Question};
use crate::http::error::HttpError;
use crate::http::{Context, HEAD_WAIT, params};

/// OpenAI's default: what has no turn to end may go on for ever.
const MAX_TOKENS: u32 = 16;
/// Most answers of one request.
const CHOICES_MAX: usize = 64;

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    prompt: Prompts,
    suffix: Option<String>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    best_of: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of tokens or an array of such arrays"
)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Prompts {
    fn inputs(self) -> Vec<Input> {
        match self {
            Self::Text(text) => vec![Input::Text(text)],
            Self::Tokens(tokens) => vec![Input::Tokens(tokens)],
            Self::Texts(texts) => texts.into_iter().map(Input::Text).collect(),
            Self::ManyTokens(many) => many.into_iter().map(Input::Tokens).collect(),
        }
    }

    /// What comes between each and a text after it.
    fn filled_up_to(self, after: &str) -> Result<Vec<Input>, HttpError> {
        let fill = |input| match input {
            Input::Text(before) => Ok(Input::Fill { before, after: after.to_owned() }),
            _ => Err(HttpError::bad_param("suffix", "needs prompts that are texts")),
        };
        self.inputs().into_iter().map(fill).collect()
    }
}

pub(super) async fn complete(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    let n = answers::count(request.n)?;
    check_supported(&request, n)?;
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let mut params = fields.params(definition.as_deref())?;
    params.max_tokens.get_or_insert(MAX_TOKENS);
    let echo = request.echo.unwrap_or(false);
    if echo && params.logprobs.is_some() {
        let message = "those of the prompt are not computed: not together with echo";
        return Err(HttpError::bad_param("logprobs", message));
    }
    let inputs = match request.suffix.filter(|suffix| !suffix.is_empty()) {
        Some(after) => request.prompt.filled_up_to(&after)?,
        None => request.prompt.inputs(),
    };
    if inputs.len() * n > CHOICES_MAX {
        let message =
            format!("{} prompts, {n} answers each: the most is {CHOICES_MAX}", inputs.len());
        return Err(HttpError::bad_param("prompt", message));
    }
    let echoes = if echo { echoes(&inputs, n)? } else { vec![String::new(); inputs.len() * n] };
    let question = |input| Question { input, params: params.clone(), ..Question::default() };
    let questions = inputs.into_iter().flat_map(|input| answers::times(&question(input), n));
    let about = |error| HttpError::from(error).about("messages", "prompt");
    let model = request.model.as_deref();
    let mut answers = Answers::ask(&context.models, model, urgency, questions.collect()).await?;
    let include_usage = StreamOptions::include_usage(request.stream_options.as_ref());
    let reply = Reply::new(answers.model(), echoes, n, include_usage);
    if request.stream.unwrap_or(false) {
        answers.started_within(HEAD_WAIT).await.map_err(about)?;
        Ok(sse::reply(answers, reply))
    } else {
        let answers = answers.whole().await;
        let answers =
            answers.map_err(|error| HttpError::from(error).about("messages", "prompt"))?;
        Ok(Json(reply.whole(&answers)).into_response())
    }
}

// What would change the answer and cannot be honoured is refused, not dropped.
fn check_supported(request: &Request, n: usize) -> Result<(), HttpError> {
    if request.best_of.is_some_and(|best_of| best_of as usize != n) {
        return Err(HttpError::bad_param("best_of", "must be as n, all answers are returned"));
    }
    Ok(())
}

/// What comes before each answer: its prompt.
fn echoes(inputs: &[Input], n: usize) -> Result<Vec<String>, HttpError> {
    let text = |input: &Input| match input {
        Input::Text(text) | Input::Fill { before: text, .. } => Ok(vec![text.clone(); n]),
        _ => Err(HttpError::bad_param("echo", "needs prompts that are texts")),
    };
    let echoes: Result<Vec<_>, _> = inputs.iter().map(text).collect();
    Ok(echoes?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_four_shapes() {
        let of = |json: &str| serde_json::from_str::<Prompts>(json).map(Prompts::inputs);
        let shown = |json: &str| format!("{:?}", of(json).unwrap());
        assert_eq!(shown(r#""a""#), r#"[Text("a")]"#);
        assert_eq!(shown(r#"["a","b"]"#), r#"[Text("a"), Text("b")]"#);
        assert_eq!(shown("[1,2]"), "[Tokens([1, 2])]");
        assert_eq!(shown("[[1],[2,3]]"), "[Tokens([1]), Tokens([2, 3])]");
        for bad in ["7", "null", "[-1]", r#"["a",1]"#, "[[[1]]]", "{}"] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains("expected a string"), "{bad}: {error}");
        }
    }
}

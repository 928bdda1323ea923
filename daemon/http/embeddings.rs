//! `POST /v1/embeddings`, as OpenAI has it.
//!
//! Request: `{"model", "input": text | [text] | [token] | [[token]], "encoding_format"?: "float" |
//! "base64", "dimensions"?, "truncate"?}`, and `urgency` and `deadline_s`. Texts that are longer than the
//! model's context are refused unless `truncate` is true. Vectors have the length 1.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use super::error::HttpError;
use super::{Context, params};
use crate::embedding::{self, Text, Texts};

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    model: Option<String>,
    input: Input,
    #[serde(default)]
    encoding_format: Option<Format>,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    truncate: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of those"
)]
pub(super) enum Input {
    One(String),
    Many(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl Input {
    fn texts(self) -> Vec<Text> {
        match self {
            Self::One(text) => vec![Text::Plain(text)],
            Self::Many(texts) => texts.into_iter().map(Text::Plain).collect(),
            Self::Tokens(tokens) => vec![Text::Tokens(tokens)],
            Self::ManyTokens(texts) => texts.into_iter().map(Text::Tokens).collect(),
        }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
struct Reply {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    /// Of their bytes, the low ones first.
    Base64(String),
}

/// Tokens that were computed.
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl From<usize> for Usage {
    fn from(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

impl Vector {
    fn new(floats: Vec<f32>, format: Format) -> Self {
        match format {
            Format::Float => Self::Floats(floats),
            Format::Base64 => {
                let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                Self::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

pub(super) async fn embed(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    let texts = Texts {
        texts: request.input.texts(),
        truncate: request.truncate.unwrap_or(false),
        dimensions: request.dimensions,
        normalise: true,
    };
    let ticket = context.models.ask(request.model.as_deref(), fields.urgency()?).await?;
    let model = request.model.unwrap_or_else(|| ticket.model().to_owned());
    let computed = embedding::embed(ticket, texts).await?;
    let format = request.encoding_format.unwrap_or_default();
    let data = computed.found.into_iter().enumerate().map(|(index, floats)| Embedding {
        object: "embedding",
        index,
        embedding: Vector::new(floats, format),
    });
    let (data, usage) = (data.collect(), computed.tokens.into());
    Ok(Json(Reply { object: "list", data, model, usage }).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_text_or_tokens_or_several_of_either() {
        let count =
            |json: &str| serde_json::from_str::<Input>(json).map(|input| input.texts().len());
        assert_eq!(count("\"a\"").unwrap(), 1);
        assert_eq!(count("[\"a\", \"\", \"c\"]").unwrap(), 3);
        assert_eq!(count("[1, 2, 3]").unwrap(), 1);
        assert_eq!(count("[[1, 2], [3]]").unwrap(), 2);
        assert_eq!(count("[]").unwrap(), 0);
        for bad in ["null", "{}", "[1, \"a\"]", "[[\"a\"]]", "[-1]", "[4294967296]", "7"] {
            let error = count(bad).unwrap_err().to_string();
            assert!(error.contains("expected a string, an array of strings"), "{bad}: {error}");
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        let vector = Vector::new(vec![1.0, -2.5], Format::Base64);
        assert_eq!(serde_json::to_string(&vector).unwrap(), "\"AACAPwAAIMA=\"");
        let vector = Vector::new(vec![0.1, -2.5], Format::Float);
        assert_eq!(serde_json::to_string(&vector).unwrap(), "[0.1,-2.5]");
    }
}

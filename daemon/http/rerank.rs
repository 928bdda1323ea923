//! `POST /v1/rerank` and `/rerank`: which documents fit a query, in the shape of Jina's API.
//!
//! Request: `{"model", "query", "documents": [text | {"text"}], "top_n"?, "return_documents"?}`. A
//! cross-encoder judges each pair, from 0 to 1; of any other model it is the cosine of the two vectors, from
//! -1 to 1. The best come first; of documents that are too long the end is left out.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::embeddings::Usage;
use super::error::HttpError;
use super::{Context, params};
use crate::embedding::{self, Ranking};

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    #[serde(default)]
    top_n: Option<usize>,
    #[serde(default)]
    return_documents: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an object with \"text\"")]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Debug, Serialize)]
struct Reply {
    model: String,
    object: &'static str,
    usage: Usage,
    results: Vec<Ranked>,
}

#[derive(Debug, Serialize)]
struct Ranked {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    text: String,
}

pub(super) async fn rank(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    if request.top_n == Some(0) {
        return Err(HttpError::bad_param("top_n", "must be at least 1"));
    }
    let documents: Vec<String> = request.documents.into_iter().map(Document::text).collect();
    let shown = request.return_documents.unwrap_or(false).then(|| documents.clone());
    let ticket = context.models.ask(request.model.as_deref(), fields.urgency()?).await?;
    let model = request.model.unwrap_or_else(|| ticket.model().to_owned());
    let ranking = Ranking { query: request.query, documents };
    let about = |error| HttpError::from(error).about("input", "documents");
    let computed = embedding::rank(ticket, ranking).await.map_err(about)?;
    let mut results = best(&computed.found, request.top_n);
    if let Some(texts) = shown {
        let show = |ranked: &mut Ranked| {
            ranked.document = Some(Shown { text: texts[ranked.index].clone() });
        };
        results.iter_mut().for_each(show);
    }
    let usage = computed.tokens.into();
    Ok(Json(Reply { model, object: "list", usage, results }).into_response())
}

/// The best documents, the first of those that are equally good first.
fn best(scores: &[f32], top_n: Option<usize>) -> Vec<Ranked> {
    let ranked = |(index, &relevance_score)| Ranked { index, relevance_score, document: None };
    let mut all: Vec<Ranked> = scores.iter().enumerate().map(ranked).collect();
    all.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    all.truncate(top_n.unwrap_or(usize::MAX));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equals_in_their_order() {
        let order = |top_n| -> Vec<usize> {
            best(&[0.5, -0.1, 0.9, 0.5], top_n).iter().map(|ranked| ranked.index).collect()
        };
        assert_eq!(order(None), [2, 0, 3, 1]);
        assert_eq!(order(Some(2)), [2, 0]);
        assert_eq!(order(Some(9)), [2, 0, 3, 1]);
    }
}

//! Vectors of texts: from texts in any protocol to a model's request, and its vectors back.

mod meter;

use std::sync::Arc;
use std::time::{Duration, Instant};

use m40llm::{EmbedError, EmbedText, GenerateError, Pooling, Special, Tokenizer};

use crate::models::{Cut, Loaded, ModelError, Reason, Ticket};
use meter::Meter;

/// Texts of one request.
const TEXTS_MAX: usize = 2048;
/// Tokens of all texts of one request: as many as OpenAI allows.
const TOKENS_MAX: usize = 300_000;

/// Something to be made a vector.
#[derive(Debug)]
pub(crate) enum Text {
    /// Text, as it is: no tokens are written in it.
    Plain(String),
    /// All tokens, those that mark beginning and end among them.
    Tokens(Vec<u32>),
}

/// What is asked.
#[derive(Debug)]
pub(crate) struct Texts {
    pub texts: Vec<Text>,
    /// Whether the end of a text that is too long is left out; else it is refused.
    pub truncate: bool,
    /// Floats of a vector: its first ones. Only models that were trained for it have shorter ones that
    /// are of use.
    pub dimensions: Option<usize>,
    /// Whether vectors are made as long as 1.
    pub normalise: bool,
}

/// Documents that are to be compared with a question.
#[derive(Debug)]
pub(crate) struct Ranking {
    pub query: String,
    pub documents: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Computed<T> {
    pub found: T,
    /// Tokens that were computed.
    pub tokens: usize,
    /// Until the model had time, a load included.
    pub waited: Duration,
}

/// Why there are no vectors.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmbeddingError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("there are {found} texts, a request may have 1 to {TEXTS_MAX}")]
    Texts { found: usize },
    #[error("all texts together have {found} tokens, a request may have {TOKENS_MAX}")]
    Tokens { found: usize },
    #[error("{asked} dimensions were asked for, the model has 1 to {most}")]
    Dimensions { asked: usize, most: u32 },
    #[error(
        "the model {model:?} is a cross-encoder, which judges pairs of texts and makes no vectors: \
         ask /v1/rerank, or another model"
    )]
    OnlyRanks { model: String },
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error("the request was cut short: {0}")]
    CutShort(Reason),
    #[error("the model failed, see the log of m40d")]
    Panicked,
}

/// A computation under way.
struct Run<'r> {
    cut: &'r Cut,
    meter: &'r Meter,
}

/// Ends a computation when nobody waits for it any more.
struct Abandon(Arc<Cut>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Makes a vector of each text when the request has its turn.
pub(crate) async fn embed(
    ticket: Ticket,
    texts: Texts,
) -> Result<Computed<Vec<Vec<f32>>>, EmbeddingError> {
    check_count(texts.texts.len())?;
    compute(ticket, move |loaded, run| embed_on(loaded, run, &texts)).await
}

/// How well each document fits the query, from 0 to 1 for a cross-encoder and else the cosine of their
/// vectors, when the request has its turn. Of documents that are too long the end is left out.
pub(crate) async fn rank(
    ticket: Ticket,
    ranking: Ranking,
) -> Result<Computed<Vec<f32>>, EmbeddingError> {
    check_count(ranking.documents.len())?;
    compute(ticket, move |loaded, run| rank_on(loaded, run, &ranking)).await
}

fn check_count(found: usize) -> Result<(), EmbeddingError> {
    if (1..=TEXTS_MAX).contains(&found) { Ok(()) } else { Err(EmbeddingError::Texts { found }) }
}

/// What comes of a request's texts, and how many tokens they had.
type Found<T> = Result<(T, usize), EmbeddingError>;

/// Computes, counts that for the metrics and the log, and charges the key of whoever asks, who may leave
/// at any time.
async fn compute<T: Send + 'static>(
    ticket: Ticket,
    work: impl FnOnce(&Loaded, &Run<'_>) -> Found<T> + Send + 'static,
) -> Result<Computed<T>, EmbeddingError> {
    let meter = Arc::new(Meter::new(&ticket));
    let computed = compute_in_turn(ticket, &meter, work).await;
    meter.ended(computed.is_ok());
    computed
}

async fn compute_in_turn<T: Send + 'static>(
    ticket: Ticket,
    meter: &Arc<Meter>,
    work: impl FnOnce(&Loaded, &Run<'_>) -> Found<T> + Send + 'static,
) -> Result<Computed<T>, EmbeddingError> {
    let since = Instant::now();
    let run = ticket.turn().await?;
    let waited = since.elapsed();
    meter.began(waited);
    let cut = Arc::clone(&run.cut);
    let _abandon = Abandon(Arc::clone(&cut));
    let models = run.models();
    let counted = Arc::clone(meter);
    let work = move |loaded: &Loaded, cut: &Cut| work(loaded, &Run { cut, meter: &counted });
    let computed = run.compute(work).await.ok_or(EmbeddingError::Panicked)?;
    if let Err(EmbeddingError::Embed(EmbedError::Pass(GenerateError::Gpu(error)))) = &computed {
        models.device_failed(error.clone());
    }
    match (computed, cut.reason()) {
        (Err(EmbeddingError::Embed(EmbedError::Cancelled)), Some(reason)) => {
            Err(EmbeddingError::CutShort(reason))
        }
        (computed, _) => computed.map(|(found, tokens)| Computed { found, tokens, waited }),
    }
}

fn embed_on(loaded: &Loaded, run: &Run<'_>, texts: &Texts) -> Found<Vec<Vec<f32>>> {
    let model = &loaded.model;
    let most = model.info().embedding;
    if model.pooling() == Pooling::Rank {
        return Err(EmbeddingError::OnlyRanks { model: loaded.name.to_string() });
    }
    if let Some(asked) = texts.dimensions.filter(|asked| !(1..=most as usize).contains(asked)) {
        return Err(EmbeddingError::Dimensions { asked, most });
    }
    let mut encoded: Vec<EmbedText> =
        texts.texts.iter().map(|text| encode(model.tokenizer(), text)).collect();
    if texts.truncate {
        shorten(loaded, &mut encoded);
    }
    let (mut vectors, tokens) = vectors(loaded, run, &encoded)?;
    for vector in &mut vectors {
        vector.truncate(texts.dimensions.unwrap_or(vector.len()));
        if texts.normalise {
            normalise(vector);
        }
    }
    Ok((vectors, tokens))
}

fn rank_on(loaded: &Loaded, run: &Run<'_>, ranking: &Ranking) -> Found<Vec<f32>> {
    let tokenizer = loaded.model.tokenizer();
    let query = encode_plain(tokenizer, &ranking.query);
    let is_cross_encoder = loaded.model.pooling() == Pooling::Rank;
    let documents = ranking.documents.iter();
    let mut texts: Vec<EmbedText> = if is_cross_encoder {
        documents.map(|document| pair(tokenizer, &query, document)).collect()
    } else {
        let query = EmbedText { tokens: query, second: None };
        let text = |document: &String| encode_plain(tokenizer, document);
        let documents = documents.map(|text_of| EmbedText { tokens: text(text_of), second: None });
        std::iter::once(query).chain(documents).collect()
    };
    shorten(loaded, &mut texts);
    let (mut vectors, tokens) = vectors(loaded, run, &texts)?;
    let scores = if is_cross_encoder {
        vectors.iter().map(|classes| sigmoid(classes[0])).collect()
    } else {
        vectors.iter_mut().for_each(|vector| normalise(vector));
        let cosine = |vector: &Vec<f32>| vector.iter().zip(&vectors[0]).map(|(a, b)| a * b).sum();
        vectors[1..].iter().map(cosine).collect()
    };
    Ok((scores, tokens))
}

/// Computes what the model's file says is to be made of texts.
fn vectors(loaded: &Loaded, run: &Run<'_>, texts: &[EmbedText]) -> Found<Vec<Vec<f32>>> {
    let tokens = texts.iter().map(|text| text.tokens.len()).sum();
    if tokens > TOKENS_MAX {
        return Err(EmbeddingError::Tokens { found: tokens });
    }
    loaded.model.check_texts(texts)?;
    run.meter.due(tokens as u64);
    let tallied = loaded.tally().begin(tokens);
    let vectors = loaded.model.embed(texts, None, run.cut.token())?;
    tallied.embedded();
    Ok((vectors, tokens))
}

fn encode(tokenizer: &Tokenizer, text: &Text) -> EmbedText {
    let tokens = match text {
        Text::Plain(text) => encode_plain(tokenizer, text),
        Text::Tokens(tokens) => tokens.clone(),
    };
    EmbedText { tokens, second: None }
}

fn encode_plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Special { add: true, parse: false })
}

/// Query and document, each with the mark of its end.
fn pair(tokenizer: &Tokenizer, query: &[u32], document: &str) -> EmbedText {
    let document = tokenizer.encode(document, Special { add: false, parse: false });
    let tokens = query.iter().copied().chain(document).chain(tokenizer.suffix()).collect();
    EmbedText { tokens, second: Some(query.len()) }
}

/// Leaves out the ends of texts that are longer than the context, but for the mark of the end.
fn shorten(loaded: &Loaded, texts: &mut [EmbedText]) {
    let context = loaded.model.info().context as usize;
    for text in texts.iter_mut().filter(|text| text.tokens.len() > context) {
        let end = loaded.model.tokenizer().suffix();
        let had_end = end.is_some() && text.tokens.last().copied() == end;
        text.tokens.truncate(context);
        if let (true, Some(end), Some(last)) = (had_end, end, text.tokens.last_mut()) {
            *last = end;
        }
    }
}

/// Makes a vector as long as 1, unless it is 0.
fn normalise(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if squares > 0.0 {
        let scale = 1.0 / squares.sqrt();
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_made_as_long_as_1_and_nothing_stays_nothing() {
        let mut vector = [3.0, -4.0, 0.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, -0.8, 0.0]);
        let mut large = [1e30, 1e30];
        normalise(&mut large);
        assert!((large[0] - 0.5f32.sqrt()).abs() < 1e-6, "{large:?}");
        let mut nothing = [0.0; 2];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0; 2]);
    }

    #[test]
    fn what_a_classifier_says_becomes_a_share() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!((sigmoid(f32::MAX), sigmoid(f32::MIN)), (1.0, 0.0));
        assert!(sigmoid(1.0) > sigmoid(0.5));
    }
}

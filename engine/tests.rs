//! The library as its users see it, on tiny models and on the real ones.

mod embed;
mod generate;
mod golden;
mod grammar;
mod load;
mod session;

use std::fs;
use std::path::PathBuf;

use m40_testkit::gguf::{GgufBuilder, TinyModel};
use tempfile::TempDir;

use crate::{
    CancelToken, Completion, Engine, EngineOptions, FinishReason, GenerateError, GenerateParams,
    Model, ModelOptions, SamplingParams, Session, TokenLogprob,
};

/// A model file of its own, removed with this.
pub(crate) struct Tiny {
    dir: TempDir,
    path: PathBuf,
}

impl Tiny {
    pub(crate) fn new(file: &GgufBuilder) -> Self {
        Self::of(&file.build())
    }

    fn of(bytes: &[u8]) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("tiny.gguf");
        fs::write(&path, bytes).unwrap();
        Self { dir, path }
    }

    pub(crate) fn load(&self) -> Model {
        engine().load(&self.path, &ModelOptions::default()).unwrap()
    }
}

fn engine() -> Engine {
    Engine::new(EngineOptions { threads: Some(2), ..EngineOptions::default() }).unwrap()
}

/// A loaded tiny llama. The file may go: the map keeps it.
fn tiny() -> Model {
    Tiny::new(&TinyModel::new("llama").builder()).load()
}

/// Everything a generation gave.
pub(crate) struct Answer {
    text: String,
    logprobs: Vec<TokenLogprob>,
    pub(crate) completion: Completion,
}

impl Answer {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.logprobs.iter().map(|token| token.id).collect()
    }

    fn finish(&self) -> FinishReason {
        self.completion.finish
    }
}

fn try_generate(
    session: &mut Session,
    prompt: &[u32],
    params: &GenerateParams,
) -> Result<Answer, GenerateError> {
    let (mut text, mut logprobs) = (String::new(), vec![]);
    let completion = session.generate(prompt, params, &CancelToken::new(), &mut |chunk| {
        text.push_str(&chunk.text);
        logprobs.extend(chunk.logprobs);
    })?;
    Ok(Answer { text, logprobs, completion })
}

pub(crate) fn generate(session: &mut Session, prompt: &[u32], params: &GenerateParams) -> Answer {
    try_generate(session, prompt, params).unwrap()
}

/// The likeliest token each time, with its log-probability, past any end.
pub(crate) fn greedy(max_tokens: u32) -> GenerateParams {
    GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        logprobs: Some(0),
        ignore_eos: true,
        ..GenerateParams::default()
    }
}

/// Ordinary tokens of the tiny vocabularies.
pub(crate) fn prompt(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 6 + (i * 37 + seed * 101) % 280).collect()
}

//! One conversation: its tokens, its KV cache, and generation.

use std::time::{Duration, Instant};

use m40_grammar::{Constraint, Progress};
use m40_sched::sampler::{Sampler, top_logprobs};
use m40_tokenizer::Detokenizer;

use crate::backend::{Cache, Output, Start};
use crate::bench::{BenchOptions, OnLine};
use crate::generate::{
    CancelToken, Chunk, Completion, FinishReason, GenerateError, GenerateParams, TokenLogprob,
};
use crate::model::Model;
use crate::stop::{Matched, StopMatcher};

/// Most alternatives reported per token, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;

/// A conversation with one model.
#[derive(Debug)]
pub struct Session {
    model: Model,
    cache: Cache,
    /// Tokens whose keys and values were computed.
    tokens: Vec<u32>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Self {
        let cache = model.runner().cache();
        Self { model, cache, tokens: vec![] }
    }

    /// The last prompt and what was generated from it, as far as it was computed.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of KV cache in use.
    pub fn kv_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Continues `prompt`, calling `on_chunk` for every piece of output as soon as it is sure to be
    /// part of it. Blocks until the end; what the prompt shares with [`Self::tokens`], or in whole pages with
    /// any session's, is not computed again, while there is room to keep it.
    ///
    /// # Errors
    /// See [`GenerateError`]. [`GenerateError::NoToken`] and what a GPU or its memory says come when
    /// they come, the others before anything is computed.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
        on_chunk: &mut dyn FnMut(Chunk),
    ) -> Result<Completion, GenerateError> {
        self.check(prompt, params)?;
        let model = self.model.clone();
        let _working = model.pulse().work();
        let done = self.run(prompt, params, cancel, on_chunk);
        self.model.runner().rest(&mut self.cache);
        done
    }

    /// Measures the model, which answers nobody else meanwhile. The conversation is forgotten.
    ///
    /// # Errors
    /// [`GenerateError`], when its backend fails, or the model generates nothing.
    pub fn bench(
        &mut self,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        if !self.model.info().generates {
            return Err(GenerateError::Encoder);
        }
        self.cache.truncate(0);
        self.tokens.clear();
        let _working = self.model.pulse().work();
        self.model.runner().bench(&mut self.cache, options, on_line)
    }

    fn run(
        &mut self,
        prompt: &[u32],
        params: &GenerateParams,
        cancel: &CancelToken,
        on_chunk: &mut dyn FnMut(Chunk),
    ) -> Result<Completion, GenerateError> {
        let start = Instant::now();
        let mut cached = self.keep_prefix(prompt);
        let seed = params.sampling.seed.unwrap_or_else(fresh_seed);
        let stops = self.stops(params);
        self.model.runner().begin(&mut self.cache, &Start { prompt, params, seed, stops, cancel });
        let mut run = Run::new(self.model.clone(), prompt, params, seed, on_chunk);
        run.prompt_tokens = (prompt.len() - cached) as u32;
        let mut first = None;
        let mut pending = &prompt[cached..];
        let mut next;
        let finish = loop {
            if let Some(reason) = cancel.reason() {
                break reason;
            }
            let (computed, token) = self.pass(pending, &mut run)?;
            cached += if run.found { computed } else { 0 };
            pending = &pending[computed..];
            let Some(token) = token else { continue };
            first.get_or_insert_with(|| start.elapsed());
            if let Some(reason) = run.take(token, self.room()) {
                break reason;
            }
            next = [token];
            pending = &next;
        };
        run.finish();
        let prompt_time = first.unwrap_or_else(|| start.elapsed());
        Ok(Completion {
            finish,
            stopped_by: run.stopped_by,
            prompt_tokens: prompt.len() as u32,
            cached_tokens: cached as u32,
            completion_tokens: run.tokens.len() as u32,
            tokens: run.tokens,
            prompt_time,
            decode_time: if first.is_some() {
                start.elapsed() - prompt_time
            } else {
                Duration::ZERO
            },
        })
    }

    fn check(&self, prompt: &[u32], params: &GenerateParams) -> Result<(), GenerateError> {
        params.sampling.validate()?;
        let info = self.model.info();
        if !info.generates {
            return Err(GenerateError::Encoder);
        }
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= info.context as usize {
            let prompt_tokens = prompt.len();
            return Err(GenerateError::PromptTooLong { prompt_tokens, context: info.context });
        }
        if let Some(&token) = prompt.iter().find(|id| **id >= info.vocab) {
            return Err(GenerateError::UnknownToken { token, vocab: info.vocab });
        }
        if params.constraint.as_ref().is_some_and(|constraint| !self.model.compiled(constraint)) {
            return Err(GenerateError::ForeignConstraint);
        }
        match params.logprobs {
            Some(asked) if asked > MAX_TOP_LOGPROBS => {
                Err(GenerateError::TooManyLogprobs { asked, max: MAX_TOP_LOGPROBS })
            }
            _ => Ok(()),
        }
    }

    /// Forgets what `prompt` does not begin with; returns how many of its tokens remain. At least
    /// the last token is computed again, for its logits.
    fn keep_prefix(&mut self, prompt: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = self.cache.truncate(shared.min(prompt.len() - 1));
        self.tokens.truncate(kept);
        kept
    }

    /// Tokens that end the answer.
    fn stops(&self, params: &GenerateParams) -> Vec<u32> {
        let ends = self.model.tokenizer().ends_of_generation();
        let ends = if params.ignore_eos { &[] } else { ends };
        [ends, &params.stop_tokens].concat()
    }

    /// Tokens that still fit the context.
    fn room(&self) -> usize {
        self.model.info().context as usize - self.tokens.len()
    }

    /// Computes some of the first of `tokens`, which are all that is known, and says how many;
    /// samples the next one after the last.
    fn pass(
        &mut self,
        tokens: &[u32],
        run: &mut Run<'_>,
    ) -> Result<(usize, Option<u32>), GenerateError> {
        let base = self.tokens.len();
        let take = |output: Output<'_>| run.sample(output);
        let (computed, sampled) = self.model.runner().pass(&mut self.cache, base, tokens, take)?;
        self.model.pulse().step();
        self.tokens.extend_from_slice(&tokens[..computed]);
        Ok((computed, sampled?))
    }
}

/// The state of one generation.
struct Run<'a> {
    model: Model,
    params: &'a GenerateParams,
    on_chunk: &'a mut dyn FnMut(Chunk),
    sampler: Sampler,
    /// How far the answer is in its grammar, if it has one.
    progress: Option<Progress>,
    /// Logits before the grammar banned tokens, where their log-probabilities are asked for.
    plain: Vec<f32>,
    detokenizer: Detokenizer,
    stop: Option<StopMatcher<'a>>,
    stopped_by: Option<usize>,
    logprobs: Vec<TokenLogprob>,
    /// Whether the latest pass found what it was to compute.
    found: bool,
    tokens: Vec<u32>,
    /// Of these, how many were in chunks.
    told: u32,
    /// Tokens of the prompt that no chunk has told of.
    prompt_tokens: u32,
}

impl<'a> Run<'a> {
    fn new(
        model: Model,
        prompt: &[u32],
        params: &'a GenerateParams,
        seed: u64,
        on_chunk: &'a mut dyn FnMut(Chunk),
    ) -> Self {
        let vocab = model.info().vocab as usize;
        let mut sampler = Sampler::new(params.sampling.clone(), seed, vocab);
        prompt.iter().for_each(|id| sampler.accept(*id));
        Self {
            model,
            params,
            on_chunk,
            sampler,
            progress: params.constraint.as_ref().map(Constraint::start),
            plain: vec![],
            detokenizer: Detokenizer::new(true).keeping(&params.keep_special),
            stop: Some(StopMatcher::new(&params.stop)),
            stopped_by: None,
            logprobs: vec![],
            found: false,
            tokens: vec![],
            told: 0,
            prompt_tokens: 0,
        }
    }

    /// The next token, if one is to be chosen.
    fn sample(&mut self, output: Output<'_>) -> Result<Option<u32>, GenerateError> {
        self.found = matches!(output, Output::Found);
        let logits = match output {
            Output::Nothing | Output::Found => return Ok(None),
            Output::Chosen { probability: 0.0, .. } => return Err(GenerateError::NoToken),
            Output::Chosen { token, .. } => {
                self.sampler.accept(token);
                return Ok(Some(token));
            }
            Output::Logits(logits) => logits,
        };
        if let Some(progress) = &mut self.progress {
            if self.params.logprobs.is_some() {
                self.plain.clear();
                self.plain.extend_from_slice(logits);
            }
            progress.mask(logits)?;
        }
        let sampled = self.sampler.sample(logits);
        if sampled.probability == 0.0 {
            return Err(GenerateError::NoToken);
        }
        self.sampler.accept(sampled.id);
        if let Some(progress) = &mut self.progress {
            progress.accept(sampled.id)?;
        }
        if let Some(n) = self.params.logprobs {
            let logits = if self.progress.is_some() { &self.plain[..] } else { logits };
            let (logprob, top) = top_logprobs(logits, n as usize, sampled.id);
            let tokenizer = self.model.tokenizer();
            let bytes = |id| tokenizer.token_bytes(id).map(|b| b.to_vec()).unwrap_or_default();
            let top = top.into_iter().map(|(id, logprob)| (id, bytes(id), logprob)).collect();
            let bytes = bytes(sampled.id);
            self.logprobs.push(TokenLogprob { id: sampled.id, bytes, logprob, top });
        }
        Ok(Some(sampled.id))
    }

    /// Takes a sampled token; says whether the generation ends with it.
    fn take(&mut self, token: u32, room: usize) -> Option<FinishReason> {
        let ends = self.model.tokenizer().is_end_of_generation(token) && !self.params.ignore_eos;
        if ends || self.params.stop_tokens.contains(&token) {
            self.logprobs.pop();
            return Some(FinishReason::Stop);
        }
        if self.params.max_tokens == Some(0) {
            self.logprobs.pop();
            return Some(FinishReason::Length);
        }
        self.tokens.push(token);
        let piece = self.detokenizer.push(self.model.tokenizer(), token);
        if self.show(&piece) {
            return Some(FinishReason::Stop);
        }
        if self.progress.as_ref().is_some_and(Progress::is_over) {
            return Some(FinishReason::Stop);
        }
        let enough =
            self.params.max_tokens.is_some_and(|max| self.tokens.len() as u64 >= u64::from(max));
        (enough || room <= 1).then_some(FinishReason::Length)
    }

    /// Passes on what is sure to be output; true when a stop text was completed.
    fn show(&mut self, piece: &str) -> bool {
        let Some(stop) = &mut self.stop else { return true };
        let text = match stop.push(piece) {
            Matched::Text(text) => text,
            Matched::Stop { text, stop } => {
                self.stopped_by = Some(stop);
                self.stop = None;
                text
            }
        };
        self.emit(text);
        self.stopped_by.is_some()
    }

    fn emit(&mut self, text: String) {
        if !text.is_empty() || !self.logprobs.is_empty() {
            let logprobs = std::mem::take(&mut self.logprobs);
            let generated = self.tokens.len() as u32;
            let tokens = generated - std::mem::replace(&mut self.told, generated);
            let prompt_tokens = std::mem::take(&mut self.prompt_tokens);
            (self.on_chunk)(Chunk { text, logprobs, tokens, prompt_tokens });
        }
    }

    /// Passes on what was held back: half characters, and text that might have become a stop text.
    fn finish(&mut self) {
        let tail = self.detokenizer.finish();
        let stopped = self.show(&tail);
        if !stopped && let Some(stop) = self.stop.take() {
            self.emit(stop.finish());
        }
    }
}

/// A seed nobody chose: different for every generation, also within one clock tick.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now())
}

//! What an answer comes to, in tokens and time: for the metrics, the request's line in the log and the
//! rate of its key. It is counted when the answer is dropped, however that comes.

use std::time::Instant;

use m40llm::{Chunk, Completion};

use super::finish_word;
use crate::caller::Caller;
use crate::metrics::{BetweenTokens, Ended, Metrics};

#[derive(Debug)]
pub(super) struct Meter {
    metrics: Metrics,
    between: BetweenTokens,
    /// Absent for what `m40ctl` asks.
    caller: Option<Caller>,
    model: String,
    asked: Instant,
    /// When it had its turn.
    began: Option<Instant>,
    /// When the latest piece came.
    latest: Option<Instant>,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// It has not ended; once it is dropped, whoever asked has left.
    None,
    Done(&'static str),
    Failed,
}

impl Meter {
    pub(super) fn new(metrics: &Metrics, model: &str) -> Self {
        let caller = Caller::current();
        if let Some(caller) = &caller {
            caller.note(|record| record.model = Some(model.to_owned()));
        }
        Self {
            metrics: metrics.clone(),
            between: metrics.between_tokens(model),
            caller,
            model: model.to_owned(),
            asked: Instant::now(),
            began: None,
            latest: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            end: End::None,
        }
    }

    /// It has its turn.
    pub(super) fn began(&mut self) {
        self.began = Some(Instant::now());
    }

    pub(super) fn chunk(&mut self, chunk: &Chunk) {
        let now = Instant::now();
        match self.latest {
            None => self.first(now),
            Some(latest) => self.between.count(chunk.tokens, now - latest),
        }
        self.latest = Some(now);
        self.prompt_tokens += u64::from(chunk.prompt_tokens);
        self.completion_tokens += u64::from(chunk.tokens);
    }

    fn first(&self, now: Instant) {
        let after = now - self.asked;
        self.metrics.first_token(&self.model, after, now - self.began.unwrap_or(self.asked));
        if let Some(caller) = &self.caller {
            caller.note(|record| {
                record.first_token.get_or_insert(after);
            });
        }
    }

    pub(super) fn done(&mut self, completion: &Completion) {
        self.prompt_tokens = u64::from(completion.prompt_tokens);
        self.cached_tokens = u64::from(completion.cached_tokens);
        self.completion_tokens = u64::from(completion.completion_tokens);
        self.end = End::Done(finish_word(completion.finish));
    }

    pub(super) fn failed(&mut self) {
        self.end = End::Failed;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let finish = match self.end {
            End::None => Some("abort"),
            End::Done(word) => Some(word),
            End::Failed => None,
        };
        self.metrics.ended(&Ended {
            model: &self.model,
            finish,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: Some(self.cached_tokens),
            completion_tokens: self.completion_tokens,
            queue: self.began.map(|began| began - self.asked),
            whole: self.asked.elapsed(),
        });
        let Some(caller) = &self.caller else { return };
        caller.charge(self.prompt_tokens + self.completion_tokens);
        caller.note(|record| {
            record.prompt_tokens += self.prompt_tokens;
            record.completion_tokens += self.completion_tokens;
            record.finish = Some(finish.unwrap_or("error"));
        });
    }
}

//! The shapes of OpenAI's completions, whole and in chunks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem;

use m40_reply::Piece;
use m40llm::{Completion, TokenLogprob};
use serde::Serialize;

use super::chat_reply::Head;
use super::figures::{Timings, Usage, finish_reason};
use super::logprobs::finite;
use super::sse::{Frames, Shape};
use crate::generation::{Delta, Whole};
use crate::http::error::HttpError;

/// A reply on its way.
#[derive(Debug)]
pub(super) struct Reply {
    head: Head,
    include_usage: bool,
    /// Answers to each prompt.
    n: usize,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Debug)]
struct Choice {
    /// What is still to come before the answer.
    echo: String,
    /// Characters so far, the prompt included where it is echoed.
    offset: usize,
}

/// The whole reply, or a chunk of it.
#[derive(Serialize)]
pub(super) struct Part<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<PartChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct PartChoice<'a> {
    text: Cow<'a, str>,
    index: usize,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

/// OpenAI's older shape of log-probabilities.
#[derive(Debug, Serialize)]
struct Logprobs<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<Cow<'a, str>, f32>>,
    /// In characters.
    text_offset: Vec<usize>,
}

impl Reply {
    /// A reply with an answer for each of `echoes`, which come before them, `n` to each prompt.
    pub(super) fn new(model: &str, echoes: Vec<String>, n: usize, include_usage: bool) -> Self {
        let choice = |echo: String| Choice { offset: echo.chars().count(), echo };
        Self {
            head: Head::new("cmpl-", "text_completion", model),
            include_usage,
            n,
            choices: echoes.into_iter().map(choice).collect(),
            usage: Usage::default(),
        }
    }

    /// The reply to a request without `stream`.
    pub(super) fn whole<'a>(&'a self, answers: &'a [Whole]) -> Part<'a> {
        let mut usage = Usage::default();
        for (index, answer) in answers.iter().enumerate() {
            usage.add(&answer.completion, answer.reasoning_tokens, index.is_multiple_of(self.n));
        }
        let timings = match answers {
            [answer] => Some(Timings::of(&answer.completion)),
            _ => None,
        };
        let choices = self.choices.iter().zip(answers).enumerate();
        let choice = |(index, (choice, answer)): (usize, (&'a Choice, &'a Whole))| {
            let mut offset = choice.offset;
            PartChoice {
                text: with_echo(&choice.echo, &answer.content),
                index,
                logprobs: Logprobs::of(&answer.logprobs, &mut offset),
                finish_reason: Some(finish_reason(answer.completion.finish)),
            }
        };
        let choices = choices.map(choice).collect();
        Part { head: &self.head, choices, usage: Some(Some(usage)), timings }
    }

    fn chunk<'a>(&'a self, choice: Option<PartChoice<'a>>) -> Part<'a> {
        let choices = choice.into_iter().collect();
        let usage = self.include_usage.then_some(None);
        Part { head: &self.head, choices, usage, timings: None }
    }
}

impl Shape for Reply {
    fn begin(&mut self, _: &mut Frames) {}

    fn delta(&mut self, index: usize, delta: Delta, frames: &mut Frames) {
        let choice = &mut self.choices[index];
        let echo = mem::take(&mut choice.echo);
        let logprobs = Logprobs::of(&delta.logprobs, &mut choice.offset);
        let content = content(&delta);
        let text = with_echo(&echo, &content);
        frames.data(&self.chunk(Some(PartChoice { text, index, logprobs, finish_reason: None })));
    }

    fn done(&mut self, index: usize, completion: Completion, frames: &mut Frames) {
        self.usage.add(&completion, 0, index.is_multiple_of(self.n));
        let text = mem::take(&mut self.choices[index].echo).into();
        let finish_reason = Some(finish_reason(completion.finish));
        let choice = PartChoice { text, index, logprobs: None, finish_reason };
        let timings = Some(Timings::of(&completion));
        frames.data(&Part { timings, ..self.chunk(Some(choice)) });
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.include_usage {
            frames.data(&Part { usage: Some(Some(self.usage)), ..self.chunk(None) });
        }
        frames.end();
    }

    fn failed(&mut self, error: &HttpError, frames: &mut Frames) {
        frames.data(&error.body());
    }
}

// A prompt that is no conversation has an answer that is nothing but content, in one piece.
fn content(delta: &Delta) -> Cow<'_, str> {
    let mut texts = delta.pieces.iter().filter_map(|piece| match piece {
        Piece::Content(text) => Some(text.as_str()),
        _ => None,
    });
    let first = texts.next().unwrap_or_default();
    texts.fold(Cow::Borrowed(first), |joined, text| joined + text)
}

fn with_echo<'a>(echo: &'a str, text: &'a str) -> Cow<'a, str> {
    if echo.is_empty() { text.into() } else { [echo, text].concat().into() }
}

impl<'a> Logprobs<'a> {
    /// Of these tokens, the first of which is after `offset` characters; that goes on with them.
    fn of(tokens: &'a [TokenLogprob], offset: &mut usize) -> Option<Self> {
        if tokens.is_empty() {
            return None;
        }
        let mut text_offset = vec![];
        for token in tokens {
            text_offset.push(*offset);
            *offset += String::from_utf8_lossy(&token.bytes).chars().count();
        }
        let top = |token: &'a TokenLogprob| {
            let top = token.top.iter();
            top.map(|(_, bytes, logprob)| (String::from_utf8_lossy(bytes), finite(*logprob)))
                .collect()
        };
        Some(Self {
            tokens: tokens.iter().map(|token| String::from_utf8_lossy(&token.bytes)).collect(),
            token_logprobs: tokens.iter().map(|token| finite(token.logprob)).collect(),
            top_logprobs: tokens.iter().map(top).collect(),
            text_offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn log_probabilities_are_lists_and_offsets_are_characters() {
        let token = |text: &str, logprob| TokenLogprob {
            id: 1,
            bytes: text.as_bytes().to_vec(),
            logprob,
            top: vec![(2, b"x".to_vec(), -0.5), (3, b"y".to_vec(), f32::NEG_INFINITY)],
        };
        let tokens = [token("\u{e9}t\u{e9}", -0.25), token("b", -1.0)];
        let mut offset = 4;
        let got = json!(Logprobs::of(&tokens, &mut offset));
        let top = json!({"x": -0.5, "y": -9999.0});
        let want = json!({
            "tokens": ["\u{e9}t\u{e9}", "b"],
            "token_logprobs": [-0.25, -1.0],
            "top_logprobs": [top, top],
            "text_offset": [4, 7],
        });
        assert_eq!((got, offset), (want, 8));
        assert!(Logprobs::of(&[], &mut offset).is_none());
    }
}

//! Replies as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use m40llm::Completion;
use serde::Serialize;

use super::Answers;
use crate::generation::{Delta, Event};
use crate::http::PING_INTERVAL;
use crate::http::error::HttpError;

/// What the events of a route look like. `choice` is the number of an answer.
pub(super) trait Shape {
    /// Before anything is answered.
    fn begin(&mut self, frames: &mut Frames);
    /// An answer has more to say.
    fn delta(&mut self, choice: usize, delta: Delta, frames: &mut Frames);
    /// An answer has ended.
    fn done(&mut self, choice: usize, completion: Completion, frames: &mut Frames);
    /// All answers have ended.
    fn end(&mut self, frames: &mut Frames);
    /// Nothing more is answered.
    fn failed(&mut self, error: &HttpError, frames: &mut Frames);
}

/// Events that are to be sent.
#[derive(Debug, Default)]
pub(super) struct Frames(VecDeque<Frame>);

#[derive(Debug)]
struct Frame {
    name: Option<&'static str>,
    data: String,
}

impl Frames {
    /// An event without a name.
    pub(super) fn data(&mut self, value: &impl Serialize) {
        self.0.push_back(Frame { name: None, data: json(value) });
    }

    /// An event with a name.
    pub(super) fn named(&mut self, name: &'static str, value: &impl Serialize) {
        self.0.push_back(Frame { name: Some(name), data: json(value) });
    }

    /// OpenAI's word for the end of a stream.
    pub(super) fn end(&mut self) {
        self.0.push_back(Frame { name: None, data: "[DONE]".to_owned() });
    }

    /// What is to be sent, with the events' names.
    #[cfg(test)]
    pub(super) fn shown(self) -> Vec<(String, serde_json::Value)> {
        let shown = |frame: Frame| {
            let name = frame.name.unwrap_or_default().to_owned();
            (name, serde_json::from_str(&frame.data).expect("events are JSON"))
        };
        self.0.into_iter().map(shown).collect()
    }
}

impl Frame {
    fn event(self) -> SseEvent {
        let event = SseEvent::default();
        let event = match self.name {
            Some(name) => event.event(name),
            None => event,
        };
        event.data(self.data)
    }
}

// JSON text has no line ends, which is all that a field's value must not have.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the keys of what is said here are texts")
}

/// A stream of what the answers say, in this shape.
pub(super) fn reply(answers: Answers, shape: impl Shape + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(PING_INTERVAL).text("ping");
    Sse::new(events(answers, shape)).keep_alive(keep_alive).into_response()
}

fn events(
    answers: Answers,
    mut shape: impl Shape,
) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    let mut frames = Frames::default();
    shape.begin(&mut frames);
    let state = (Some(answers.events()), shape, frames);
    stream::unfold(state, |(mut answers, mut shape, mut frames)| async move {
        loop {
            if let Some(frame) = frames.0.pop_front() {
                return Some((Ok(frame.event()), (answers, shape, frames)));
            }
            match answers.as_mut()?.next().await {
                Some((choice, Event::Delta(delta))) => shape.delta(choice, delta, &mut frames),
                Some((choice, Event::Done(done))) => shape.done(choice, done, &mut frames),
                Some((_, Event::Failed(error))) => {
                    // The others have nobody to listen to them any more.
                    answers = None;
                    shape.failed(&error.into(), &mut frames);
                }
                None => {
                    answers = None;
                    shape.end(&mut frames);
                }
            }
        }
    })
}

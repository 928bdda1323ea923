//! The answers of one request, side by side.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, SelectAll};
use m40_reply::Piece;

use crate::generation::{Answer, AnswerError, AskError, Delta, Event, Input, Question, Whole};
use crate::http::error::HttpError;
use crate::models::{Models, Urgency};

/// Most answers to one prompt.
const N_MAX: u32 = 8;

/// The answers of one request, each with a place of its own in the scheduler. Dropping them frees all
/// of these.
pub(super) struct Answers {
    model: String,
    answers: Vec<Answer>,
    /// Whether each tells of one call at most. Not every model is held to that while it writes.
    one_call: bool,
}

impl Answers {
    /// Asks a model these questions, of which there is at least one.
    pub(super) async fn ask(
        models: &Models,
        model: Option<&str>,
        urgency: Urgency,
        questions: Vec<Question>,
    ) -> Result<Self, HttpError> {
        let mut model = model.map(str::to_owned);
        let mut answers = Vec::with_capacity(questions.len());
        let is_for_one_call =
            |question: &Question| matches!(&question.input, Input::Chat(chat) if chat.one_call);
        let one_call = questions.iter().any(is_for_one_call);
        for question in questions {
            let ticket = models.ask(model.as_deref(), urgency).await?;
            // Those that follow mean the same model, whatever is loaded by then.
            model = Some(ticket.model().to_owned());
            answers.push(Answer::new(models, ticket, question)?);
        }
        Ok(Self { model: model.unwrap_or_default(), answers, one_call })
    }

    /// Name of the model that answers.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Returns when all have their turn, or this time is over.
    pub(super) async fn started_within(&mut self, time: Duration) -> Result<(), AskError> {
        try_join_all(self.answers.iter_mut().map(|answer| answer.started_within(time))).await?;
        Ok(())
    }

    /// The whole answers, in the order of the questions. The first that fails ends the others.
    pub(super) async fn whole(self) -> Result<Vec<Whole>, AnswerError> {
        let mut answers = try_join_all(self.answers.into_iter().map(Answer::whole)).await?;
        if self.one_call {
            answers.iter_mut().for_each(|answer| answer.calls.truncate(1));
        }
        Ok(answers)
    }

    /// What they have to say, as it comes, each with the number of its question.
    pub(super) fn events(self) -> SelectAll<BoxStream<'static, (usize, Event)>> {
        let events = |(index, answer)| {
            let next = move |(mut answer, mut rest): (Answer, Rest)| async move {
                let mut event = answer.next().await?;
                if let Event::Delta(delta) = &mut event {
                    rest.drop_from(delta);
                }
                Some(((index, event), (answer, rest)))
            };
            let rest = if self.one_call { Rest::AfterCall } else { Rest::Told };
            stream::unfold((answer, rest), next).boxed()
        };
        stream::select_all(self.answers.into_iter().enumerate().map(events))
    }
}

/// What of an answer is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing.
    Told,
    /// All that comes after the first call.
    AfterCall,
    /// All, as that call has ended.
    Dropped,
}

impl Rest {
    fn drop_from(&mut self, delta: &mut Delta) {
        match self {
            Self::Told => {}
            Self::Dropped => delta.pieces.clear(),
            Self::AfterCall => {
                let ended = delta.pieces.iter().position(|piece| *piece == Piece::CallEnd);
                if let Some(end) = ended {
                    delta.pieces.truncate(end + 1);
                    *self = Self::Dropped;
                }
            }
        }
    }
}

/// How many answers to each prompt a request wants.
pub(super) fn count(n: Option<u32>) -> Result<usize, HttpError> {
    match n.unwrap_or(1) {
        n @ 1..=N_MAX => Ok(n as usize),
        n => Err(HttpError::bad_param("n", format!("is {n}, it may be 1 to {N_MAX}"))),
    }
}

/// A question for each of `n` answers, which differ in their seed where the request has one.
pub(super) fn times(question: &Question, n: usize) -> Vec<Question> {
    let nth = |nth: u64| {
        let mut question = question.clone();
        let seed = &mut question.params.sampling.seed;
        *seed = seed.map(|seed| seed.wrapping_add(nth));
        question
    };
    (0..n as u64).map(nth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_one_prompt_have_seeds_in_a_row() {
        let mut question = Question::default();
        question.params.sampling.seed = Some(u64::MAX);
        let seeds = |question: &Question| {
            times(question, 3).iter().map(|q| q.params.sampling.seed).collect::<Vec<_>>()
        };
        assert_eq!(seeds(&question), [Some(u64::MAX), Some(0), Some(1)]);
        question.params.sampling.seed = None;
        assert_eq!(seeds(&question), [None; 3]);
    }

    #[test]
    fn an_answer_of_one_call_ends_with_it() {
        let call =
            || [Piece::Call { name: "f".into() }, Piece::Arguments("{}".into()), Piece::CallEnd];
        let delta = |pieces: Vec<Piece>| Delta { pieces, ..Delta::default() };
        let left = |mut rest: Rest| {
            let mut deltas = [
                delta(vec![Piece::Content("a".into())]),
                delta([call(), call()].concat()),
                delta(call().to_vec()),
            ];
            deltas.iter_mut().for_each(|delta| rest.drop_from(delta));
            deltas.map(|delta| delta.pieces.len())
        };
        assert_eq!(left(Rest::Told), [1, 6, 3]);
        assert_eq!(left(Rest::AfterCall), [1, 3, 0]);
    }

    #[test]
    fn there_are_one_to_eight_answers() {
        assert_eq!(count(None).unwrap(), 1);
        assert_eq!(count(Some(8)).unwrap(), 8);
        assert!(count(Some(0)).is_err() && count(Some(9)).is_err());
    }
}

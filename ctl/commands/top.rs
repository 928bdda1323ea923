//! `m40ctl top`

mod picture;

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use m40_control::{Client, ClientError, QueueEntry, Status};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::picture::{Picture, Pressed};
use crate::error::{CommandError, Kind};
use crate::output::Output;
use crate::terminal::{Ends, Keys, Screen};
use crate::view::{self, Rates};

/// How long an answer of the daemon is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Rates are over so many looks at most: what comes in bursts, such as prompts, would flicker.
const RATES_OVER: usize = 3;

/// Watch models, requests and rates as they change
///
/// On a terminal the picture is replaced every second: q leaves, s sorts, space pauses, arrows move
/// through more models than fit. Elsewhere, and with --json, each look is printed below the last.
/// Ctrl-C ends it, which is no failure.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Seconds between two looks
    #[arg(long, short = 'i', value_name = "SECONDS", default_value = "1",
          value_parser = parse_interval)]
    interval: Duration,
    /// Looks before it ends by itself; rates begin with the second [default: no end]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("legal is 0.1 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A look at the daemon. As `--json` prints it, it is what `m40ctl status --json` prints, and more.
#[derive(Debug, Clone, Serialize)]
struct Look {
    /// When it was, in milliseconds since 1970.
    time_unix_ms: u64,
    #[serde(flatten)]
    status: Status,
    /// The requests that wait or run, in the order in which they came.
    requests: Vec<QueueEntry>,
    /// Rates since a look before; none with the first.
    rates: Rates,
}

/// Makes looks of what the daemon says.
#[derive(Debug, Default)]
struct Looker {
    before: VecDeque<(Instant, Status)>,
}

impl Looker {
    fn look(&mut self, at: Instant, (status, requests): Answer) -> Look {
        let first = self.before.front();
        let rates = first.map_or_else(Rates::new, |(then, before)| {
            view::rates_between(before, &status, at.duration_since(*then))
        });
        self.before.push_back((at, status.clone()));
        if self.before.len() > RATES_OVER {
            self.before.pop_front();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Look { time_unix_ms: since.as_millis() as u64, status, requests, rates }
    }
}

/// What the daemon says: how it is, and which requests there are.
type Answer = (Status, Vec<QueueEntry>);

type Answered = (Instant, Result<Answer, CommandError>);

pub(crate) async fn run(
    args: &TopArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let answers = ask_again_and_again(client.clone(), args);
    if !output.json && output.is_screen() && io::stdin().is_terminal() {
        return watch(answers, args, output.color).await;
    }
    let mut ends = Ends::new()?;
    tokio::select! {
        printed = print_all(answers, output) => printed,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        () = ends.asked() => Err(CommandError::new(Kind::Interrupted, "ended by a signal")),
    }
}

/// Asks the daemon at every interval, whether or not anybody has looked at the last answer.
fn ask_again_and_again(client: Client, args: &TopArgs) -> Receiver<Answered> {
    let (sender, receiver) = channel(1);
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = args.count.unwrap_or(u64::MAX);
    tokio::spawn(async move {
        while left > 0 {
            left -= 1;
            ticks.tick().await;
            let answer = ask(&client).await;
            if sender.send((Instant::now(), answer)).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn ask(client: &Client) -> Result<Answer, CommandError> {
    let both = async { Ok((client.status().await?, client.queue().await?.requests)) };
    match timeout(ANSWER_MAX, both).await {
        Ok(answer) => answer.map_err(|error: ClientError| error.into()),
        Err(_) => {
            let message = format!("m40d has not answered for {} s", ANSWER_MAX.as_secs());
            Err(CommandError::new(Kind::Unavailable, message).hint("`m40ctl logs` may say why"))
        }
    }
}

async fn print_all(
    mut answers: Receiver<Answered>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut looker = Looker::default();
    let mut first = true;
    while let Some((at, answer)) = answers.recv().await {
        let look = looker.look(at, answer?);
        if output.json {
            output.value(&look)?;
            continue;
        }
        if !std::mem::take(&mut first) {
            output.line("")?;
        }
        for line in Picture::default().lines(&look) {
            output.styled(&line)?;
        }
    }
    Ok(())
}

/// Shows a picture until somebody has seen enough. A daemon that goes away may come back.
async fn watch(
    mut answers: Receiver<Answered>,
    args: &TopArgs,
    color: bool,
) -> Result<(), CommandError> {
    // What is wrong from the start is said where it stays to be read.
    let Some((at, answer)) = answers.recv().await else { return Ok(()) };
    let mut looker = Looker::default();
    let mut look = looker.look(at, answer?);
    let mut picture = Picture::watching(args.interval);

    let mut ends = Ends::new()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut keys = Keys::read();
    let screen = Screen::open(io::stdout())?;
    loop {
        screen.draw(&picture.draw(&look, screen.size(), color))?;
        tokio::select! {
            answer = answers.recv() => match answer {
                None => return Ok(()),
                Some(_) if picture.is_paused() => {}
                Some((at, Ok(answer))) => {
                    picture.set_trouble(None);
                    look = looker.look(at, answer);
                }
                Some((_, Err(error))) => picture.set_trouble(Some(error.to_string())),
            },
            typed = keys.next() => match typed {
                Some(typed) if picture.press(&typed) == Pressed::Stay => {}
                _ => return Ok(()),
            },
            _ = resized.recv() => {}
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            () = ends.asked() => {
                return Err(CommandError::new(Kind::Interrupted, "ended by a signal"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn intervals_are_within_reason() {
        assert_eq!(parse_interval("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "NaN", "1e9", "x"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_over_the_last_looks_and_the_first_has_none() {
        let mut looker = Looker::default();
        let start = Instant::now();
        let mut rates = (0..6).map(|second: u32| {
            let made = u64::from(second * second * 10);
            let status = view::test_status(json!([view::test_model("a", made, 1)]));
            let look = looker.look(start + Duration::from_secs(second.into()), (status, vec![]));
            look.rates.get("a").and_then(|rate| rate.completion_tokens_per_s)
        });
        assert_eq!(rates.next(), Some(None));
        assert_eq!(rates.next(), Some(Some(10.0)));
        // 250 tokens after five seconds, 40 after two.
        assert_eq!(rates.last(), Some(Some(70.0)));
    }

    #[test]
    fn a_look_is_a_status_with_more() {
        let status = view::test_status(json!([view::test_model("a", 1, 1)]));
        let look = Looker::default().look(Instant::now(), (status, vec![]));
        let value = serde_json::to_value(&look).unwrap();
        assert_eq!(value["models"][0]["name"], "a");
        assert!(value["time_unix_ms"].is_u64() && value["rates"].is_object());
    }
}

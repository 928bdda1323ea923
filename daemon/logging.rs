//! What is logged, and where to: to stderr for people, with a time and colours; under systemd to the
//! journal, with fields ([`journal`]), or as lines with `<N>` priorities and without what the journal adds
//! itself. Which lines there are can be changed while the daemon runs.

mod journal;

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use m40_control::paths::Env;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use journal::Journal;

/// Longest accepted filter, in bytes.
const FILTER_BYTES_MAX: usize = 1024;

/// Which lines are logged: `error`, `warn`, `info`, `debug`, `trace`, or tracing's list of `target=level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Filter(String);

/// Why a text is no [`Filter`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error(
        "{0:?} is not a log level: use error, warn, info, debug or trace, or a list such as \
         \"info,m40d::models=debug\""
    )]
    Unknown(String),
    #[error("the log level is {0} bytes long, the longest is {FILTER_BYTES_MAX}")]
    TooLong(usize),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(FilterError::TooLong(text.len()));
        }
        // A bare unknown word would be taken for a target and silence everything else.
        let names_level = text.contains('=') || text.parse::<Level>().is_ok();
        match EnvFilter::try_new(text) {
            Ok(_) if names_level => Ok(Self(text.to_owned())),
            _ => Err(FilterError::Unknown(text.to_owned())),
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is logged now, and the way to change it. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
    /// The filter that is in force.
    current: Arc<Mutex<Filter>>,
}

impl Levels {
    /// What is logged now.
    pub(crate) fn current(&self) -> Filter {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs this from now on.
    pub(crate) fn set(&self, filter: Filter) -> Result<(), reload::Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.reload(EnvFilter::new(&filter.0))?;
        *current = filter;
        Ok(())
    }
}

/// Whether stderr goes to the journal.
pub(crate) fn to_journal(env: &Env) -> bool {
    env.var("JOURNAL_STREAM").is_some()
}

/// Starts logging for the whole process.
pub(crate) fn start(filter: Filter, env: &Env) -> Levels {
    let (filtered, handle) = reload::Layer::new(EnvFilter::new(&filter.0));
    let lines = match (to_journal(env), Journal::of_stderr(env)) {
        (_, Some(journal)) => journal.boxed(),
        (true, None) => {
            let inner = format().compact().without_time().with_level(false);
            let lines = layer().with_writer(std::io::stderr).with_ansi(false);
            lines.event_format(Priorities(inner)).boxed()
        }
        (false, None) => {
            let ansi = std::io::stderr().is_terminal();
            layer().with_writer(std::io::stderr).with_ansi(ansi).compact().boxed()
        }
    };
    tracing_subscriber::registry().with(filtered).with(lines).init();
    Levels { handle, current: Arc::new(Mutex::new(filter)) }
}

/// Puts the syslog priority before each line, as sd-daemon(3) describes.
struct Priorities(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Priorities
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for good in ["info", "TRACE", "warn,m40d::models=debug"] {
            assert_eq!(good.parse::<Filter>().unwrap().to_string(), good);
        }
        for bad in ["", "loud", "m40d=loud", &"x=info,".repeat(200)] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}

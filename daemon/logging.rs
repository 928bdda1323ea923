//! Log lines to stderr: for people with a time and colours, for the journal with `<N>`
//! priorities and without what the journal adds itself.

use std::fmt;
use std::io::IsTerminal;

use m40_control::paths::Env;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether stderr goes to the journal.
pub(crate) fn to_journal(env: &Env) -> bool {
    env.var("JOURNAL_STREAM").is_some()
}

/// Starts logging for the whole process. `filter` was checked when the configuration was read.
pub(crate) fn start(filter: &str, env: &Env) {
    let filter = EnvFilter::new(filter);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if to_journal(env) {
        let inner = tracing_subscriber::fmt::format().compact().without_time().with_level(false);
        builder.with_ansi(false).event_format(Journal(inner)).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).compact().init();
    }
}

/// Puts the syslog priority before each line, as sd-daemon(3) describes.
struct Journal(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Journal
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
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

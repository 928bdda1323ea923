//! Lines of the log with fields, in the journal's own protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).
//!
//! `MESSAGE` is the whole line, as it would be on stderr. Besides there are `MODEL` and `REQUEST_ID`, and
//! every other field of the line as `M40D_<NAME>`, so that none is taken for one of the journal's own.

use std::fmt::{self, Debug, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use m40_control::paths::Env;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::priority;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The span of a request, whose `id` is the request's.
const REQUEST: &str = "request";

/// Sends each line to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal that stderr goes to, if it does and that can be reached.
    pub(super) fn of_stderr(env: &Env) -> Option<Self> {
        let stream = env.var("JOURNAL_STREAM")?;
        let stderr = rustix::fs::fstat(io::stderr()).ok()?;
        let is_stderr = stream == format!("{}:{}", stderr.st_dev, stderr.st_ino);
        let journal = Self { socket: UnixDatagram::unbound().ok()?, path: SOCKET.into() };
        // It takes a message of nothing for nothing.
        (is_stderr && journal.send(&[]).is_ok()).then_some(journal)
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send_to(message, &self.path).map(|_| ())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::of(attributes.metadata());
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Fields::of(metadata);
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.text.push_str(&fields.text);
                line.named.extend_from_slice(&fields.named);
            }
        }
        let priority = priority(*metadata.level());
        let text = format!("{}: {}{}", metadata.target(), line.message, line.text);
        let mut message = Vec::with_capacity(512);
        put(&mut message, "MESSAGE", &text);
        put(&mut message, "PRIORITY", &priority.to_string());
        put(&mut message, "SYSLOG_IDENTIFIER", "m40d");
        put(&mut message, "TARGET", metadata.target());
        message.extend_from_slice(&line.named);
        if self.send(&message).is_err() {
            // Also a way to the journal. Failing to log leaves nobody to tell.
            let _ = writeln!(io::stderr(), "<{priority}>{text}");
        }
    }
}

/// Fields of a span or a line.
#[derive(Debug)]
struct Fields {
    is_request: bool,
    message: String,
    /// ` name=value` of each.
    text: String,
    /// The same in the journal's form.
    named: Vec<u8>,
}

impl Fields {
    fn of(metadata: &Metadata<'_>) -> Self {
        let is_request = metadata.is_span() && metadata.name() == REQUEST;
        Self { is_request, message: String::new(), text: String::new(), named: Vec::new() }
    }

    fn add(&mut self, field: &Field, shown: fmt::Arguments<'_>, value: &str) {
        // Writing to a text never fails.
        let _ = write!(self.text, " {}={shown}", field.name());
        match field.name() {
            "model" => put(&mut self.named, "MODEL", value),
            "id" if self.is_request => put(&mut self.named, "REQUEST_ID", value),
            name => put(&mut self.named, &format!("M40D_{}", upper(name)), value),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.add(field, format_args!("{value:?}"), value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message.push_str(&value),
            _ => self.add(field, format_args!("{value}"), &value),
        }
    }
}

/// What the journal allows in names.
fn upper(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(allowed).collect()
}

/// A field in the journal's form: those of several lines have their length before them.
fn put(message: &mut Vec<u8>, name: &str, value: &str) {
    message.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        message.push(b'\n');
        message.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        message.push(b'=');
    }
    message.extend_from_slice(value.as_bytes());
    message.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing::{info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What the journal hears of what is done.
    fn heard(act: impl FnOnce()) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal { socket: UnixDatagram::unbound().unwrap(), path };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), act);
        journald.set_nonblocking(true).unwrap();
        let mut message = vec![0; 4096];
        let length = journald.recv(&mut message).unwrap();
        message.truncate(length);
        message
    }

    #[test]
    fn a_line_of_a_request_has_its_id_and_model_as_fields() {
        let message = heard(|| {
            let span = info_span!("request", id = "req-1", path = "/v1/models");
            warn!(parent: &span, model = "tiny", status = 503, "no answer");
        });
        let message = String::from_utf8(message).unwrap();
        let lines: Vec<&str> = message.lines().collect();
        let text = "no answer model=\"tiny\" status=503 id=\"req-1\" path=\"/v1/models\"";
        assert!(lines[0].starts_with("MESSAGE=m40d::") && lines[0].ends_with(text), "{message}");
        for line in ["PRIORITY=4", "SYSLOG_IDENTIFIER=m40d", "MODEL=tiny", "REQUEST_ID=req-1"] {
            assert!(lines.contains(&line), "{message} lacks {line}");
        }
        assert!(lines.contains(&"M40D_STATUS=503") && lines.contains(&"M40D_PATH=/v1/models"));
    }

    #[test]
    fn a_value_of_several_lines_stays_one_field() {
        let value = "a\nPRIORITY=0";
        let message = heard(|| warn!(value, "hm"));
        let field = [b"M40D_VALUE\n".as_slice(), &12u64.to_le_bytes(), value.as_bytes(), b"\n"];
        assert!(message.windows(32).any(|part| part == field.concat()), "{message:?}");
        let lines = message.split(|byte| *byte == b'\n').collect::<Vec<_>>();
        assert!(lines.contains(&b"PRIORITY=4".as_slice()));
    }

    #[test]
    fn stderr_that_is_no_journal_gets_lines() {
        let env = Env::new([("JOURNAL_STREAM".to_owned(), "9:1".to_owned())], false);
        assert!(Journal::of_stderr(&env).is_none());
        assert!(Journal::of_stderr(&Env::default()).is_none());
    }
}

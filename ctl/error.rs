//! What can go wrong in a command, and the one place where that becomes an exit code.

use std::fmt;
use std::io;

use m40_control::paths::PathError;
use m40_control::{ApiError, ClientError, ErrorCode};
use serde_json::json;

/// What kind of thing went wrong; decides the exit code, which follow sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The daemon refused, in the state that it or the model is in.
    Refused,
    /// The command line makes no sense.
    Usage,
    /// The file is not a usable model.
    BadData,
    /// No such model or file.
    NotFound,
    /// The daemon is not running.
    Unavailable,
    /// The daemon, or this program, failed.
    Internal,
    /// The disk is too full.
    NoSpace,
    /// Reading or writing failed.
    Io,
    /// Too much to do; trying again may help.
    Busy,
    /// Where a file comes from failed.
    Origin,
    /// Not permitted.
    Permission,
    /// Ended by Ctrl-C.
    Interrupted,
}

impl Kind {
    /// All kinds, by their exit codes.
    pub(crate) const ALL: [Self; 12] = [
        Self::Refused,
        Self::Usage,
        Self::BadData,
        Self::NotFound,
        Self::Unavailable,
        Self::Internal,
        Self::NoSpace,
        Self::Io,
        Self::Busy,
        Self::Origin,
        Self::Permission,
        Self::Interrupted,
    ];

    /// What it means, for who reads exit codes.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Refused => "refused, as things are, or a problem was found",
            Self::Usage => "wrong command line",
            Self::BadData => "not a usable model, or a wrong manifest or configuration",
            Self::NotFound => "no such model, file or program",
            Self::Unavailable => "m40d is not running",
            Self::Internal => "m40d or m40ctl failed",
            Self::NoSpace => "not enough space on the disk",
            Self::Io => "reading or writing failed",
            Self::Busy => "busy, try again",
            Self::Origin => "where a file comes from failed",
            Self::Permission => "not permitted",
            Self::Interrupted => "ended by Ctrl-C or another signal",
        }
    }

    /// The exit code.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 64,
            Self::BadData => 65,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::NoSpace => 73,
            Self::Io => 74,
            Self::Busy => 75,
            Self::Origin => 76,
            Self::Permission => 77,
            // What a shell reports for a program that died of SIGINT.
            Self::Interrupted => 130,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::BadData => "bad_model",
            Self::NotFound => "not_found",
            Self::Unavailable => "not_running",
            Self::Internal => "internal",
            Self::NoSpace => "no_space",
            Self::Io => "io",
            Self::Busy => "busy",
            Self::Origin => "origin",
            Self::Permission => "not_permitted",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A command's failure: one line that says what, and what to do about it when that is known.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
    closed_pipe: bool,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl CommandError {
    /// A failure of this kind.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, closed_pipe: false }
    }

    /// With what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Whether nothing that is typed after it can do any better.
    pub(crate) fn ends_a_chat(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Interrupted) || self.closed_pipe
    }

    /// For `--json`.
    pub(crate) fn to_json(&self) -> String {
        let error = json!({"kind": self.kind.name(), "message": self.message, "hint": self.hint});
        json!({"error": error}).to_string()
    }

    /// A reader that has seen enough, such as `head`, is no failure.
    pub(crate) fn ignore_closed_pipe(self) -> Result<(), Self> {
        if self.closed_pipe { Ok(()) } else { Err(self) }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { closed_pipe, ..Self::new(Kind::Io, error.to_string()) }
    }
}

impl From<PathError> for CommandError {
    fn from(error: PathError) -> Self {
        Self::new(Kind::Usage, error.to_string()).hint("or name the socket with --socket")
    }
}

impl From<ApiError> for CommandError {
    fn from(error: ApiError) -> Self {
        let kind = match error.code {
            ErrorCode::InvalidRequest => Kind::Usage,
            ErrorCode::Forbidden => Kind::Permission,
            ErrorCode::NotFound => Kind::NotFound,
            ErrorCode::BadModel => Kind::BadData,
            ErrorCode::NoSpace => Kind::NoSpace,
            ErrorCode::Origin => Kind::Origin,
            ErrorCode::Busy | ErrorCode::Stopping => Kind::Busy,
            ErrorCode::Conflict | ErrorCode::Aborted | ErrorCode::TooLarge => Kind::Refused,
            _ => Kind::Internal,
        };
        let failed = Self::new(kind, error.message);
        // What the daemon refuses it says with what to do; of its own mistakes it knows no more.
        match kind {
            Kind::Internal => failed.hint("`m40ctl logs` says more"),
            _ => failed,
        }
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Api(error) => error.into(),
            ClientError::NotRunning { .. } => Self::new(Kind::Unavailable, message)
                .hint("start it with `systemctl start m40d`, or run `m40d` in another terminal"),
            ClientError::Permission { .. } => Self::new(Kind::Permission, message)
                .hint("become root or a member of the socket's group"),
            ClientError::Connect { .. } | ClientError::Http(_) | ClientError::Closed => {
                Self::new(Kind::Unavailable, message).hint("`m40ctl logs` may say more")
            }
            _ => Self::new(Kind::Internal, message).hint("is it the same version as this m40ctl?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_not_running_says_how_to_start_it() {
        let error = CommandError::from(ClientError::NotRunning {
            socket: "/run/m40d/control.sock".into(),
            source: io::ErrorKind::NotFound.into(),
        });
        assert_eq!(error.kind.exit_code(), 69);
        let text = error.to_string();
        assert!(text.contains("not running") && text.contains("systemctl start m40d"), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn codes_of_the_daemon_become_exit_codes() {
        for (code, exit) in [
            (ErrorCode::NotFound, 66),
            (ErrorCode::BadModel, 65),
            (ErrorCode::Busy, 75),
            (ErrorCode::NoSpace, 73),
            (ErrorCode::Origin, 76),
            (ErrorCode::Forbidden, 77),
            (ErrorCode::Conflict, 1),
            (ErrorCode::Internal, 70),
        ] {
            assert_eq!(CommandError::from(ApiError::new(code, "x")).kind.exit_code(), exit);
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = CommandError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(closed.ignore_closed_pipe().is_ok());
        let full = CommandError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(full.ignore_closed_pipe().is_err());
    }
}

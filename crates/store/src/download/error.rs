//! Why a download failed.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::error::StoreError;
use crate::sha256::Sha256;

/// Why a download failed. URLs are shown without their queries, which may hold keys.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The disk, or a file on it.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// No client could be made, for want of certificates for example.
    #[error("cannot make HTTP requests: {reason} (is the package ca-certificates installed?)")]
    NoClient {
        /// Why.
        reason: String,
    },
    /// Nobody is there, or the connection broke.
    #[error("{url}: {reason}")]
    Broken {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// No byte came for too long.
    #[error("{url}: no byte came for {seconds} seconds")]
    Stalled {
        /// What was asked for.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// The origin refused.
    #[error("{url}: the origin answered with status {status}{}", hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// When the origin wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The origin sent the request somewhere it must not go.
    #[error("{url}: {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// What is wrong with the redirect.
        reason: String,
    },
    /// A page for people, like that of a hotel's network that wants a login.
    #[error("{url}: the origin sent a web page and not the file")]
    WebPage {
        /// What was asked for.
        url: String,
    },
    /// The file at the origin has another length.
    #[error("{url}: the file there has {found_bytes} bytes, and not {expected_bytes}")]
    Size {
        /// What was asked for.
        url: String,
        /// How long it should be.
        expected_bytes: u64,
        /// How long it is.
        found_bytes: u64,
    },
    /// The origin does not send the parts of a file that were asked for.
    #[error("{url}: the origin answers ranges wrongly: {reason}")]
    Ranges {
        /// What was asked for.
        url: String,
        /// What it did.
        reason: String,
    },
    /// The file is another one, also after it was compared with the origin's.
    #[error(
        "{url}: the file there has the SHA-256 {found}, and not {expected}: one of the two is wrong"
    )]
    Digest {
        /// What was asked for.
        url: String,
        /// The hash that it should have.
        expected: Sha256,
        /// The hash that it has.
        found: Sha256,
    },
    /// The origin sent something else each time.
    #[error("{url}: what the origin sends is another file each time, and never {expected}")]
    Inconsistent {
        /// What was asked for.
        url: String,
        /// The hash that it should have.
        expected: Sha256,
    },
    /// A registry said something that cannot be.
    #[error("{url}: cannot understand the answer: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository does not have what was asked for.
    #[error("{source_text} is not there: {reason}")]
    NotThere {
        /// The source.
        source_text: String,
        /// What is there.
        reason: String,
    },
    /// An archive does not have the member, or is none.
    #[error("cannot take {member} out of {archive}: {reason}")]
    Archive {
        /// The source that is the archive.
        archive: String,
        /// The member.
        member: String,
        /// Why.
        reason: String,
    },
    /// It was tried as often as is allowed.
    #[error("{last}; gave up after {tries} tries in a row, what came is kept")]
    GaveUp {
        /// How often.
        tries: u32,
        /// What happened the last time.
        last: Box<FetchError>,
    },
    /// Somebody asked for an end.
    #[error("the download was cancelled, what came is kept")]
    Cancelled,
    /// A thread of the download ended without a result.
    #[error("the download ended without a result, see the log of m40d")]
    Lost,
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl FetchError {
    /// Whether the same pull may do better later, without anything being changed for it.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::GaveUp { .. } => true,
            Self::Store(error) => matches!(**error, StoreError::NoSpace { .. }),
            other => other.is_passing(),
        }
    }

    /// Whether the same request may do better a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Stalled { .. } | Self::Ranges { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// Whether another origin of the same file may do better.
    pub(crate) fn is_the_origins(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::Redirect { .. }
            | Self::WebPage { .. }
            | Self::Size { .. } => true,
            other => other.is_passing(),
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the origin wants fewer requests.
    pub(crate) fn is_too_many(&self) -> bool {
        matches!(self, Self::Status { status: 429 | 503, .. })
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it needs a token, or one that may read this",
        404 | 410 => ": there is no such file",
        _ => "",
    }
}

/// A URL for people: without its query.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

pub(crate) fn size_error(url: &Url, expected_bytes: u64, found_bytes: u64) -> FetchError {
    FetchError::Size { url: shown(url), expected_bytes, found_bytes }
}

//! Why a text is no source.

/// Why a text is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing was given.
    #[error("the source is empty: give a URL, hf:org/repo/file.gguf, ollama:name or a path")]
    Empty,
    /// A text that is too long to be meant.
    #[error("the source is longer than {limit} bytes")]
    TooLong {
        /// Most bytes.
        limit: usize,
    },
    /// More pieces than anybody splits a file into.
    #[error("the source has more than {limit} parts")]
    TooManyParts {
        /// Most parts.
        limit: usize,
    },
    /// A line feed or the like.
    #[error("the source {text:?} has a control character in it")]
    ControlCharacter {
        /// The text, escaped.
        text: String,
    },
    /// One item of a list that holds two sources.
    #[error("the source {text:?} is several: make each part an item of the list of its own")]
    PlusInside {
        /// The text.
        text: String,
    },
    /// None of the known forms.
    #[error(
        "the source {text:?} is none that is known: it must begin with https://, http://, hf:, \
         ollama:, zip+ or /"
    )]
    Unknown {
        /// The text.
        text: String,
    },
    /// Not a URL.
    #[error("the source {text:?} is not a URL: {source}")]
    Url {
        /// The text.
        text: String,
        /// What is wrong with it.
        source: url::ParseError,
    },
    /// A secret in a place that is logged.
    #[error("the URL at {host} has a user or password in it: put a token for the host into a file")]
    Credentials {
        /// Whose password it is.
        host: String,
    },
    /// A URL with a part that is never sent.
    #[error("the URL {text:?} has a # in it: write %23 if it belongs to the name")]
    Fragment {
        /// The text.
        text: String,
    },
    /// A path that names no file.
    #[error("the source {text:?} is a folder: name a file in it")]
    Folder {
        /// The text.
        text: String,
    },
    /// Not a name at Hugging Face.
    #[error(
        "the source {text:?} is not hf:org/repo/file.gguf[@rev] or hf:org/repo:QUANT: {reason}"
    )]
    HuggingFace {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not a name of an Ollama registry.
    #[error("the source {text:?} is not ollama:[[host/]namespace/]name[:tag]: {reason}")]
    Ollama {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not a member of an archive.
    #[error("the source {text:?} is not zip+ARCHIVE!/member: {reason}")]
    Member {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

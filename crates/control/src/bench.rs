//! Requests, rows and events of benchmarks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ApiError, ModelRef};

/// Body of `POST /models/bench`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchRequest {
    /// What to measure; loaded when it is not.
    pub model: ModelRef,
    /// How often each figure is measured, 1 to 100; 5 by default.
    #[serde(default)]
    pub repeats: Option<u32>,
    /// Tokens of prompts, at most 16 numbers from 1; 512 by default.
    #[serde(default)]
    pub prompts: Option<Vec<u32>>,
    /// Tokens that each sequence is given, from 1; 128 by default.
    #[serde(default)]
    pub tokens: Option<u32>,
    /// Tokens that sequences hold before, at most 16 numbers; 0 and 4096 by default.
    #[serde(default)]
    pub depths: Option<Vec<u32>>,
    /// Sequences at a time, at most 16 numbers from 1 to 64; 1, 2, 4, 8, 16 and 32 by default.
    #[serde(default)]
    pub batches: Option<Vec<u32>>,
}

/// One line of the answer to `POST /models/bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BenchEvent {
    /// The model is in memory and is being measured.
    Loaded {
        /// Name of the model.
        model: String,
        /// What computes.
        device: String,
    },
    /// Something was measured.
    Row {
        /// The figures.
        row: BenchRow,
    },
    /// Something does not fit the model's context or its memory.
    LeftOut {
        /// What.
        #[serde(flatten)]
        what: BenchWhat,
        /// Why.
        why: String,
    },
    /// All is measured; the last line.
    Done,
    /// Measuring failed; the last line.
    Error {
        /// Why.
        error: ApiError,
    },
}

/// What kind of thing is measured. Prompts and tokens have the names that llama-bench gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BenchTest {
    /// A prompt is computed.
    Pp,
    /// Tokens are generated.
    Tg,
    /// Memory of the device is copied within it.
    Copy,
    /// All of the device waits for all of it.
    Barrier,
    /// Something else that only a newer daemon measures.
    #[serde(other)]
    Other,
}

impl BenchTest {
    /// The word for it; the same as on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pp => "pp",
            Self::Tg => "tg",
            Self::Copy => "copy",
            Self::Barrier => "barrier",
            Self::Other => "other",
        }
    }
}

/// What was measured. Its `Display` is llama-bench's: `pp512`, `tg128 @ d4096`, without the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchWhat {
    /// The kind.
    pub test: BenchTest,
    /// Tokens of the prompt, or generated of each sequence; nothing of a device has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// Sequences at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Tokens that each sequence holds before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
}

impl fmt::Display for BenchWhat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.test.name())?;
        if let Some(tokens) = self.tokens {
            write!(f, "{tokens}")?;
        }
        match self.depth {
            Some(depth @ 1..) => write!(f, " @ d{depth}"),
            _ => Ok(()),
        }
    }
}

/// A line of a benchmark's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// What was measured.
    #[serde(flatten)]
    pub what: BenchWhat,
    /// Unit of the figure: `tokens/s` of all sequences together, `GB/s` or `us`.
    pub unit: String,
    /// The figure, on average.
    pub mean: f64,
    /// Its least.
    pub min: f64,
    /// Its most.
    pub max: f64,
    /// Tokens a second of each sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_sequence: Option<f64>,
    /// Weights read, GB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_gb_per_s: Option<f64>,
    /// That as a share of what a copy moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_share: Option<f64>,
    /// Tokens a second, of all sequences, that are predicted for a Tesla M40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub m40_tokens_per_s: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(test: BenchTest, tokens: u32, batch: u32, depth: u32) -> BenchWhat {
        BenchWhat { test, tokens: Some(tokens), batch: Some(batch), depth: Some(depth) }
    }

    #[test]
    fn tests_have_the_names_that_llama_bench_gave_them() {
        assert_eq!(what(BenchTest::Pp, 512, 1, 0).to_string(), "pp512");
        assert_eq!(what(BenchTest::Tg, 128, 8, 4096).to_string(), "tg128 @ d4096");
        let copy = BenchWhat { test: BenchTest::Copy, tokens: None, batch: None, depth: None };
        assert_eq!(copy.to_string(), "copy");
    }

    #[test]
    fn a_row_is_flat_and_what_a_newer_daemon_measures_is_read() {
        let json = r#"{"event":"row","row":{"test":"tg","tokens":128,"batch":8,"depth":0,"unit":"tokens/s","mean":2.0,"min":1.0,"max":3.0}}"#;
        let event: BenchEvent = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        let BenchEvent::Row { row } = event else { panic!("{event:?}") };
        assert_eq!(row.what, what(BenchTest::Tg, 128, 8, 0));
        let newer = json.replace("\"tg\"", "\"ttft\"");
        let BenchEvent::Row { row } = serde_json::from_str(&newer).unwrap() else { panic!() };
        assert_eq!(row.what.test, BenchTest::Other);
    }
}

//! What a request may ask of the sampler, and the legal range of each field.

use thiserror::Error;

/// A bias at or below this bans the token outright, as clients of the OpenAI API expect of -100.
pub const BAN_BIAS: f32 = -100.0;
/// More biased tokens than this are refused: each costs time on every token.
pub const MAX_LOGIT_BIAS: usize = 4096;

/// How the next token is chosen. `Default` is the set most local runners start from: temperature
/// 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the draw; 0 takes the likeliest token. Legal: 0 to 100.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens until their probability reaches this; 1 keeps all, 0 keeps one.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al., 2022): keep the tokens whose surprise is nearest
    /// the expected surprise until their probability reaches this; 1 keeps all.
    pub typical_p: f32,
    /// Logits of tokens seen in the window are divided (if positive) or multiplied by this; 1 is
    /// off. Legal: above 0, to 100.
    pub repeat_penalty: f32,
    /// How many of the latest tokens the three penalties look at; 0 turns them off, `u32::MAX`
    /// looks at all.
    pub repeat_last_n: u32,
    /// Taken once from the logit of each token seen in the window. Legal: -100 to 100.
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time it was seen in the window. Legal: -100 to 100.
    pub frequency_penalty: f32,
    /// Fixes the draws. `None` lets the caller choose a seed; this crate never invents one.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens; -100 or less bans one. At most 4096 entries; biases of
    /// the same token add up. Ids outside the vocabulary have no effect.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// A sampling parameter that cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ParamError {
    /// A number outside its range, or not a number.
    #[error("{field} is {value}, but must be {legal}")]
    OutOfRange {
        /// The field's name, as clients write it.
        field: &'static str,
        /// What was asked for.
        value: f32,
        /// The legal values, in words.
        legal: &'static str,
    },
    /// A bias that is not a number.
    #[error("logit_bias of token {token} is {value}, but must be a number from -inf to 100")]
    Bias {
        /// The token the bias is for.
        token: u32,
        /// What was asked for.
        value: f32,
    },
    /// Too many biases.
    #[error("logit_bias names {count} tokens, but at most {MAX_LOGIT_BIAS} are allowed")]
    TooManyBiases {
        /// How many were given.
        count: usize,
    },
}

impl SamplingParams {
    /// Greedy decoding: temperature 0 and nothing else.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its legal range, with its value and that range.
    pub fn validate(&self) -> Result<(), ParamError> {
        let within = |field, value: f32, low: f32, high: f32, legal| {
            if value >= low && value <= high {
                Ok(())
            } else {
                Err(ParamError::OutOfRange { field, value, legal })
            }
        };
        within("temperature", self.temperature, 0.0, 100.0, "0 to 100")?;
        within("top_p", self.top_p, 0.0, 1.0, "0 to 1")?;
        within("min_p", self.min_p, 0.0, 1.0, "0 to 1")?;
        within("typical_p", self.typical_p, 0.0, 1.0, "0 to 1")?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0, "-100 to 100")?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "-100 to 100")?;
        let smallest = f32::MIN_POSITIVE;
        within("repeat_penalty", self.repeat_penalty, smallest, 100.0, "above 0, at most 100")?;
        self.validate_bias()
    }

    fn validate_bias(&self) -> Result<(), ParamError> {
        let count = self.logit_bias.len();
        if count > MAX_LOGIT_BIAS {
            return Err(ParamError::TooManyBiases { count });
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias > 100.0) {
            Some(&(token, value)) => Err(ParamError::Bias { token, value }),
            None => Ok(()),
        }
    }

    /// Whether any of the three penalties can change a logit.
    pub fn penalises(&self) -> bool {
        self.repeat_last_n > 0
            && (self.repeat_penalty != 1.0
                || self.presence_penalty != 0.0
                || self.frequency_penalty != 0.0)
    }

    /// The biases of tokens of a vocabulary of `vocab`, by ascending id and one a token; a ban is
    /// -inf, and stays so when added to.
    pub fn merged_bias(&self, vocab: usize) -> Vec<(u32, f32)> {
        let mut sorted: Vec<_> = self
            .logit_bias
            .iter()
            .filter(|(id, _)| (*id as usize) < vocab)
            .map(|&(id, bias)| (id, if bias <= BAN_BIAS { f32::NEG_INFINITY } else { bias }))
            .collect();
        sorted.sort_by_key(|(id, _)| *id);
        sorted.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 += later.1;
            }
            same
        });
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_greedy_are_legal() {
        assert_eq!(SamplingParams::default().validate(), Ok(()));
        assert_eq!(SamplingParams::greedy().validate(), Ok(()));
    }

    #[test]
    fn each_bad_field_is_named_with_its_value_and_range() {
        let check = |change: fn(&mut SamplingParams), message: &str| {
            let mut params = SamplingParams::default();
            change(&mut params);
            assert_eq!(params.validate().unwrap_err().to_string(), message);
        };
        check(|p| p.temperature = -0.5, "temperature is -0.5, but must be 0 to 100");
        check(|p| p.temperature = f32::NAN, "temperature is NaN, but must be 0 to 100");
        check(|p| p.top_p = 1.5, "top_p is 1.5, but must be 0 to 1");
        check(|p| p.min_p = -0.1, "min_p is -0.1, but must be 0 to 1");
        check(|p| p.typical_p = 2.0, "typical_p is 2, but must be 0 to 1");
        check(|p| p.repeat_penalty = 0.0, "repeat_penalty is 0, but must be above 0, at most 100");
        check(
            |p| p.presence_penalty = f32::INFINITY,
            "presence_penalty is inf, but must be -100 to 100",
        );
        check(
            |p| p.frequency_penalty = -101.0,
            "frequency_penalty is -101, but must be -100 to 100",
        );
        check(
            |p| p.logit_bias = vec![(3, 1.0), (7, f32::NAN)],
            "logit_bias of token 7 is NaN, but must be a number from -inf to 100",
        );
        check(
            |p| p.logit_bias = vec![(0, 0.0); MAX_LOGIT_BIAS + 1],
            "logit_bias names 4097 tokens, but at most 4096 are allowed",
        );
    }

    #[test]
    fn an_infinite_negative_bias_is_legal() {
        let params =
            SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..Default::default() };
        assert_eq!(params.validate(), Ok(()));
    }
}

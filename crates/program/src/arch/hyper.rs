//! Hyperparameters: typed, bounded reads of `{architecture}.*` metadata.

use std::fmt::Display;
use std::ops::RangeInclusive;

use m40_gguf::{Gguf, GgufError, TensorInfo, TensorType, Value, dequantize};

use super::{BuildError, BuildOptions};
use crate::op::MAX_HEAD_DIM;
use crate::program::{KvType, Pooling};
use crate::rope::{RopeScaling, RopeStyle, RopeTable};

/// Bounds no real model exceeds; they keep hostile metadata from asking for absurd memory.
const LAYERS: RangeInclusive<u32> = 1..=1024;
const WIDTH: RangeInclusive<u32> = 1..=1 << 18;
const HEADS: RangeInclusive<u32> = 1..=1024;
const HEAD_DIM: RangeInclusive<u32> = 2..=MAX_HEAD_DIM as u32;
const FEED_FORWARD: RangeInclusive<u32> = 1..=1 << 20;
const CONTEXT: RangeInclusive<u32> = 1..=1 << 26;

/// A GGUF without its byte type, as the families see it.
pub(super) trait Source {
    fn get(&self, key: &str) -> Option<Value<'_>>;
    fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError>;
    fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError>;
    fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError>;
    fn tensors(&self) -> &[TensorInfo];
    fn tensor_info(&self, name: &str) -> Option<&TensorInfo>;
    fn data(&self, info: &TensorInfo) -> &[u8];
}

impl<B: AsRef<[u8]>> Source for Gguf<B> {
    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.get(key)
    }
    fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get_u32(key)
    }
    fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get_f32(key)
    }
    fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get_str(key)
    }
    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }
    fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_info(name)
    }
    fn data(&self, info: &TensorInfo) -> &[u8] {
        self.tensor_data(info)
    }
}

/// What every family needs, read and bounded, and typed access to the rest.
pub(super) struct Hyper<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) architecture: String,
    pub(super) name: String,
    pub(super) layers: usize,
    pub(super) embedding: usize,
    /// Query heads of each layer.
    pub(super) heads: Vec<usize>,
    /// Key/value heads of each layer.
    pub(super) kv_heads: Vec<usize>,
    /// Hidden width of each layer's feed-forward block.
    pub(super) feed_forward: Vec<usize>,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// Added to the variance or mean square in all norms.
    pub(super) norm_eps: f32,
    pub(super) context_trained: u32,
    /// Tokens of context to be served.
    pub(super) context: u32,
    /// How keys and values are kept.
    pub(super) kv_type: KvType,
    /// How the file says that a text's vector is made.
    pub(super) pooling: Option<Pooling>,
}

impl<'a> Hyper<'a> {
    pub(super) fn read<B: AsRef<[u8]>>(
        gguf: &'a Gguf<B>,
        options: BuildOptions,
    ) -> Result<Self, BuildError> {
        let source: &dyn Source = gguf;
        let architecture = source
            .get_str("general.architecture")?
            .ok_or_else(|| BuildError::MissingKey { key: "general.architecture".into() })?
            .to_owned();
        let mut hyper = Self {
            source,
            name: source.get_str("general.name")?.unwrap_or_default().to_owned(),
            architecture,
            layers: 0,
            embedding: 0,
            heads: vec![],
            kv_heads: vec![],
            feed_forward: vec![],
            key_dim: 0,
            value_dim: 0,
            norm_eps: 0.0,
            context_trained: 0,
            context: 0,
            kv_type: options.kv_type,
            pooling: None,
        };
        let describe = super::describe(&hyper.architecture)?;
        hyper.read_sizes(options, describe.epsilon_key())?;
        hyper.pooling = hyper.read_pooling()?;
        Ok(hyper)
    }

    fn read_sizes(&mut self, options: BuildOptions, epsilon: &str) -> Result<(), BuildError> {
        self.layers = self.required("block_count", LAYERS)? as usize;
        self.embedding = self.required("embedding_length", WIDTH)? as usize;
        self.feed_forward = self.per_layer("feed_forward_length", FEED_FORWARD)?;
        self.heads = self.per_layer("attention.head_count", HEADS)?;
        self.kv_heads = match self.source.get(&self.key("attention.head_count_kv")) {
            Some(_) => self.per_layer("attention.head_count_kv", HEADS)?,
            None => self.heads.clone(),
        };
        for (heads, kv_heads) in self.heads.iter().zip(&self.kv_heads) {
            if !heads.is_multiple_of(*kv_heads) {
                let expected = format!("a divisor of the {heads} query heads");
                return Err(self.out_of_range("attention.head_count_kv", kv_heads, &expected));
            }
        }
        let default_dim = u32::try_from(self.embedding / self.heads[0]).unwrap_or(0);
        let dim = |key| -> Result<usize, BuildError> {
            let found = self.optional(key, HEAD_DIM)?.unwrap_or(default_dim);
            self.bounded(key, found, HEAD_DIM).map(|d| d as usize)
        };
        (self.key_dim, self.value_dim) =
            (dim("attention.key_length")?, dim("attention.value_length")?);
        self.norm_eps = self.required_f32(epsilon, 0.0..=0.1)?;
        self.context_trained = self.required("context_length", CONTEXT)?;
        self.context = options.context.unwrap_or(self.context_trained);
        Ok(())
    }

    /// GGUF numbers the ways; 0 is none.
    fn read_pooling(&self) -> Result<Option<Pooling>, BuildError> {
        Ok(match self.optional("pooling_type", 0..=4)? {
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            Some(4) => Some(Pooling::Rank),
            _ => None,
        })
    }

    /// `{architecture}.{suffix}`.
    pub(super) fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(super) fn out_of_range(
        &self,
        suffix: &str,
        value: impl Display,
        expected: &str,
    ) -> BuildError {
        let key = self.key(suffix);
        BuildError::OutOfRange { key, value: value.to_string(), expected: expected.into() }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> BuildError {
        let architecture = self.architecture.clone();
        BuildError::UnsupportedVariant { architecture, what: what.into() }
    }

    fn bounded(
        &self,
        suffix: &str,
        value: u32,
        range: RangeInclusive<u32>,
    ) -> Result<u32, BuildError> {
        if range.contains(&value) {
            return Ok(value);
        }
        let expected = format!("{} to {}", range.start(), range.end());
        Err(self.out_of_range(suffix, value, &expected))
    }

    fn required(&self, suffix: &str, range: RangeInclusive<u32>) -> Result<u32, BuildError> {
        self.optional(suffix, range)?
            .ok_or_else(|| BuildError::MissingKey { key: self.key(suffix) })
    }

    /// `None` when absent, an error when outside `range`.
    pub(super) fn optional(
        &self,
        suffix: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, BuildError> {
        let found = self.source.get_u32(&self.key(suffix))?;
        found.map(|v| self.bounded(suffix, v, range)).transpose()
    }

    fn required_f32(&self, suffix: &str, range: RangeInclusive<f32>) -> Result<f32, BuildError> {
        self.optional_f32(suffix, range)?
            .ok_or_else(|| BuildError::MissingKey { key: self.key(suffix) })
    }

    /// `None` when absent, an error when outside `range` or not a number.
    pub(super) fn optional_f32(
        &self,
        suffix: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, BuildError> {
        match self.source.get_f32(&self.key(suffix))? {
            Some(v) if !range.contains(&v) => {
                let expected = format!("{} to {}", range.start(), range.end());
                Err(self.out_of_range(suffix, v, &expected))
            }
            found => Ok(found),
        }
    }

    /// A value that files give once for all layers or as an array with one per layer.
    fn per_layer(
        &self,
        suffix: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Vec<usize>, BuildError> {
        let key = self.key(suffix);
        let Some(Value::Array(array)) = self.source.get(&key) else {
            let value = self.required(suffix, range)?;
            return Ok(vec![value as usize; self.layers]);
        };
        if array.len() as u64 != self.layers as u64 {
            let expected = format!("{} values, one per layer", self.layers);
            return Err(self.out_of_range(suffix, format!("{} values", array.len()), &expected));
        }
        let as_u32 = |value: Value<'_>| match value {
            Value::U32(v) => Some(v),
            Value::I32(v) => u32::try_from(v).ok(),
            _ => None,
        };
        let values = array.iter().map(|value| {
            let value = as_u32(value)
                .ok_or_else(|| self.out_of_range(suffix, "not integers", "integers"))?;
            self.bounded(suffix, value, range.clone()).map(|v| v as usize)
        });
        values.collect()
    }

    /// A tensor of plain floats, or `None` when the file has none of that name.
    pub(super) fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, BuildError> {
        let Some(info) = self.source.tensor_info(name) else { return Ok(None) };
        let mut out = vec![0.0; info.dims.cols() * info.dims.rows()];
        if info.ty != TensorType::F32 || info.dims.rows() != 1 {
            return Err(BuildError::TensorShape {
                tensor: name.into(),
                expected: "one row of f32".into(),
                found: format!("{} rows of {}", info.dims.rows(), info.ty.name()),
            });
        }
        dequantize(info.ty, self.source.data(info), &mut out)
            .map_err(|e| self.unsupported(format!("tensor {name}: {e}")))?;
        Ok(Some(out))
    }

    /// Floats of a head that are rotated.
    fn rope_dims(&self) -> Result<usize, BuildError> {
        let dims = self.optional("rope.dimension_count", HEAD_DIM)?;
        let dims = dims.map_or(self.key_dim, |d| d as usize);
        if dims > self.key_dim || !dims.is_multiple_of(2) {
            let expected = format!("an even number up to {}", self.key_dim);
            return Err(self.out_of_range("rope.dimension_count", dims, &expected));
        }
        Ok(dims)
    }

    /// The rotary table for base `base` and the given scaling.
    pub(super) fn rope_with(
        &self,
        style: RopeStyle,
        base: f32,
        scaling: &RopeScaling,
    ) -> Result<RopeTable, BuildError> {
        Ok(RopeTable::new(style, self.rope_dims()?, base, scaling))
    }

    /// The rotary table as the metadata and the factor tensors describe it.
    pub(super) fn rope(&self, style: RopeStyle) -> Result<RopeTable, BuildError> {
        self.rope_with(
            style,
            self.rope_base("rope.freq_base")?.unwrap_or(10_000.0),
            &self.scaling()?,
        )
    }

    /// A frequency base, if the file gives one under this key.
    pub(super) fn rope_base(&self, suffix: &str) -> Result<Option<f32>, BuildError> {
        self.optional_f32(suffix, 1.0..=1e12)
    }

    fn scaling(&self) -> Result<RopeScaling, BuildError> {
        const FACTOR: RangeInclusive<f32> = 1e-3..=1e6;
        let key = self.key("rope.scaling.type");
        let kind = self.source.get_str(&key)?;
        let factor = match self.optional_f32("rope.scaling.factor", 0.0..=1e6)? {
            Some(0.0) | None => self.optional_f32("rope.scale_linear", FACTOR)?.unwrap_or(1.0),
            Some(factor) => factor,
        };
        let attention_factor =
            self.optional_f32("rope.scaling.attn_factor", FACTOR)?.unwrap_or(1.0);
        let original_context = self.optional("rope.scaling.original_context_length", CONTEXT)?;

        if let Some(factors) = self.rope_factors(original_context)? {
            return Ok(RopeScaling::Factors { factors, attention_factor });
        }
        match kind {
            Some("none") => Ok(RopeScaling::None),
            // Files without a type but with a factor predate the type key and mean linear.
            None | Some("linear") if factor == 1.0 => Ok(RopeScaling::None),
            None | Some("linear") => Ok(RopeScaling::Linear { factor }),
            Some("yarn") => Ok(RopeScaling::Yarn {
                factor,
                original_context: original_context.unwrap_or(self.context_trained),
                beta_fast: self
                    .optional_f32("rope.scaling.yarn_beta_fast", FACTOR)?
                    .unwrap_or(32.0),
                beta_slow: self.optional_f32("rope.scaling.yarn_beta_slow", FACTOR)?.unwrap_or(1.0),
                attention_factor,
            }),
            Some("longrope") => {
                Err(BuildError::MissingTensor { tensor: "rope_factors_long.weight".into() })
            }
            Some(other) => Err(self.unsupported(format!("{key} = \"{other}\""))),
        }
    }

    /// Per-pair divisors: Llama 3.1's one tensor, or LongRoPE's two of which the served context
    /// chooses one.
    fn rope_factors(&self, original_context: Option<u32>) -> Result<Option<Vec<f32>>, BuildError> {
        let long = self.context > original_context.unwrap_or(self.context_trained);
        let name = if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        let (name, factors) = match self.floats(name)? {
            Some(factors) => (name, Some(factors)),
            None => ("rope_freqs.weight", self.floats("rope_freqs.weight")?),
        };
        let Some(factors) = factors else { return Ok(None) };
        let pairs = self.rope_dims()? / 2;
        if factors.len() != pairs {
            return Err(BuildError::TensorShape {
                tensor: name.into(),
                expected: format!("[{pairs}]"),
                found: format!("[{}]", factors.len()),
            });
        }
        match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
            Some(bad) => Err(self.unsupported(format!("a rotary factor of {bad} in {name}"))),
            None => Ok(Some(factors)),
        }
    }
}

//! The plain twins: what each op means, in as few words as possible, accumulated in f64.

use m40_program::{Activation, AttentionShape};

use super::attention::seen;
use crate::kv::{KvCache, PAGE_TOKENS};

/// See [`super::elementwise::rms_norm`].
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, add: bool, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let scale = 1.0 / (squares / width as f64 + f64::from(eps)).sqrt();
        for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
            let normed = (f64::from(*x) * scale * f64::from(*w)) as f32;
            *o = if add { *o + normed } else { normed };
        }
    }
}

/// See [`super::elementwise::layer_norm`].
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let mean = |sum: f64| sum / weight.len() as f64;
        let center = mean(x.iter().map(|v| f64::from(*v)).sum());
        let variance = mean(x.iter().map(|v| (f64::from(*v) - center).powi(2)).sum());
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
            *x = ((f64::from(*x) - center) * scale * f64::from(*w) + f64::from(*b)) as f32;
        }
    }
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
    }
}

/// See [`super::elementwise::activate`].
pub(crate) fn activate(activation: Activation, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = activated(activation, f64::from(*x)) as f32);
}

/// See [`super::elementwise::gate`].
pub(crate) fn gate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = (activated(activation, f64::from(*g)) * f64::from(*u)) as f32;
    }
}

/// See [`super::elementwise::softcap`].
pub(crate) fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// See [`super::attention::Attention`]; one row. `q`: `[heads, key_dim]`, `out`: `[heads, value_dim]`;
/// `sinks`: `[heads]`, or empty.
pub(crate) fn attention(
    shape: &AttentionShape,
    sinks: &[f32],
    (cache, layer): (&KvCache, usize),
    position: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let seen = seen(shape, cache, position);
    let group = shape.heads / shape.kv_heads;
    let heads = q.chunks_exact(shape.key_dim).zip(out.chunks_exact_mut(shape.value_dim));
    for (head, (q, out)) in heads.enumerate() {
        let kv_head = head / group;
        let score = |t: usize| {
            let keys = cache.keys(layer, t / PAGE_TOKENS, kv_head);
            let token = t % PAGE_TOKENS;
            let key = (0..q.len()).map(|d| keys.number(d * PAGE_TOKENS + token, token));
            let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
            let score = dot * f64::from(shape.scale);
            shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = seen.clone().map(score).collect();
        let sink = sinks.get(head).map_or(f64::NEG_INFINITY, |sink| f64::from(*sink));
        let max = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total = weights.iter().sum::<f64>() + (sink - max).exp();
        for (d, out) in out.iter_mut().enumerate() {
            let value = |t: usize| {
                let values = cache.values(layer, t / PAGE_TOKENS, kv_head);
                let token = t % PAGE_TOKENS;
                values.number(token * shape.value_dim + d, token)
            };
            let sum: f64 = seen.clone().zip(&weights).map(|(t, w)| w * value(t)).sum();
            *out = (sum / total) as f32;
        }
    }
}

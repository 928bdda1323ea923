//! Norms of rows, gates and softcaps.

use m40_testkit::gguf::Noise;

use crate::emulator::{Launch, floats, run};
use crate::{close, gains, gathered, spread};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Norm {
    Plain,
    InPlace,
    Residual,
    ResidualInPlace,
    /// out is x, and the residual another buffer.
    ResidualOverX,
}

#[test]
fn rms_norms_agree_with_f64_in_place_and_with_residuals() {
    let mut launches = vec![];
    let mut expected = vec![];
    for (seed, (rows, cols, threads)) in
        [(1, 1, 32), (3, 31, 32), (2, 64, 64), (5, 65, 96), (4, 577, 256), (1, 4099, 256)]
            .into_iter()
            .enumerate()
    {
        for norm in
            [Norm::Plain, Norm::InPlace, Norm::Residual, Norm::ResidualInPlace, Norm::ResidualOverX]
        {
            let mut noise = Noise::new(seed as u64);
            let deviation = [1.0, 1e-4, 300.0][seed % 3];
            let x = noise.normals(rows * cols, deviation);
            let (gain, residual) = (gains(&mut noise, cols), noise.normals(rows * cols, 2.0));
            let (eps, stride) = (1e-5, cols + 2);
            let wide = |x: &[f32]| spread(x, cols, stride);
            let adds = !matches!(norm, Norm::Plain | Norm::InPlace);
            let launch = Launch::new("rows_rms_norm", rows, threads, 0);
            let launch = match norm {
                Norm::InPlace | Norm::ResidualOverX => launch.write_floats(&wide(&x)),
                _ => launch.read_floats(&wide(&x)),
            };
            let launch = launch.number(stride).read_floats(&gain).float(eps).number(cols);
            let launch = match norm {
                Norm::Residual | Norm::ResidualOverX => launch.read_floats(&wide(&residual)),
                Norm::ResidualInPlace => launch.write_floats(&wide(&residual)),
                _ => launch.unused(),
            };
            let launch = launch.number(stride).number(usize::from(adds));
            let launch = match norm {
                Norm::InPlace | Norm::ResidualOverX => launch.same_as(0),
                Norm::ResidualInPlace => launch.same_as(5),
                _ => launch.write_floats(&vec![f32::NAN; rows * stride]),
            };
            launches.push(launch.number(stride));
            let mut out = vec![];
            for (x, residual) in x.chunks(cols).zip(residual.chunks(cols)) {
                let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
                let scale = 1.0 / (squares / cols as f64 + f64::from(eps)).sqrt();
                for ((x, gain), residual) in x.iter().zip(&gain).zip(residual) {
                    let add = if adds { f64::from(*residual) } else { 0.0 };
                    out.push(f64::from(*x) * scale * f64::from(*gain) + add);
                }
            }
            expected.push((format!("{norm:?} of {rows}x{cols}"), cols, stride, out));
        }
    }
    let Some(outputs) = run("norm", &launches) else { return };
    for (output, (what, cols, stride, expected)) in outputs.iter().zip(expected) {
        close(&what, &gathered(&floats(&output[0]), cols, stride), &expected, 1e-6);
    }
}

const EXTREMES: [f32; 9] = [-3e38, -1e4, -90.0, -0.0, 0.0, 90.0, 1e4, 3e38, 1e-40];

/// Some of each size, and the extremes.
fn wide_range(noise: &mut Noise, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..n).map(|i| noise.normal() * [0.01, 1.0, 10.0][i % 3]).collect();
    let known = EXTREMES.len().min(n / 2);
    x[..known].copy_from_slice(&EXTREMES[..known]);
    x
}

#[test]
fn softcaps_agree_with_f64_and_bound_what_is_huge() {
    let mut launches = vec![];
    let mut expected = vec![];
    for (rows, cols, parts, cap) in
        [(1, 1, 1, 30.0f32), (3, 65, 2, 50.0), (2, 257, 4, 5.0), (40, 33, 1, 30.0)]
    {
        let x = wide_range(&mut Noise::new(cols as u64), rows * cols);
        launches.push(
            Launch::new("rows_softcap", rows * parts, 32, 0)
                .write_floats(&spread(&x, cols, cols + 1))
                .number(cols + 1)
                .number(rows)
                .number(cols)
                .float(cap),
        );
        let cap = f64::from(cap);
        let capped = x.iter().map(|v| cap * (f64::from(*v) / cap).tanh()).collect::<Vec<_>>();
        expected.push((format!("{rows}x{cols} at {cap}"), cols, capped));
    }
    let Some(outputs) = run("softcap", &launches) else { return };
    for (output, (what, cols, expected)) in outputs.iter().zip(expected) {
        close(&what, &gathered(&floats(&output[0]), cols, cols + 1), &expected, 5e-7);
    }
}

#[test]
fn gates_agree_with_f64_and_stay_finite() {
    const SILU: usize = 1;
    const GELU_TANH: usize = 2;
    let mut launches = vec![];
    let mut expected = vec![];
    for (rows, cols, parts) in [(1, 1, 1), (3, 65, 2), (2, 257, 4), (40, 33, 1)] {
        for activation in [SILU, GELU_TANH] {
            for over in [None, Some(0), Some(2)] {
                let mut noise = Noise::new((cols + activation) as u64);
                let gate = wide_range(&mut noise, rows * cols);
                let mut up = noise.normals(rows * cols, 1.0);
                up[..EXTREMES.len().min(rows * cols)].fill(0.5);
                let launch = Launch::new("rows_gate", rows * parts, 64, 0);
                let (gate_wide, up_wide) = (spread(&gate, cols, cols + 1), spread(&up, cols, cols));
                let launch = match over {
                    Some(0) => launch.write_floats(&gate_wide),
                    _ => launch.read_floats(&gate_wide),
                };
                let launch = launch.number(cols + 1);
                let launch = match over {
                    Some(2) => launch.write_floats(&up_wide),
                    _ => launch.read_floats(&up_wide),
                };
                let launch = launch.number(cols).number(rows).number(cols).number(activation);
                let (launch, stride) = match over {
                    Some(0) => (launch.same_as(0), cols + 1),
                    Some(_) => (launch.same_as(2), cols),
                    None => (launch.write_floats(&vec![f32::NAN; rows * (cols + 3)]), cols + 3),
                };
                launches.push(launch.number(stride));
                let activate = |x: f64| match activation {
                    SILU => x / (1.0 + (-x).exp()),
                    _ => {
                        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                        0.5 * x * (1.0 + z.tanh())
                    }
                };
                let out =
                    gate.iter().zip(&up).map(|(g, u)| activate(f64::from(*g)) * f64::from(*u));
                let what = format!("activation {activation} of {rows}x{cols} over {over:?}");
                expected.push((what, cols, stride, out.collect::<Vec<f64>>()));
            }
        }
    }
    let Some(outputs) = run("gate", &launches) else { return };
    for (output, (what, cols, stride, expected)) in outputs.iter().zip(expected) {
        let found = gathered(&floats(&output[0]), cols, stride);
        assert!(found.iter().all(|v| v.is_finite()), "{what}: {found:?}");
        close(&what, &found, &expected, 2e-6);
    }
}

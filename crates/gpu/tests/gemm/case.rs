//! One launch: its input as kernels/emulate/gemm.cpp reads it, and what must come of it.

use m40_gguf::{TensorType, dequantize};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

/// The bytes that memory has before anything is written to it.
pub(crate) const UNTOUCHED: [u8; 4] = [0xff; 4];

/// The bound of results with a soft cap.
const CAP: f32 = 1.5;

/// The flags of kernels/gemm.cuh.
const BIAS: u32 = 1;
const RESIDUAL: u32 = 2;
const SILU: u32 = 4;
const GELU: u32 = 8;
const SOFTCAP: u32 = 16;
const IN_PLACE: u32 = 32;

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Rows of a tile.
    pub(crate) tile: usize,
    /// Rows of x.
    pub(crate) m: usize,
    /// Rows of the weights.
    pub(crate) rows: usize,
    /// Groups of 32 columns; of types whose blocks have 256 columns, as many blocks as hold these.
    pub(crate) groups: usize,
    /// Columns that plain numbers have less than that.
    pub(crate) cut: usize,
    /// Floats between rows of x, rounded up to whole quads, and of y.
    pub(crate) x_gap: usize,
    pub(crate) y_gap: usize,
    /// Parts of the columns.
    pub(crate) splits: usize,
}

/// What becomes of the products.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Epilogue {
    Plain,
    Bias,
    Residual,
    BiasAndResidualInPlace,
    Silu,
    SiluInPlace,
    Gelu,
    Softcap,
    BiasAndSoftcap,
}

impl Epilogue {
    fn flags(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Bias => BIAS,
            Self::Residual => RESIDUAL,
            Self::BiasAndResidualInPlace => BIAS | RESIDUAL | IN_PLACE,
            Self::Silu => SILU,
            Self::SiluInPlace => SILU | IN_PLACE,
            Self::Gelu => GELU,
            Self::Softcap => SOFTCAP,
            Self::BiasAndSoftcap => BIAS | SOFTCAP,
        }
    }
}

/// A launch.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) input: Vec<u8>,
    /// What y of each matrix should be, and the size that errors are a share of; `None` between rows.
    pub(crate) expected: Vec<Option<(f64, f64)>>,
    /// Whether results went through functions that the card approximates.
    pub(crate) rounds_more: bool,
}

impl Case {
    /// `matrices`: of weights, one or two.
    pub(crate) fn new(
        ty: TensorType,
        kernel: &str,
        size: Size,
        matrices: usize,
        epilogue: Epilogue,
    ) -> Self {
        let Size { tile, m, rows, groups, cut, x_gap, y_gap, splits } = size;
        let cols = match ty.block_len() {
            1 => groups * 32 - cut,
            256 => groups.div_ceil(8) * 256,
            _ => groups * 32,
        };
        let (x_stride, y_stride) = ((cols + x_gap).next_multiple_of(4), rows + y_gap);
        let flags = epilogue.flags();
        let layout = Layout::of(ty, rows, cols).expect("the type has a layout");
        let mut noise = Noise::new((rows * cols + m) as u64);
        let mut planes = vec![0; matrices * layout.bytes()];
        let mut weights = vec![0.0; matrices * rows * cols];
        for (planes, weights) in
            planes.chunks_exact_mut(layout.bytes()).zip(weights.chunks_exact_mut(rows * cols))
        {
            let data = quantize(ty, &noise.normals(rows * cols, 0.05));
            repack(&layout, &data, planes).expect("the lengths agree");
            dequantize(ty, &data, weights).expect("the lengths agree");
        }
        // Between the rows of x lies what no result may contain.
        let mut x = vec![f32::NAN; m * x_stride];
        for row in x.chunks_exact_mut(x_stride) {
            row[..cols].copy_from_slice(&noise.normals(cols, 1.0));
        }
        let bias = noise.normals(rows, 0.5);
        let mut other = vec![f32::from_le_bytes(UNTOUCHED); m * y_stride];
        for row in other.chunks_exact_mut(y_stride) {
            row[..rows].copy_from_slice(&noise.normals(rows, 1.5));
        }

        let mut expected = Vec::new();
        for weights in weights.chunks_exact(rows * cols) {
            for (row, column) in (0..m).flat_map(|row| (0..y_stride).map(move |c| (row, c))) {
                expected.push((column < rows).then(|| {
                    let terms = weights[column * cols..][..cols].iter().zip(&x[row * x_stride..]);
                    let terms = terms.map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (sum, size) =
                        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let other = f64::from(other[row * y_stride + column]);
                    finish(flags, sum, size, f64::from(bias[column]), other)
                }));
            }
        }

        let mut input = format!(
            "{kernel}_m{tile} {tile} {m} {rows} {cols} {x_stride} {y_stride} {splits} \
             {matrices} {flags} {CAP} {} {} {} {} {}\n",
            layout.bytes(),
            layout.plane(Role::High).offset,
            layout.plane(Role::Scales).offset,
            layout.plane(Role::ScaleTops).offset,
            layout.plane(Role::Supers).offset,
        )
        .into_bytes();
        input.extend(&planes);
        for values in [&x, &bias, &other] {
            input.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let name = format!(
            "{kernel}_m{tile}, {matrices} of {rows}x{cols}, {m} rows, {splits} splits, {epilogue:?}"
        );
        Self { name, input, expected, rounds_more: flags & (SILU | GELU | SOFTCAP) != 0 }
    }
}

/// What becomes of a sum, and what its error is a share of.
fn finish(flags: u32, sum: f64, size: f64, bias: f64, other: f64) -> (f64, f64) {
    let (mut value, mut size) = (sum, size);
    if flags & BIAS != 0 {
        (value, size) = (value + bias, size + bias.abs());
    }
    if flags & RESIDUAL != 0 {
        (value, size) = (value + other, size + other.abs());
    }
    if flags & SILU != 0 {
        let gate = other / (1.0 + (-other).exp());
        (value, size) = (value * gate, size * gate.abs());
    }
    if flags & GELU != 0 {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (other + 0.044715 * other.powi(3));
        let gate = 0.5 * other * (1.0 + inner.tanh());
        (value, size) = (value * gate, size * gate.abs());
    }
    if flags & SOFTCAP != 0 {
        let cap = f64::from(CAP);
        (value, size) = (cap * (value / cap).tanh(), size + cap);
    }
    (value, size)
}

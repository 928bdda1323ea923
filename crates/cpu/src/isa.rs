//! Which instruction sets the matrix kernels may use.

use std::fmt;
use thiserror::Error;

/// An instruction set level the kernels are compiled for. All are in every x86-64 binary, and one
/// is chosen at run time; elsewhere there is only [`Isa::Scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, whatever the compiler makes of it.
    Scalar,
    /// AVX2, FMA and F16C (Haswell and Zen or newer).
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI on top of [`Isa::Avx2`] (Ice Lake and Zen 4 or newer).
    Avx512Vnni,
}

/// This CPU cannot run the requested instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this cpu has no {wanted}: the best it can run is {best}")]
pub struct UnsupportedIsa {
    /// What was asked for.
    pub wanted: Isa,
    /// What [`Isa::detect`] gives on this CPU.
    pub best: Isa,
}

impl Isa {
    /// The best level this CPU and its operating system support.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f")
                && has!("avx512bw")
                && has!("avx512dq")
                && has!("avx512vl")
                && has!("avx512vnni");
            match (avx2, avx512) {
                (true, true) => return Self::Avx512Vnni,
                (true, false) => return Self::Avx2,
                _ => {}
            }
        }
        Self::Scalar
    }

    /// Every level this CPU supports, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        [Self::Scalar, Self::Avx2, Self::Avx512Vnni].into_iter().filter(move |isa| *isa <= best)
    }

    /// As in `m40ctl status` and bench tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_the_last_available_one() {
        assert_eq!(Isa::available().last(), Some(Isa::detect()));
        assert_eq!(Isa::available().next(), Some(Isa::Scalar));
    }
}

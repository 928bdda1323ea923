//! Proof that a device computes, before a model is trusted to it.

use std::num::Wrapping;

use crate::arena::Arena;
use crate::device::Device;
use crate::element::ElementType::U32;
use crate::error::CudaError;
use crate::kernel::{Param, Signature};
use crate::staging::StagingRing;

/// kernels/probe.cu.
const PROBE: Signature = Signature {
    name: "m40_probe",
    params: &[Param::Read(U32), Param::Scalar(U32), Param::Write(U32)],
};

/// Threads a block of `m40_probe`, a constant of its source.
const THREADS: u32 = 256;

/// Words of the test's buffer: 4 MiB, more than any second-level cache of the M40's time, so that
/// memory itself is read.
const WORDS: usize = 1 << 20;

/// What the kernel `m40_probe` makes of `words`: the sum over i of `mix(words[i] ^ mix(i))`, modulo
/// 2^32, `mix` being a 32-bit finaliser in which every bit of the input reaches every bit.
pub fn checksum(words: &[u32]) -> u32 {
    let shares = words.iter().zip(0u32..).map(|(word, i)| Wrapping(mix(word ^ mix(i))));
    shares.sum::<Wrapping<u32>>().0
}

fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

impl Device {
    /// Copies 4 MiB there, has a kernel make a checksum of them, copies it back and compares. Uses
    /// a part of `arena` for the time being, and takes some milliseconds.
    pub fn self_test(&self, arena: &Arena) -> Result<(), CudaError> {
        let mut ring = StagingRing::new(self, 1 << 20)?;
        let mut words = arena.allocate::<u32>(WORDS)?;
        let sent: Vec<u32> =
            (0u32..).take(WORDS).map(|i| mix(i.wrapping_add(0x6d34_3064))).collect();
        ring.write(words.all_mut(), &sent)?;
        let found = self.checksum(arena, &mut ring, &words)?;
        let expected = checksum(&sent);
        if found != expected {
            let device = self.info().name.clone();
            return Err(CudaError::WrongResult { device, expected, found });
        }
        Ok(())
    }

    /// [`checksum`] of a buffer, made by the device after what is enqueued in the ring's stream.
    /// Waits for the result.
    pub fn checksum(
        &self,
        arena: &Arena,
        ring: &mut StagingRing,
        words: &crate::DeviceSlice<u32>,
    ) -> Result<u32, CudaError> {
        let kernel = self.kernel(&PROBE)?;
        let mut sum = arena.allocate::<u32>(1)?;
        ring.write(sum.all_mut(), &[0])?;
        let len = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let blocks = kernel.resident_blocks(THREADS, 0)?.max(1);
        kernel
            .launch([blocks, 1, 1], [THREADS, 1, 1])
            .read(words.all(), len as usize)
            .scalar(len)
            .write(sum.all_mut(), 1)
            .on(ring.stream())?;
        let mut result = [0];
        ring.read(sum.all(), &mut result)?;
        Ok(result[0])
    }
}

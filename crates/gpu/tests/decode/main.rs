//! Decode passes without a GPU: kernels compiled for the host (kernels/emulate), with sanitizers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod attention;
mod bench;
mod card;
mod choosing;
mod half;
mod model;
mod observe;
mod passes;
mod products;
mod prompt;
mod resident;
mod structures;
mod wide;

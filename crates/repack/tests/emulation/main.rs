//! Kernels compiled for the host (kernels/emulate), with sanitizers.

mod emulator;

//! The store through its public interface: real files, real sockets, real processes.

mod crash;
mod download;
mod faults;
mod local;
mod registries;
mod support;

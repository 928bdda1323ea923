//! What the store asks of the machine around it, so that tests can have another.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

/// Time, chance and the disk.
pub trait Host: fmt::Debug + Send + Sync {
    /// A clock that never goes back.
    fn now(&self) -> Instant;

    /// The time of day.
    fn today(&self) -> SystemTime;

    /// Waits.
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// A number from 0 to below 1, any of them as likely.
    fn chance(&self) -> f64;

    /// Bytes that may still be written to the file system of this path.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Writes all of these bytes.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// The machine that this runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Host for Machine {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn today(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(time))
    }

    fn chance(&self) -> f64 {
        fastrand::f64()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let figures = rustix::fs::statvfs(path)?;
        Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

//! One function per op, each for a slice of rows, on vectors of any width.
//!
//! Results for a row never depend on the other rows of a pass, on the number of threads or on how
//! rows are split between them. [`oracle`] holds the plain twins that tests and the oracle mode
//! compare with.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod oracle;
pub(crate) mod rope;

//! `libm40llm`: the engine for programs in C, and in all languages that call C.
//!
//! `include/m40llm.h` is made of these files by cbindgen (`make reference`), so what is documented here
//! is what C programmers read. The rules of the interface:
//!
//! * A function that can fail returns a status, and says more in [`m40llm_last_error`], for the thread
//!   that called it. What it hands out it writes through its last pointers, and only when it succeeds.
//! * Structs begin with their size, which the caller sets (an `_init` function does): a caller that was
//!   compiled for an older version of a struct, which was shorter, keeps working.
//! * Handles are made by `_new` or `_load` and freed by `_free`, which takes NULL too. A model may be freed
//!   while sessions of it live; memory goes with the last of them.
//! * Handles may be used by several threads at a time; two generations of one session are refused.
//! * Nothing unwinds into the caller: a panic is `M40LLM_STATUS_INTERNAL`.
#![deny(unsafe_code)]
#![expect(clippy::missing_safety_doc, reason = "the rules above are those of all functions")]
#![expect(non_camel_case_types, reason = "types are named as in C")]

mod boundary;
mod engine;
mod model;
mod session;

pub use boundary::*;
pub use engine::*;
pub use model::*;
pub use session::*;

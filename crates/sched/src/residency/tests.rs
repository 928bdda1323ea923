//! The scheduler in a simulated world, which holds it to its rules after every step.

mod decisions;
mod kv;
mod places;
mod properties;
mod traces;
mod world;

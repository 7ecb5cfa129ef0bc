//! A real container engine, and images made here: for the benchmark and the tests of containers.

pub mod engine;
pub mod image;
pub mod registry;
pub mod yard;

//! cli
pub mod demo;
pub mod demo_app;

//! The doors, opened for real and used by real clients.

mod broker;
mod http;
mod mqtt;
mod support;

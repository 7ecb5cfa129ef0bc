//! Containers end to end: a real engine, real hub and agent, images from scratch. Every step is a command that a release
//! engineer could type, unless a file says otherwise.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may end a test

mod full_disk;
mod hostile;
mod lifecycle;
mod limits;
mod models;
mod registry;
mod replicas;
mod warm;

use tokio::sync::Mutex;

/// Several engines at once are more than two cores carry in time.
static ONE_ENGINE: Mutex<()> = Mutex::const_new(());

//! The container images of `images/` at work, in a real engine and a network of their own: the sample application as
//! a release, and the fleet of `compose.yaml`. They are built as a reader of `images/README.md` builds them, but of
//! this build's programs, and on images that Debian's packages make here, since no registry is asked.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may end a test

mod compose;
mod house;
mod sample;

use tokio::sync::Mutex;

/// Two engines at once are more than two cores carry in time; and both want the same images.
static ONE: Mutex<()> = Mutex::const_new(());

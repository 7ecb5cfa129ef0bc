//! A canary that crashes, end to end: real hub, real agents, real commands.

#![allow(clippy::unwrap_used)] // all of it is a test

use cloudcore::stage;
use sim::bench::waves::{WavesArgs, play};

#[tokio::test]
async fn a_canary_that_crashes_is_all_that_sees_the_release() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // as the program does
    play(&WavesArgs { nodes: 12, json: false }, stage::programs().await.unwrap()).await.unwrap();
}

//! `crossdock demo`: the main job on one machine, with the programs that ship.
//!
//! A hub and three agents run as processes of their own on loopback in a temporary folder. The demo
//! drives them through the same command line that a release engineer uses, prints each command, and
//! times each scene. It ends with exit code 0 only when every scene showed what it must.

mod scenes;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::time::Instant;

use crate::stage::{self, Stage};

/// `crossdock demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave everything running, and say how to look at it and how to end it.
    #[arg(long)]
    keep: bool,
    /// Folder to work in instead of a temporary one. It must not exist or be empty.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One line of the summary.
struct Scene {
    what: &'static str,
    saw: String,
    took: Duration,
}

/// Runs the demo.
///
/// # Errors
/// The first scene that did not show what it must, with where to read on.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let programs = stage::programs().await?;
    let started = Instant::now();
    let mut stage = Stage::open(args.dir, programs, true)?;
    println!("working in {}", stage.path("").display());
    let outcome = play(&mut stage).await;
    match outcome {
        Ok(scenes) => {
            print_summary(&scenes, started.elapsed());
            if args.keep {
                stage.leave_running();
            } else {
                let folder = stage.path("");
                stage.close().await?;
                match folder.exists() {
                    true => println!("\nEverything was stopped; the files are in {}.", folder.display()),
                    false => println!("\nEverything was stopped and removed."),
                }
                println!("To look around in it: crossdock demo --keep");
            }
            Ok(())
        }
        Err(error) => {
            stage.print_logs();
            let folder = stage.keep_folder();
            stage.close().await?;
            Err(error)
                .with_context(|| format!("the demo did not show what it must; its files are in {}", folder.display()))
        }
    }
}

async fn play(stage: &mut Stage) -> anyhow::Result<Vec<Scene>> {
    let mut scenes = vec![];
    macro_rules! scene {
        ($what:literal, $scene:ident) => {{
            println!("\n== {}", $what);
            let before = Instant::now();
            let saw = scenes::$scene(stage).await.context($what)?;
            println!("   saw: {saw}");
            scenes.push(Scene { what: $what, saw, took: before.elapsed() });
        }};
    }
    scene!("a hub starts", hub_starts);
    scene!("a release engineer makes keys and a signed repository", repository);
    scene!("three boxes join and connect", nodes_join);
    scene!("release 1.0.0 reaches every node", first_release);
    scene!("release 2.0.0 replaces it", upgrade);
    scene!("tampered metadata is not published", tampered_metadata);
    scene!("a tampered artifact is refused by the nodes", tampered_artifact);
    scene!("a release that crashes is reverted", crashing_release);
    scene!("scans are counted while a line is cut", scans_over_a_cut_line);
    Ok(scenes)
}

fn print_summary(scenes: &[Scene], total: Duration) {
    println!("\nSummary");
    for scene in scenes {
        println!("  {:>6.2} s  {:<55} {}", scene.took.as_secs_f64(), scene.what, scene.saw);
    }
    println!("  {:>6.2} s  in all", total.as_secs_f64());
}

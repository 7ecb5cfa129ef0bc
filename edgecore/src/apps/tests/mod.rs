//! An app against a fake driver: cut between any two steps, rebooted, damaged, cut off, and always right.
//!
//! The world keeps what a crash keeps: the disk, and the workloads unless the box itself went down. A
//! [`World::crash`](world::World::crash) drops the agent's side only. Releases are real trees, fetched and
//! verified by the code that ships; the driver itself verifies each tree that it is told to run.
//!
//! | module | what it holds |
//! |---|---|
//! | [`fakes`] | driver and stage that only pretend, and the versions they know |
//! | [`world`] | the box around one app, and what must hold between any two steps |
//! | [`updates`] | releases that come, go back and are removed |
//! | [`orders`] | hold, restart, retry, drain |
//! | [`hooks`] | hooks of a release: asked, put off, failed |
//! | [`blame`] | what was unhealthy before the update does not blame it |
//! | [`files`] | releases of which nothing runs, and the way to their files |
//! | [`warm`] | a new release beside the old one, and no gap between them |
//! | [`fleet`] | a box with several apps, of which some use the files of others |
//! | [`models`] | files of one app that others use: proved by them, or taken back |
//! | [`gpus`] | releases that need GPUs |
//! | [`rooms`] | releases that ask for memory and processors |
//! | [`metrics`] | what a workload tells of itself, and what ran before told |
//! | [`replicas`] | as many instances as a reported number asks for |
//! | [`secrets`] | a second instance of a release, and the secrets of the first |
//! | [`cuts`] | crashes and reboots between any two steps; the property over everything |
//! | [`disk`] | damage, a lost slot, a full disk, litter |

mod blame;
mod cuts;
mod disk;
mod fakes;
mod files;
mod fleet;
mod gpus;
mod hooks;
mod metrics;
mod models;
mod orders;
mod replicas;
mod rooms;
mod secrets;
mod updates;
mod warm;
mod world;

use std::time::Duration;

const APP: &str = "web";
/// Long enough for any trial, back-off and retry to end.
const LONG: Duration = Duration::from_secs(900);

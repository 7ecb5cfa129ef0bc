//! Crossdock's simulator and benchmarks.
//!
//! Real hub and real agents in one process: virtual time, an in-memory network, wall clocks that may be
//! wrong, workloads that only pretend. Everything random is drawn from one seed, one stream a purpose,
//! so the same seed gives the same trace.
//!
//! | module | what it holds |
//! |---|---|
//! | [`net`] | lines between hosts: delay, loss, duplication, reordering, bandwidth, partitions |
//! | [`clock`] | quinn's runtime on tokio's paused clock, and each host's wall clock |
//! | [`trace`] | what happened, line by line, and the digest of it |
//! | [`disk`] | power cuts that lose what was not synced, and full disks |
//! | [`driver`] | workloads that run, crash or hang as their release says |
//! | [`ledger`] | what producers were promised, compared with what the sink holds |
//! | [`world`] | a hub and its agents, their disks, crashes and restarts |
//! | [`fault`] | what can be broken on purpose, and whom it strikes |
//! | [`gpu`] | GPUs that only pretend |
//! | [`plan`] | a whole run as plain data, read from a scenario file or drawn by the swarm |
//! | [`run`] | plays a plan on a world |
//! | [`oracle`] | what must always hold, seen from the outside |
//! | [`record`] | what became of a run |
//! | [`report`] | a run as text and as a page |
//! | [`scenario`] | scenarios by name, `sim run`, and how to write an own scenario file |
//! | [`swarm`] | random plans, and the smallest that fails |
//! | [`asking`] | a client that asks a workload all the time, in end-to-end tests |
//! | [`seeds`] | seeds on the command line |
//! | [`load`] | many light agents against a real hub |
//! | [`produce`] | a parcel scanner that hands its scans to an agent, or replays a file |
//! | [`bench`] | measurements of the shipped binaries over real sockets |

pub mod asking;
pub mod bench;
pub mod clock;
pub mod containers;
pub mod disk;
pub mod driver;
pub mod fault;
pub mod gpu;
pub mod ledger;
pub mod load;
pub mod net;
pub mod oracle;
pub mod plan;
pub mod produce;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod seeds;
pub mod swarm;
pub mod trace;
pub mod world;

//! An app on a node as its agent reports it: which release it is to run, how far it is, and what runs now.

use jiff::Timestamp;

use super::WorkloadMetrics;
use crate::{digest::Digest, name::Version};

data! {
    /// An app on a node as its agent reports it.
    pub struct WorkloadStatus {
        /// What the assignment wants; absent when the app is being removed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub target: Option<ReleaseRef>,
        /// How far the way to the target is.
        pub phase: UpdatePhase,
        /// Why it stands there: one word for programs. Empty when there is nothing to say.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// The same for people, with what to do.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
        /// When `phase` last changed, by the node's clock.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub since: Timestamp,
        /// Progress of a download.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub progress: Option<Progress>,
        /// [`AppOrder::restart`](super::AppOrder::restart) that was carried out last: the workload runs again and
        /// proved healthy for its soak time, unless `restart_failed` says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub restarted: Option<String>,
        /// Why the workload was not healthy by its deadline after `restarted`, for people; absent when it was.
        /// `phase` is about the update only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub restart_failed: Option<String>,
        /// [`AppOrder::retry`](super::AppOrder::retry) that was carried out last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub retried: Option<String>,
        /// What runs now, whatever the target is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub running: Option<Running>,
        /// How many instances of it run; absent where its release runs one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub replicas: Option<ReplicaStatus>,
        /// What it told of itself, while [`AppOrder::metrics`](super::AppOrder::metrics) asks for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub metrics: Option<WorkloadMetrics>,
    }

    /// A release by name and digest.
    #[derive(Eq)]
    pub struct ReleaseRef {
        /// Version.
        pub version: Version,
        /// Digest of the manifest.
        pub digest: Digest,
    }

    /// Bytes done of bytes to do.
    #[derive(Eq, Copy)]
    pub struct Progress {
        /// Done.
        pub done_bytes: u64,
        /// To do in all.
        pub total_bytes: u64,
    }

    /// What runs of an app on a node.
    pub struct Running {
        /// Which release.
        pub release: ReleaseRef,
        /// How it is.
        pub state: RunState,
        /// Whether its readiness probe (or, without one, mere running) says yes.
        pub ready: bool,
        /// Restarts since this release was started.
        pub restarts: u32,
        /// When the current process started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
        /// How the last one ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last_exit: Option<LastExit>,
    }

    /// How many instances of a workload run, and why so many. The names are those of HorizontalPodAutoscaler.
    #[derive(Eq)]
    pub struct ReplicaStatus {
        /// How many run, the app's ordinary instance among them.
        pub current_replicas: u32,
        /// How many of them are ready.
        pub ready_replicas: u32,
        /// How many are to run.
        pub desired_replicas: u32,
        /// At least so many are to run.
        pub min_replicas: u32,
        /// At most so many are to run.
        pub max_replicas: u32,
        /// The arithmetic, as of the last change, and what keeps replicas from running; for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
    }

    /// How the last process of a workload ended.
    pub struct LastExit {
        /// Exit code, when it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub code: Option<i32>,
        /// Signal, when it was killed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub signal: Option<i32>,
        /// When.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub at: Timestamp,
        /// One sentence for people, such as the last line of its output.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub message: String,
    }
}

words! {
    /// How far a node is on its way to the target release of an app.
    pub enum UpdatePhase {
        /// Nothing done yet.
        Pending,
        /// Waits for the node to return.
        Deferred,
        /// Fetches metadata and artifacts.
        Downloading,
        /// All verified and on disk.
        Staged,
        /// Stops the old one, starts the new one.
        Applying,
        /// The new one is on trial.
        Verifying,
        /// The new one proved healthy.
        Succeeded,
        /// It failed, and there was nothing to go back to.
        Failed,
        /// It failed, and the release before runs again.
        RolledBack,
        /// Something outside must change first (disk, verification, hardware), or the word is newer than this program.
        #[serde(other)]
        Blocked,
    }

    /// How a workload is.
    pub enum RunState {
        /// Started, and its startup probe has not succeeded yet.
        Starting,
        /// Runs.
        Running,
        /// Ended, and waits to be started again.
        BackOff,
        /// Ended, and its restart policy leaves it so.
        Exited,
        /// Stopped on purpose, or the word is newer than this program.
        #[serde(other)]
        Stopped,
    }
}

impl WorkloadStatus {
    /// An app of which nothing runs, and that stands there since then.
    #[must_use]
    pub fn new(target: Option<ReleaseRef>, phase: UpdatePhase, since: Timestamp) -> WorkloadStatus {
        WorkloadStatus {
            target,
            phase,
            reason: String::new(),
            message: String::new(),
            since,
            progress: None,
            restarted: None,
            restart_failed: None,
            retried: None,
            running: None,
            replicas: None,
            metrics: None,
        }
    }
}

impl UpdatePhase {
    /// Whether it is over, for better or worse.
    #[must_use]
    pub fn is_decided(self) -> bool {
        matches!(self, UpdatePhase::Succeeded | UpdatePhase::Failed | UpdatePhase::RolledBack)
    }
}

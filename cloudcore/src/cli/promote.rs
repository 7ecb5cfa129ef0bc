//! `crossdock release promote`: brings a release that one hub serves to another hub. Why, what comes along and what
//! is refused: [`crate::release::promote`].
//!
//! Content goes straight from hub to hub, by digest and only what is not there yet, so a promotion that broke off
//! goes on when it is simply started again. The metadata goes last: until then the target hub offers what it did.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use proto::{
    digest::{Digest, Hasher},
    link::message::MetadataRequest,
    name::ReleaseName,
    release::{MAX_MANIFEST_BYTES, Manifest},
    tuf::{RoleName, Target},
};
use serde_json::{Value, json};

use super::{
    client::Client,
    contexts,
    exit::{CliError, Exit},
    output::{self, Format},
};
use crate::{
    bounded,
    release::promote::{Allowed, Plan, PromoteError, names, plan},
};

/// Transfers at the same time.
const TRANSFERS: usize = 4;

/// `crossdock release promote`.
#[derive(Debug, clap::Args)]
pub struct PromoteArgs {
    /// APP@VERSION
    release: ReleaseName,
    /// Context of the hub that has it, such as sandbox
    #[arg(long, value_name = "CONTEXT")]
    from: String,
    /// Context of the hub that gets it, such as production
    #[arg(long, value_name = "CONTEXT")]
    to: String,
    /// First root of the repository (metadata/1.root.json), for a target hub that trusts nobody yet.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Also withdraw releases from the target that the source no longer lists.
    #[arg(long)]
    withdraw: bool,
    /// Check everything and show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// json or yaml instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Blobs that had to be sent, and their bytes.
    pub(crate) sent: u64,
    pub(crate) sent_bytes: u64,
    /// Blobs that were there.
    pub(crate) present: u64,
}

/// Runs the command.
///
/// # Errors
/// What was attempted, what is wrong, how to mend it.
pub async fn run(args: PromoteArgs, now: Timestamp) -> anyhow::Result<()> {
    let (from, to) = (contexts::client(Some(&args.from))?, contexts::client(Some(&args.to))?);
    if from.server() == to.server() {
        let text = format!("contexts {} and {} are the same hub, {}; name two", args.from, args.to, to.server());
        return Err(CliError::new(Exit::Usage, text).into());
    }
    let limit = RoleName::Root.limit_bytes() as u64;
    let read = |path: &PathBuf| bounded::read_file(path, limit).with_context(|| format!("read {}", path.display()));
    let root = args.root.as_ref().map(read).transpose()?;
    let allowed = Allowed { first_root: root.as_deref(), withdraw: args.withdraw };
    let (plan, copied) = promote(&args.release, &from, &to, allowed, args.dry_run, now).await?;
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => {
            output::structured(format, &described(&args.release, &from, &to, &plan, copied.as_ref()))
        }
        _ => {
            print(&args.release, &to, &plan, copied.as_ref());
            Ok(())
        }
    }
}

/// Plans, and does it unless this is a rehearsal.
pub(crate) async fn promote(
    release: &ReleaseName,
    from: &Client,
    to: &Client,
    allowed: Allowed<'_>,
    rehearsal: bool,
    now: Timestamp,
) -> anyhow::Result<(Plan, Option<Copied>)> {
    let attempt = format!("could not promote {release} from {} to {}", from.server(), to.server());
    let everything = MetadataRequest::default();
    let (source, target) = tokio::try_join!(from.metadata(&everything), to.metadata(&everything))?;
    let plan = plan(release, &source, &target, allowed, now).map_err(|error| {
        let exit = if matches!(error, PromoteError::NotListed(..)) { Exit::NotFound } else { Exit::Refused };
        CliError::new(exit, format!("{attempt}: {error}"))
    })?;
    if rehearsal {
        return Ok((plan, None));
    }
    let copied = copy(&plan.needed, from, to).await.with_context(|| {
        format!("{attempt}; the target hub offers what it did before, and what was copied stays: run the same again to go on")
    })?;
    to.publish(&plan.reply).await.with_context(|| format!("{attempt}, although all of its content is there"))?;
    Ok((plan, Some(copied)))
}

/// Copies what the target lacks of all these releases.
async fn copy(needed: &BTreeMap<ReleaseName, Target>, from: &Client, to: &Client) -> anyhow::Result<Copied> {
    let mut wanted: BTreeMap<Digest, (u64, &ReleaseName)> = BTreeMap::new();
    for (release, target) in needed {
        let manifest = manifest(from, release, target).await?;
        wanted.insert(target.digest, (target.length, release));
        wanted.extend(manifest.content().map(|(digest, size)| (digest, (size, release))));
    }
    let all: u64 = wanted.values().map(|(size, _)| *size).fold(0, u64::saturating_add);
    let progress = Progress::new(wanted.len() as u64, all);
    let transfers = stream::iter(&wanted).map(|(digest, (size, release))| {
        let progress = &progress;
        async move { transfer(from, to, digest, *size, progress).await.map(|sent| (sent, *size, *release)) }
    });
    let mut copied = Copied::default();
    let mut transfers = std::pin::pin!(transfers.buffer_unordered(TRANSFERS));
    while let Some((sent, bytes, release)) = transfers.try_next().await? {
        if sent {
            copied.sent += 1;
            copied.sent_bytes += bytes;
        } else {
            copied.present += 1;
            progress.passed(bytes);
        }
        progress.line(release, &copied);
    }
    progress.end();
    Ok(copied)
}

/// The manifest of a release, as it was signed.
async fn manifest(from: &Client, release: &ReleaseName, target: &Target) -> anyhow::Result<Manifest> {
    let limit = target.length.min(MAX_MANIFEST_BYTES);
    let fault = Fault::default();
    let content = from.blob(&target.digest).await?.bytes_stream().map_err(io::Error::other);
    let checked = verified(content, target.digest, limit, Arc::clone(&fault), Arc::default());
    let bytes = checked
        .try_fold(vec![], async |mut all, part| {
            all.extend_from_slice(&part);
            Ok(all)
        })
        .await
        .with_context(|| format!("read the manifest of {release} from {}", from.server()))?;
    Ok(Manifest::parse(&bytes, release)?)
}

/// Copies one blob unless it is there; whether it was sent.
async fn transfer(from: &Client, to: &Client, digest: &Digest, size: u64, progress: &Progress) -> anyhow::Result<bool> {
    if to.has_blob(digest).await? {
        return Ok(false);
    }
    let content = from.blob(digest).await?.bytes_stream().map_err(io::Error::other);
    let fault = Fault::default();
    let checked = verified(content, *digest, size, Arc::clone(&fault), Arc::clone(&progress.bytes));
    let body = reqwest::Body::wrap_stream(checked);
    let attempt = format!("upload {digest}");
    let mut sending = std::pin::pin!(to.put_content(&attempt, digest, size, body));
    let sent = loop {
        tokio::select! { biased;
            sent = &mut sending => break sent,
            () = tokio::time::sleep(REDRAW) => progress.draw(),
        }
    };
    match (sent, fault.get()) {
        (Ok(()), _) => Ok(true),
        // The target saw no more than a body that broke off: what is wrong is at the source.
        (Err(_), Some(fault)) => {
            Err(CliError::new(Exit::Failed, format!("could not download from {}: {fault}", from.server())).into())
        }
        (Err(error), None) => Err(error),
    }
}

/// What was wrong with content on its way, once it is known.
type Fault = Arc<OnceLock<String>>;

/// Passes content on while it is what it should be: never more than `size` bytes, and the last of them only when the
/// digest agrees. `counter` rises with the bytes.
fn verified(
    content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    digest: Digest,
    size: u64,
    fault: Fault,
    counter: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let wrong = move |text: String| {
        let _ = fault.set(text.clone()); // the first stands
        io::Error::other(text)
    };
    let state = (Box::pin(content), Hasher::default(), 0_u64, wrong);
    stream::try_unfold(state, move |(mut content, mut hasher, mut seen, wrong)| {
        let counter = Arc::clone(&counter);
        async move {
            let Some(part) = content.next().await else {
                if seen == size {
                    return Ok(None); // its digest was looked at before the last bytes were passed on
                }
                return Err(wrong(format!("{digest} ended after {seen} of {size} bytes")));
            };
            let part = part.map_err(|e| wrong(format!("{digest} broke off ({e})")))?;
            seen = seen.saturating_add(part.len() as u64);
            if seen > size {
                return Err(wrong(format!("{digest} is longer than the {size} bytes that were signed")));
            }
            hasher.update(&part);
            if seen == size && hasher.clone().finish().0 != digest {
                return Err(wrong(format!("{digest} has other content there; publish its release to that hub again")));
            }
            counter.fetch_add(part.len() as u64, Ordering::Relaxed);
            Ok(Some((part, (content, hasher, seen, wrong))))
        }
    })
}

/// How often a bar is drawn while a large file passes.
const REDRAW: std::time::Duration = std::time::Duration::from_millis(200);

/// A bar where a person looks, a line every tenth of the way in a pipeline; both on standard error.
struct Progress {
    bar: ProgressBar,
    blobs: u64,
    all_bytes: u64,
    /// Bytes that passed.
    bytes: Arc<AtomicU64>,
    /// Tenths that were told.
    told: AtomicU64,
}

impl Progress {
    fn new(blobs: u64, all_bytes: u64) -> Progress {
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("copying {wide_bar} {bytes}/{total_bytes} {eta}");
            ProgressBar::new(all_bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        Progress { bar, blobs, all_bytes, bytes: Arc::default(), told: AtomicU64::new(0) }
    }

    /// Counts what was there.
    fn passed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn draw(&self) {
        self.bar.set_position(self.bytes.load(Ordering::Relaxed));
    }

    fn line(&self, release: &ReleaseName, copied: &Copied) {
        self.draw();
        let bytes = self.bytes.load(Ordering::Relaxed);
        let tenths = bytes.saturating_mul(10).checked_div(self.all_bytes).unwrap_or(10);
        if self.bar.is_hidden() && self.told.fetch_max(tenths, Ordering::Relaxed) < tenths {
            let (done, blobs, all) = (copied.sent + copied.present, self.blobs, self.all_bytes);
            eprintln!("copied {}0%: {done} of {blobs} blobs, {bytes} of {all} bytes, at {release}", tenths.min(10));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn print(release: &ReleaseName, to: &Client, plan: &Plan, copied: Option<&Copied>) {
    let done = if copied.is_some() { "promoted" } else { "would promote" };
    println!("{done} {release} (manifest {}) to {}", plan.target.digest.short(), to.server());
    let (before, after) = (plan.before, plan.after);
    for (role, before, after) in [
        ("root", before.root, after.root),
        ("targets", before.targets, after.targets),
        ("timestamp", before.timestamp, after.timestamp),
    ] {
        println!("  {role:<9} {before} -> {after}");
    }
    if let Some(copied) = copied {
        println!("  {} blobs ({} bytes) copied, {} were there", copied.sent, copied.sent_bytes, copied.present);
    }
    if !plan.along.is_empty() {
        println!("  comes along, as the same metadata lists it: {}", names(&plan.along));
    }
    if !plan.withdrawn.is_empty() {
        println!("  withdrawn there: {}", names(&plan.withdrawn));
    }
    if let Some(expires) = plan.expires {
        println!("  the first of its documents expires {expires}: publish to the source and promote again before");
    }
}

fn described(release: &ReleaseName, from: &Client, to: &Client, plan: &Plan, copied: Option<&Copied>) -> Value {
    let texts = |names: &[ReleaseName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "apiVersion": proto::API_VERSION,
        "kind": "Promotion",
        "release": release.to_string(),
        "digest": plan.target.digest,
        "releaseCounter": plan.target.custom.release_counter,
        "from": {"server": from.server()},
        "to": {"server": to.server(), "before": plan.before, "after": plan.after},
        "copied": copied.map(|c| json!({"blobs": c.sent, "bytes": c.sent_bytes, "present": c.present})),
        "along": texts(&plan.along),
        "withdrawn": texts(&plan.withdrawn),
        "expires": plan.expires,
    })
}

#[cfg(test)]
mod tests;

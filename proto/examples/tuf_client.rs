//! A TUF client over our core, with the command line that the public suite `tuf-conformance` drives. How to run it:
//! `proto/tests/conformance.sh`. Only for that: it speaks plain HTTP to this machine.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use data_encoding::HEXLOWER;
use proto::{
    env::{SystemClock, WallClock as _},
    tuf::{Documents, MAX_ROOTS, TrustedSet, schema::MetaFile},
};

/// Largest answer, in bytes.
const MAX_BYTES: u64 = 16 << 20;

type Outcome<T> = Result<T, String>;

#[derive(Default)]
struct Args {
    metadata_dir: PathBuf,
    metadata_url: String,
    target_names: Vec<String>,
    target_base_url: String,
    target_dir: PathBuf,
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let (mut args, mut words) = (Args::default(), std::env::args().skip(1));
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--metadata-dir" => args.metadata_dir = value()?.into(),
            "--metadata-url" => args.metadata_url = value()?,
            "--target-name" => args.target_names.push(value()?),
            "--target-base-url" => args.target_base_url = value()?,
            "--target-dir" => args.target_dir = value()?.into(),
            _ => args.command.push(word),
        }
    }
    match args.command.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["init", root] => {
            let text = fs::read_to_string(root).map_err(|e| format!("could not read {root}: {e}"))?;
            write(&args.metadata_dir.join("root.json"), text.as_bytes())
        }
        ["refresh"] => refresh(&args).map(drop),
        ["download"] => {
            let set = refresh(&args)?;
            args.target_names.iter().try_for_each(|name| download(&args, &set, name))
        }
        other => Err(format!("{other:?} is no command; there are init ROOT, refresh, download")),
    }
}

/// The client workflow; every step that succeeds is kept.
fn refresh(args: &Args) -> Outcome<TrustedSet> {
    let now = SystemClock.now();
    let read = |role: &str| fs::read_to_string(args.metadata_dir.join(format!("{role}.json"))).ok();
    let documents = Documents {
        root: read("root").ok_or("there is no root.json; run init")?,
        timestamp: read("timestamp"),
        snapshot: read("snapshot"),
        targets: read("targets"),
    };
    let refused = |e: proto::tuf::TufError| e.to_string();
    let mut set = TrustedSet::restore(&documents).map_err(refused)?;
    for _ in 0..MAX_ROOTS {
        let Some(text) = metadata(args, &format!("{}.root", set.versions().root + 1))? else { break };
        set = set.step_root(&text).map_err(refused)?;
        keep(args, &set)?;
    }
    set = set.step_roots_done(now).map_err(refused)?;
    let text = metadata(args, "timestamp")?.ok_or("there is no timestamp.json")?;
    set = set.step_timestamp(&text, now).map_err(refused)?;
    keep(args, &set)?;
    let consistent = set.root().consistent_snapshot;
    let name = |version: u64, role: &str| if consistent { format!("{version}.{role}") } else { role.to_owned() };
    set = match set.step_snapshot(None, now) {
        Ok(set) => set,
        Err(_) => {
            let text = metadata(args, &name(set.announced().0, "snapshot"))?.ok_or("there is no snapshot.json")?;
            set.step_snapshot(Some(&text), now).map_err(refused)?
        }
    };
    keep(args, &set)?;
    set = match set.step_targets(None, now) {
        Ok(set) => set,
        Err(_) => {
            let text = metadata(args, &name(set.announced().1, "targets"))?.ok_or("there is no targets.json")?;
            set.step_targets(Some(&text), now).map_err(refused)?
        }
    };
    keep(args, &set)?;
    Ok(set)
}

fn download(args: &Args, set: &TrustedSet, name: &str) -> Outcome<()> {
    let meta = set.targets_meta().ok_or("there are no targets")?;
    let target = meta.targets.get(name).ok_or_else(|| format!("{name} is not listed"))?;
    let file = MetaFile { version: 1, length: Some(target.length), hashes: Some(target.hashes.clone()) };
    let path = args.target_dir.join(HEXLOWER.encode(name.as_bytes()));
    if fs::read_to_string(&path).is_ok_and(|text| file.check(&text).is_ok()) {
        return Ok(());
    }
    let hash = target.hashes.values().next().ok_or_else(|| format!("{name} has no digest"))?;
    let located = match (set.root().consistent_snapshot, name.rsplit_once('/')) {
        (false, _) => name.to_owned(),
        (true, Some((folder, file))) => format!("{folder}/{hash}.{file}"),
        (true, None) => format!("{hash}.{name}"),
    };
    let text = get(&format!("{}/{}", args.target_base_url.trim_end_matches('/'), escaped(&located)))?;
    let text = text.ok_or_else(|| format!("{name} is not there"))?;
    file.check(&text).map_err(|problem| format!("{name} {problem}"))?;
    write(&path, text.as_bytes())
}

/// Writes what is trusted, and removes what is no longer.
fn keep(args: &Args, set: &TrustedSet) -> Outcome<()> {
    let documents = set.documents();
    let files = [
        ("root", Some(documents.root)),
        ("timestamp", documents.timestamp),
        ("snapshot", documents.snapshot),
        ("targets", documents.targets),
    ];
    for (role, text) in files {
        let path = args.metadata_dir.join(format!("{role}.json"));
        match text {
            Some(text) => write(&path, text.as_bytes())?,
            None if path.exists() => {
                fs::remove_file(&path).map_err(|e| format!("could not remove {}: {e}", path.display()))?
            }
            None => {}
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    fs::write(path, bytes).map_err(|e| format!("could not write {}: {e}", path.display()))
}

fn metadata(args: &Args, name: &str) -> Outcome<Option<String>> {
    get(&format!("{}/{}.json", args.metadata_url.trim_end_matches('/'), escaped(name)))
}

/// `None` for what is not there.
fn get(url: &str) -> Outcome<Option<String>> {
    let failed = |e: std::io::Error| format!("could not get {url}: {e}");
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} is not http://"))?;
    let (host, path) = rest.split_once('/').ok_or_else(|| format!("{url} has no path"))?;
    let mut stream = TcpStream::connect(host).map_err(failed)?;
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = vec![];
    stream.take(MAX_BYTES).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8(answer).map_err(|e| format!("{url} is no text: {e}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{url}: no answer of HTTP"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(Some(body.to_owned())),
        Some("404" | "403") => Ok(None),
        other => Err(format!("{url}: status {other:?}")),
    }
}

/// Characters that a path of a URL cannot hold.
fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

//! `crossdock secret list`: what is sealed to whom, such as to a box that is lost.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use proto::{
    name::{Name, ReleaseName},
    secret::{self, SealedTo},
};
use serde_json::json;

use super::read_bytes;
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{self, Format},
        release::failed,
    },
    release::{
        Repository,
        secrets::{is_for, listed, names},
    },
};

/// Most files that are looked at in folders.
const MAX_FILES: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Releases (APP@VERSION) of the repository, sealed files, or folders with such (*.age). Default: all releases.
    what: Vec<String>,
    /// What is sealed to this node alone, such as one that is lost: these are to be made anew.
    #[arg(long)]
    node: Option<Name>,
    /// json or yaml instead of columns.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// One secret.
struct Row {
    /// Release or file.
    at: String,
    app: String,
    name: String,
    to: Vec<SealedTo>,
}

/// Reads a file that must be sealed.
pub(super) fn read_sealed(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = read_bytes(path)?;
    secret::inspect(&bytes).with_context(|| path.display().to_string())?;
    Ok(bytes)
}

pub(super) fn run(repo: &Path, args: &ListArgs) -> anyhow::Result<()> {
    let mut rows = vec![];
    let (files, releases): (Vec<&String>, Vec<&String>) =
        args.what.iter().partition(|what| Path::new(what).exists() || !what.contains('@'));
    for path in files {
        of_path(Path::new(path), &mut rows)?;
    }
    if !releases.is_empty() || args.what.is_empty() {
        let wanted = releases.iter().map(|release| release.parse()).collect::<Result<Vec<ReleaseName>, _>>()?;
        of_releases(repo, &wanted, &mut rows)?;
    }
    rows.retain(|row| args.node.as_ref().is_none_or(|node| is_for(&row.to, node.as_str())));
    if let Some(format @ (Format::Json | Format::Yaml)) = args.output {
        let item = |row: &Row| json!({"at": row.at, "app": row.app, "name": row.name, "sealedTo": row.to});
        return output::structured(format, &json!({"items": rows.iter().map(item).collect::<Vec<_>>()}));
    }
    if rows.is_empty() {
        let whom = args.node.as_ref().map(|node| format!(" that is sealed to {node}")).unwrap_or_default();
        eprintln!("No secret{whom} found.");
        return Ok(());
    }
    let mut table = vec![["AT", "APP", "SECRET", "SEALED TO"].map(str::to_owned).to_vec()];
    table.extend(rows.into_iter().map(|row| vec![row.at, row.app, row.name, names(&row.to)]));
    output::print(&output::align(&table));
    Ok(())
}

fn of_releases(repo: &Path, wanted: &[ReleaseName], rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let listed = Repository::open(repo).and_then(|repository| listed(&repository)).map_err(failed)?;
    if let Some(missing) = wanted.iter().find(|release| !listed.contains_key(*release)) {
        let text = format!("{missing} is not in {}; crossdock release verify lists what is", repo.display());
        return Err(CliError::new(Exit::NotFound, text).into());
    }
    for (release, secrets) in listed.into_iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        let (at, app) = (release.to_string(), release.app.to_string());
        rows.extend(secrets.into_iter().map(|secret| {
            let (at, app) = (at.clone(), app.clone());
            Row { at, app, name: secret.name, to: secret.sealed_to }
        }));
    }
    Ok(())
}

/// A sealed file, or all below a folder.
fn of_path(path: &Path, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut left = vec![path.to_owned()];
    let mut files: Vec<PathBuf> = vec![];
    while let Some(path) = left.pop() {
        let what = || format!("could not read {}", path.display());
        if !fs::metadata(&path).with_context(what)?.is_dir() {
            files.push(path);
            continue;
        }
        for entry in fs::read_dir(&path).with_context(what)? {
            let entry = entry.with_context(what)?;
            // Links are followed nowhere: they could lead round.
            let kind = entry.file_type().with_context(what)?;
            if kind.is_dir() || kind.is_file() && entry.path().extension().is_some_and(|ext| ext == "age") {
                left.push(entry.path());
            }
        }
        if files.len() + left.len() > MAX_FILES {
            let text = format!("{} has more than {MAX_FILES} files and folders; name a smaller one", path.display());
            return Err(CliError::new(Exit::Usage, text).into());
        }
    }
    files.sort();
    for path in files {
        let bytes = read_bytes(&path)?;
        let sealed = secret::inspect(&bytes).with_context(|| path.display().to_string())?;
        let (app, name) = sealed.of.unwrap_or_default();
        rows.push(Row { at: path.display().to_string(), app, name, to: sealed.to });
    }
    Ok(())
}

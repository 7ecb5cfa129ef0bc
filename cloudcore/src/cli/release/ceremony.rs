//! `crossdock release sign`, `export` and `import`: several people sign one change, each on their own machine.

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
};

use super::{SignArgs, failed, show_staged};
use crate::{
    cli::{
        exit::{CliError, Exit},
        passphrase::person_is_here,
    },
    release::{ReleaseError, Repository, bundle::Bundle, ceremony, keys, staging::Staged},
};
use proto::tuf::{Signer, key::short};

/// Shows what is staged, asks where a person can answer, and signs.
pub(super) fn sign(repo: &Path, args: &SignArgs) -> anyhow::Result<()> {
    let repository = Repository::open(repo).map_err(failed)?;
    let shown = show_staged(&repository).map_err(failed)?;
    let nothing = shown.root.is_none() && shown.targets.is_none();
    if !nothing && !args.yes && person_is_here() && !confirm(&shown)? {
        return Err(CliError::new(Exit::Refused, "nothing was signed, as you said").into());
    }
    sign_shown(&repository, &shown, args).map_err(failed)
}

fn sign_shown(repository: &Repository, shown: &Staged, args: &SignArgs) -> Result<(), ReleaseError> {
    let mut ask = args.passphrase.source()?;
    let signers: Vec<Box<dyn Signer>> = match args.keys.as_slice() {
        [] => keys::own(repository, &mut ask)?.into_iter().map(|key| Box::new(key) as Box<dyn Signer>).collect(),
        refs => refs.iter().map(|key| key.signer(&mut ask)).collect::<Result<_, _>>()?,
    };
    for document in repository.sign_shown(shown, &signers)? {
        let (role, tally) = (document.role, &document.tally);
        println!("{role} version {}: {} of {} signatures", document.version, tally.valid, tally.needed);
        for (ids, what) in [(&tally.unknown, "unknown key"), (&tally.bad, "WRONG SIGNATURE of key")] {
            ids.iter().for_each(|id| println!("  {what} {}", short(id)));
        }
    }
    show_next(repository)
}

/// Only the whole word counts: a tired finger on the return key signs nothing.
fn confirm(shown: &Staged) -> anyhow::Result<bool> {
    let versions = [
        ("root", shown.root.as_ref().map(|o| o.signed.version)),
        ("targets", shown.targets.as_ref().map(|o| o.signed.version)),
    ];
    let what: Vec<String> =
        versions.iter().filter_map(|(role, version)| Some(format!("{role} version {}", (*version)?))).collect();
    eprint!("Sign {}, as shown? Type yes: ", what.join(" and "));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Each threshold, who met it, and who still can.
pub(super) fn show_quorums(repository: &Repository) -> Result<(), ReleaseError> {
    ceremony::quorums(repository)?.iter().for_each(|quorum| println!("{}", quorum.text()));
    Ok(())
}

/// Whose turn it is.
pub(in crate::cli) fn show_next(repository: &Repository) -> Result<(), ReleaseError> {
    show_quorums(repository)?;
    let open = ceremony::quorums(repository)?.iter().any(|quorum| quorum.missing() > 0);
    let folder = repository.dir().display();
    println!(
        "{}",
        match (open, repository.has_releases()?) {
            (true, _) => format!(
                "next: those people run `crossdock release sign --repo {folder} --key KEY`; on another machine: `crossdock release export FILE` here, `crossdock release import FILE` there, sign, and the same way back"
            ),
            (false, true) => "next: crossdock release publish".into(),
            (false, false) => format!("next: crossdock root finish --repo {folder}"),
        }
    );
    Ok(())
}

pub(super) fn export(repo: &Path, file: &Path) -> Result<(), ReleaseError> {
    let repository = Repository::open(repo)?;
    repository.export()?.write(file)?;
    println!("wrote {}; there: crossdock release import {0} --repo FOLDER", file.display());
    show_quorums(&repository)
}

pub(super) fn import(repo: &Path, file: &Path) -> Result<(), ReleaseError> {
    let bundle = Bundle::read(file)?;
    let (repository, imported) = if repo.join("metadata").is_dir() {
        let repository = Repository::open(repo)?;
        let imported = repository.import(&bundle)?;
        (repository, imported)
    } else {
        Repository::begin(repo, &bundle)?
    };
    if let Some(digest) = imported.began_with {
        println!(
            "{} trusts this repository from now on. Its first root is {}: compare that with another holder's (sha256sum metadata/1.root.json) before you sign",
            repo.display(),
            digest.hex()
        );
    }
    if imported.caught_up {
        println!("what is published was taken up too");
    }
    match (imported.staged, imported.signatures) {
        (0, 0) => println!("nothing in it is new here"),
        (staged, signatures) => println!("took up {staged} staged documents and {signatures} signatures"),
    }
    if imported.ignored > 0 {
        println!("{} signatures were left out: wrong, or of keys that may not sign this", imported.ignored);
    }
    show_staged(&repository)?;
    show_next(&repository)
}

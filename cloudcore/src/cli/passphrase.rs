//! Passphrases of key files: from a file or a variable where no person is, else from the terminal, without echo.
//! Never from the command line, which others on the machine can read.

use std::{
    collections::BTreeSet,
    fs::File,
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use clap::Args;
use zeroize::Zeroizing;

use super::hidden;
use crate::{
    bounded,
    release::{
        ReleaseError,
        keys::{AskPassphrase, Nobody},
        sealed::Secret,
    },
};

/// Variable that holds a passphrase.
pub const VARIABLE: &str = "CROSSDOCK_PASSPHRASE";
/// Variable that holds a new one.
pub const NEW_VARIABLE: &str = "CROSSDOCK_NEW_PASSPHRASE";
/// Longest passphrase, in bytes.
const MAX_BYTES: u64 = 4 << 10;
/// Shortest new one, in characters.
const MIN_CHARS: usize = 8;
/// How often a person may mistype.
const TRIES: usize = 3;

/// Options of every command that opens key files.
#[derive(Debug, Clone, Default, Args)]
pub struct PassphraseArgs {
    /// File with the passphrase of the key files, where no person is asked; /dev/fd/3 for a descriptor. Without it:
    /// $CROSSDOCK_PASSPHRASE, else a question on the terminal.
    #[arg(long, value_name = "FILE", env = "CROSSDOCK_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Gives passphrases for one run of a command.
#[derive(Debug)]
pub struct Source {
    /// What a file or the variable said.
    given: Option<Secret>,
    tries: usize,
    /// Files whose passphrase was asked for already.
    asked: BTreeSet<PathBuf>,
}

impl PassphraseArgs {
    /// Where passphrases of this run come from.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn source(&self) -> Result<Source, ReleaseError> {
        let given = given(self.passphrase_file.as_deref(), VARIABLE)?;
        Ok(Source { given, tries: 0, asked: BTreeSet::new() })
    }

    /// The passphrase for a key that is made now; `None` for a key that stays open, which must be `wanted`.
    ///
    /// # Errors
    /// When nobody is here to ask and nothing was said about it, or the new passphrase is too short.
    pub fn for_new(&self, open_wanted: bool, of: &str) -> Result<Option<Secret>, ReleaseError> {
        if open_wanted {
            return Ok(None);
        }
        new_passphrase(self.passphrase_file.as_deref(), VARIABLE, of).map(Some)
    }

    /// Whether a passphrase is given without a person.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.passphrase_file.is_some() || std::env::var_os(VARIABLE).is_some_and(|text| !text.is_empty())
    }
}

/// A new passphrase: from the file, else the variable, else a person, twice.
///
/// # Errors
/// When there is none to be had, or it is too short.
pub fn new_passphrase(file: Option<&Path>, variable: &str, of: &str) -> Result<Secret, ReleaseError> {
    let refuse = |problem: String| Err(ReleaseError::Passphrase { path: of.into(), problem });
    let passphrase = match given(file, variable)? {
        Some(given) => given,
        None if !person_is_here() => {
            return refuse(format!(
                "nobody is here to ask for a passphrase; name a file that holds it, set {variable}, or say --no-passphrase for a file that whoever reads it can sign with"
            ));
        }
        None => {
            let first = prompt(&format!("New passphrase for {of}: "))?;
            if *first != *prompt("The same again: ")? {
                return refuse("the two passphrases differ; run it again".into());
            }
            first
        }
    };
    if passphrase.chars().count() < MIN_CHARS {
        return refuse(format!("a passphrase has {MIN_CHARS} characters at least; choose a longer one"));
    }
    Ok(passphrase)
}

/// Whether somebody sits at the terminal and sees what is asked.
#[must_use]
pub fn person_is_here() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

impl AskPassphrase for Source {
    fn ask(&mut self, path: &Path, wrong: bool) -> Result<Secret, ReleaseError> {
        let refuse = |problem: String| Err(ReleaseError::Passphrase { path: path.to_owned(), problem });
        if let Some(given) = &self.given {
            if wrong {
                return refuse("the passphrase given is wrong, or the file is damaged".into());
            }
            return Ok(given.clone());
        }
        if !person_is_here() {
            return Nobody.ask(path, wrong);
        }
        if self.asked.insert(path.to_owned()) {
            self.tries = 0;
        }
        if wrong {
            self.tries += 1;
            if self.tries >= TRIES {
                return refuse(format!("the passphrase was wrong {TRIES} times, or the file is damaged"));
            }
            eprintln!("That is not it.");
        }
        prompt(&format!("Passphrase of {}: ", path.display()))
    }
}

fn prompt(question: &str) -> Result<Secret, ReleaseError> {
    hidden::ask(question).map_err(|source| ReleaseError::Io {
        attempt: "read a passphrase from",
        path: "the terminal".into(),
        source,
    })
}

/// What a file says, without the end of its line, or else a variable. Both may be absent.
fn given(file: Option<&Path>, variable: &str) -> Result<Option<Secret>, ReleaseError> {
    let (text, from) = match file {
        Some(path) => {
            let read = File::open(path).and_then(|file| bounded::read(file, MAX_BYTES));
            let text = read.map_err(|source| ReleaseError::Io {
                attempt: "read the passphrase in",
                path: path.to_owned(),
                source,
            })?;
            (text, path.to_owned())
        }
        None => match std::env::var(variable) {
            Ok(text) if !text.is_empty() => (text, PathBuf::from(variable)),
            _ => return Ok(None),
        },
    };
    let text = Zeroizing::new(text);
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        let problem = format!("{} holds no passphrase: one line is needed", from.display());
        return Err(ReleaseError::Passphrase { path: from, problem });
    }
    Ok(Some(Zeroizing::new(line.to_owned())))
}

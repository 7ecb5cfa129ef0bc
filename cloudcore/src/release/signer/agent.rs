//! Keys at an ssh-agent (OpenSSH's, gpg-agent, a password manager's), over its socket.
//!
//! Two questions of the protocol (draft-miller-ssh-agent) are needed: which keys are there, and a signature. They are
//! written out here, bounded in size and time; the libraries for it bring a second set of curves, and no bounds. Plain
//! `ssh-ed25519` keys sign what TUF needs; keys on a security key (`sk-`) sign another form, and are refused by name.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER};
use proto::tuf::{PublicKey, Signer, SignerError, key::short};
use sha2::{Digest as _, Sha256};

use crate::release::ReleaseError;

/// Longest message of an agent, in bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// How long an agent may think: a person may have to unlock it, or say yes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Digits of a key ID that name a key.
const MIN_ID_DIGITS: usize = 8;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGNATURE: u8 = 14;
const PLAIN: &str = "ssh-ed25519";

/// An agent, by its socket. Every question is a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    socket: PathBuf,
}

/// A key that an agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its kind, such as `ssh-ed25519`.
    pub kind: String,
    /// What whoever made it wrote beside it.
    pub comment: String,
    /// `SHA256:...`, as `ssh-add -l` prints it.
    pub fingerprint: String,
    /// The key, if it is of the kind that can sign here.
    pub public: Option<PublicKey>,
    blob: Vec<u8>,
}

/// A key at an agent, ready to sign.
#[derive(Debug, Clone)]
pub struct AgentKey {
    agent: Agent,
    identity: Identity,
    public: PublicKey,
}

impl Agent {
    /// The agent of this session.
    ///
    /// # Errors
    /// When `SSH_AUTH_SOCK` names none.
    pub fn from_env() -> Result<Agent, ReleaseError> {
        match std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()) {
            Some(path) => Ok(Agent::at(path)),
            None => Err(ReleaseError::Agent {
                attempt: "find it",
                problem:
                    "SSH_AUTH_SOCK is not set; start one with `eval $(ssh-agent)` and add your key with `ssh-add FILE`"
                        .into(),
            }),
        }
    }

    /// The agent behind a socket.
    #[must_use]
    pub fn at(socket: impl Into<PathBuf>) -> Agent {
        Agent { socket: socket.into() }
    }

    /// All keys that it holds.
    ///
    /// # Errors
    /// When it does not answer, or not as agents do.
    pub fn identities(&self) -> Result<Vec<Identity>, ReleaseError> {
        let read = || -> io::Result<Vec<Identity>> {
            let answer = ask(&self.socket, &[REQUEST_IDENTITIES])?;
            let mut rest = Reader(&answer);
            expect(rest.byte()?, IDENTITIES)?;
            let count = rest.number()?;
            // Each takes eight bytes at least, so a lie about the count ends at the end of the message.
            (0..count).map(|_| Ok(identity(rest.bytes()?.to_vec(), rest.bytes()?))).collect()
        };
        read().map_err(|e| ReleaseError::Agent { attempt: "list its keys", problem: self.explain(&e) })
    }

    /// The one key that `which` names: fingerprint, comment or key ID (8 digits or more); all of them when empty.
    ///
    /// # Errors
    /// When it holds none or several of them, or the one is of a kind that cannot sign here.
    pub fn find(&self, which: &str) -> Result<AgentKey, ReleaseError> {
        let refuse = |problem: String| Err(ReleaseError::Agent { attempt: "find the key", problem });
        let all = self.identities()?;
        let found: Vec<&Identity> = all.iter().filter(|identity| identity.is(which)).collect();
        let usable: Vec<&Identity> = found.iter().copied().filter(|identity| identity.public.is_some()).collect();
        match (found.as_slice(), usable.as_slice()) {
            ([], _) => {
                let held: Vec<String> = all.iter().map(Identity::to_string).collect();
                let held = if held.is_empty() { "no key at all".into() } else { held.join("; ") };
                refuse(format!("it holds none that is {which:?} (it holds {held}); add it with `ssh-add FILE`"))
            }
            ([other, ..], []) => refuse(format!("{other} {}", other.why_not())),
            (_, [one]) => {
                let identity = (*one).clone();
                let Some(public) = identity.public.clone() else { return refuse("it is no ed25519 key".into()) };
                Ok(AgentKey { agent: self.clone(), identity, public })
            }
            (_, several) => {
                let names: Vec<String> = several.iter().map(|identity| identity.to_string()).collect();
                refuse(format!("it holds several: {}; name one by its fingerprint", names.join("; ")))
            }
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("no answer through {socket} for {} s; unlock the agent, or start it anew", PATIENCE.as_secs())
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no agent listens on {socket} ({error}); start one with `eval $(ssh-agent)`")
            }
            _ => format!("through {socket}: {error}"),
        }
    }
}

impl Identity {
    fn is(&self, which: &str) -> bool {
        let id = self.public.as_ref().map(PublicKey::id).unwrap_or_default();
        which.is_empty()
            || self.fingerprint == which
            || self.comment == which
            || (which.len() >= MIN_ID_DIGITS && id.starts_with(&which.to_ascii_lowercase()))
    }

    /// Why such a key cannot sign, and what to do.
    #[must_use]
    pub fn why_not(&self) -> String {
        let mend = "make one with `ssh-keygen -t ed25519` or `crossdock keys new`";
        if self.kind.starts_with("sk-") {
            return format!(
                "is on a security key, which signs another form (with a counter) that TUF clients cannot verify; {mend}"
            );
        }
        format!("is a {} key, and only {PLAIN} keys can sign here; {mend}", self.kind.escape_debug())
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.fingerprint, self.comment.escape_debug(), self.kind.escape_debug())
    }
}

impl AgentKey {
    /// What stands beside the key at the agent.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.identity.comment
    }
}

impl Signer for AgentKey {
    fn public_key(&self) -> PublicKey {
        self.public.clone()
    }

    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError> {
        let sign = || -> io::Result<String> {
            let mut request = vec![SIGN_REQUEST];
            write_bytes(&mut request, &self.identity.blob)?;
            write_bytes(&mut request, message)?;
            request.extend(0u32.to_be_bytes());
            let answer = ask(&self.agent.socket, &request)?;
            let mut rest = Reader(&answer);
            expect(rest.byte()?, SIGNATURE)?;
            let mut signature = Reader(rest.bytes()?);
            if signature.bytes()? != PLAIN.as_bytes() {
                return Err(wrong("it answers with another kind of signature than ssh-ed25519"));
            }
            Ok(HEXLOWER.encode(signature.bytes()?))
        };
        sign().map_err(|e| SignerError { key: short(&self.public.id()), problem: self.agent.explain(&e) })
    }
}

/// Reads `ssh-ed25519 AAAA... comment`, a line as `ssh-keygen` writes it into a `.pub` file.
///
/// # Errors
/// What is wrong with it, for people.
pub fn public_line(line: &str) -> Result<PublicKey, String> {
    let mut words = line.trim().splitn(3, char::is_whitespace);
    let (kind, body, comment) = (words.next().unwrap_or_default(), words.next(), words.next());
    let blob = body.and_then(|body| BASE64.decode(body.as_bytes()).ok()).ok_or("it is no public key of OpenSSH")?;
    let comment = comment.unwrap_or_default();
    let identity = identity(blob, comment.as_bytes());
    match identity.public {
        Some(public) if kind == PLAIN => Ok(public.named(comment)),
        _ => Err(format!("it {}", identity.why_not())),
    }
}

fn identity(blob: Vec<u8>, comment: &[u8]) -> Identity {
    let mut rest = Reader(&blob);
    let kind = rest.bytes().map(|kind| String::from_utf8_lossy(kind).into_owned()).unwrap_or_default();
    let raw: Option<[u8; 32]> = rest.bytes().ok().and_then(|raw| raw.try_into().ok()).filter(|_| rest.0.is_empty());
    let public = raw.filter(|_| kind == PLAIN).and_then(|raw| PublicKey::from_bytes(&raw).ok());
    let fingerprint = format!("SHA256:{}", BASE64_NOPAD.encode(&Sha256::digest(&blob)));
    Identity { kind, comment: String::from_utf8_lossy(comment).into_owned(), fingerprint, public, blob }
}

/// One question, one answer; the answer without its length.
fn ask(socket: &Path, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut framed = vec![];
    write_bytes(&mut framed, request)?;
    stream.write_all(&framed)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(wrong("its answer is larger than an agent's may be"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_MESSAGE_BYTES - 1024 || out.is_empty());
    let length = length.ok_or_else(|| wrong("what is to be signed is larger than an agent takes; use a key file"))?;
    out.extend(length.to_be_bytes());
    out.extend(bytes);
    Ok(())
}

fn expect(found: u8, expected: u8) -> io::Result<()> {
    if found == expected { Ok(()) } else { Err(wrong("it refuses; unlock it, or say yes when it asks")) }
}

fn wrong(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| wrong("its answer is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }
    fn byte(&mut self) -> io::Result<u8> {
        self.take(1)?.first().copied().ok_or_else(|| wrong("its answer is empty"))
    }
    fn number(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?.try_into().map_err(|_| wrong("its answer is cut off"))?;
        Ok(u32::from_be_bytes(bytes))
    }
    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests;

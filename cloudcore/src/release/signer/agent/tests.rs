//! Against the real `ssh-agent`, and against one that lies.

use std::{
    os::unix::net::UnixListener,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
};

use proto::tuf::{
    schema::{SPEC_VERSION, TargetsMeta},
    sign::Document,
};

use super::*;

struct Real {
    folder: tempfile::TempDir,
    process: Child,
}

impl Real {
    /// An agent in the foreground, listening.
    fn start() -> Real {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(folder.path().join("socket")).stdout(Stdio::piped());
        let mut process = command.spawn().expect("ssh-agent (openssh-client)");
        // It prints where it listens once it does.
        let mut line = [0; 16];
        process.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        Real { folder, process }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn agent(&self) -> Agent {
        Agent::at(self.path("socket"))
    }

    fn add(&self, name: &str, kind: &[&str]) {
        let (file, socket) = (self.path(name), self.path("socket"));
        let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f", &file]).args(kind).status();
        assert!(made.unwrap().success());
        let added = Command::new("ssh-add").args(["-q", &file]).env("SSH_AUTH_SOCK", socket).status();
        assert!(added.unwrap().success());
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn refusal(result: Result<AgentKey, ReleaseError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_key_of_the_real_agent_signs_what_clients_verify() {
    let real = Real::start();
    let agent = real.agent();
    assert!(refusal(agent.find("")).contains("no key at all"));
    real.add("ann@desk", &["-t", "ed25519"]);
    let key = agent.find("").unwrap();
    let (id, fingerprint) = (key.public_key().id(), key.identity.fingerprint.clone());
    let signature = key.try_sign(b"message").unwrap();
    assert!(key.public_key().verifies(b"message", &signature));
    let line = std::fs::read_to_string(real.path("ann@desk.pub")).unwrap();
    let of_line = public_line(&line).unwrap();
    assert_eq!((of_line.id(), of_line.name()), (id.clone(), Some("ann@desk")));

    real.add("bob@desk", &["-t", "ed25519"]);
    real.add("old", &["-t", "ecdsa"]);
    assert_eq!(agent.identities().unwrap().len(), 3);
    for which in ["ann@desk", &fingerprint, &id, id.get(..8).unwrap(), &id.to_uppercase()] {
        assert_eq!(agent.find(which).unwrap().public_key().id(), id, "{which}");
    }
    assert!(refusal(agent.find("")).contains("several"));
    assert!(refusal(agent.find("carl")).contains("ssh-add"));
    assert!(refusal(agent.find(id.get(..7).unwrap())).contains("none"));
    assert!(refusal(agent.find("old")).contains("only ssh-ed25519 keys"));
    let listed = Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", real.path("socket")).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&fingerprint));
}

#[test]
fn keys_of_security_keys_are_refused_with_the_reason() {
    // The public half of an sk-ssh-ed25519 key: kind, key, application.
    let mut blob = vec![];
    for part in [&b"sk-ssh-ed25519@openssh.com"[..], &[7; 32], b"ssh:"] {
        blob.extend(text(part));
    }
    let line = format!("sk-ssh-ed25519@openssh.com {} ann", BASE64.encode(&blob));
    assert!(public_line(&line).unwrap_err().contains("security key"));
    let liar = Liar::start(vec![answer_with(&[(blob, "ann")])]);
    assert!(refusal(liar.agent().find("ann")).contains("security key"));
}

/// An agent that answers with the given bytes, one connection each.
struct Liar {
    folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    fn start(answers: Vec<Vec<u8>>) -> Liar {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let thread = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut length = [0; 4];
                stream.read_exact(&mut length).unwrap();
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        Liar { folder, thread: Some(thread) }
    }

    fn agent(&self) -> Agent {
        Agent::at(self.folder.path().join("socket"))
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn nothing() -> TargetsMeta {
    TargetsMeta {
        kind: "targets".into(),
        spec_version: SPEC_VERSION.into(),
        version: 1,
        expires: jiff::Timestamp::MAX,
        targets: [].into(),
        other: [].into(),
    }
}

fn answer_with(keys: &[(Vec<u8>, &str)]) -> Vec<u8> {
    let mut body = vec![IDENTITIES];
    body.extend(u32::try_from(keys.len()).unwrap().to_be_bytes());
    keys.iter().for_each(|(blob, comment)| body.extend([text(blob), text(comment.as_bytes())].concat()));
    text(&body)
}

#[test]
fn an_agent_that_lies_is_told_from_one_that_signs() {
    let secret = proto::tuf::SecretKey::from_seed(&[7; 32]);
    let public = secret.public();
    let blob = [text(PLAIN.as_bytes()), text(&public.bytes().unwrap())].concat();
    let keys = || answer_with(&[(blob.clone(), "a\u{1b}[2J")]);
    let signature = |raw: &[u8], kind: &str| {
        let inner = [text(kind.as_bytes()), text(raw)].concat();
        text(&[vec![SIGNATURE], text(&inner)].concat())
    };
    let other = HEXLOWER.decode(secret.sign(b"something else").as_bytes()).unwrap();
    for (answer, why) in [
        (signature(&other, PLAIN), "does not verify"),
        (signature(&other, "ssh-rsa"), "another kind"),
        (text(&[5]), "refuses"),
        (text(&[SIGNATURE, 0, 0, 9, 9]), "cut off"),
        (u32::MAX.to_be_bytes().to_vec(), "larger than"),
        (vec![], "fill whole buffer"),
    ] {
        let liar = Liar::start(vec![keys(), answer]);
        let key = liar.agent().find("").unwrap();
        let mut document = Document::new(&nothing()).unwrap();
        let error = document.sign_with(&key).unwrap_err().to_string();
        assert!(error.contains(why) && document.signatures().is_empty(), "{error}");
    }
    let many = [vec![IDENTITIES], u32::MAX.to_be_bytes().to_vec()].concat();
    assert!(Liar::start(vec![text(&many)]).agent().identities().is_err());
    let gone = Agent::at("/nonexistent/socket").find("").unwrap_err().to_string();
    assert!(gone.contains("ssh-agent"), "{gone}");
    assert!(!identity(blob, b"a\x1b[2J").to_string().contains('\u{1b}'));
}

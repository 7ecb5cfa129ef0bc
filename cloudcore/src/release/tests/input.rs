//! What the engineer hands in: trees, `release.yaml` and key files, and how each bad one is refused.

use proto::tuf::PublicKey;

use super::*;
use crate::release::{keys::AskPassphrase, sealed::Secret};

#[test]
fn trees_that_are_not_plain_files_are_refused() {
    let desk = Desk::new();
    let inside = |name: &str| desk.path("files").join(name);
    // A link that stays inside is released as what it leads to, a folder too.
    symlink("a.txt", inside("share/b.txt")).unwrap();
    symlink("share", inside("also")).unwrap();
    let built = desk.build().unwrap();
    let paths: Vec<&str> = built.manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["also/a.txt", "also/b.txt", "bin/run", "share/a.txt", "share/b.txt"]);

    let remove = |name: &str| fs::remove_file(inside(name)).unwrap();
    desk.write("secret", "s");
    for (target, why) in
        [("../../secret", "outside"), ("/etc/passwd", "outside"), ("nowhere", "not there"), ("../share", "circle")]
    {
        symlink(target, inside("share/link")).unwrap();
        let error = desk.refused();
        assert!(error.contains("share/link") && error.contains(why), "{target}: {error}");
        remove("share/link");
    }
    symlink("/dev/null", inside("null")).unwrap();
    assert!(desk.refused().contains("outside"));
    remove("null");
    let fifo = std::process::Command::new("mkfifo").arg(inside("pipe")).status().unwrap();
    assert!(fifo.success());
    assert!(desk.refused().contains("named pipe"));
    remove("pipe");
    let socket = std::os::unix::net::UnixListener::bind(inside("socket")).unwrap();
    assert!(desk.refused().contains("a socket"));
    drop(socket);
    remove("socket");
    desk.write("files/share/A.txt", "A");
    assert!(desk.refused().contains("differ only in upper and lower case"));
    remove("share/A.txt");
    desk.write("files/back\\slash", "");
    assert!(desk.refused().contains("backslash"));
    remove("back\\slash");
    assert!(desk.build().is_ok());
}

#[test]
fn what_release_yaml_says_in_vain_is_told() {
    let desk = Desk::new();
    assert_eq!(desk.build().unwrap().warnings, ["unknown field future is ignored"]);
    desk.write(
        "release.yaml",
        "apiVersion: crossdock.io/v1
app: scan
version: 1.0.0
hardwear: [x86_64]
artifacts:
  - source: files
    tarjet: x
workload:
  command: bin/run
  env: { any: thing }
  probs: {}
  probes: { livness: {}, readiness: { http: { prot: 1, port: 2 } } }
  limits: { memroy: 1Gi }
",
    );
    let said = [
        "hardwear is ignored; did you mean hardware?",
        "artifacts.0.tarjet is ignored; did you mean target?",
        "workload.probs is ignored; did you mean probes?",
        "workload.probes.livness is ignored; did you mean liveness?",
        "workload.probes.readiness.http.prot is ignored; did you mean port?",
        "workload.limits.memroy is ignored; did you mean memory?",
    ];
    assert_eq!(desk.build().unwrap().warnings, said.map(|said| format!("unknown field {said}")));
}

#[test]
fn release_yaml_that_cannot_work_is_refused() {
    let desk = Desk::new();
    let good = fs::read_to_string(desk.path("release.yaml")).unwrap();
    let artifact = |text: &str| good.replace("  - source: files\n", &format!("  - source: files\n{text}"));
    let cases = [
        (String::new(), "release.yaml"),
        ("- 1".into(), "release.yaml"),
        ("a: [".into(), "release.yaml"),
        (good.replace("app: scan", "app: ../scan"), "not a valid name"),
        (good.replace("app: scan", "app: scan\napp: scan2"), "duplicate"),
        (good.replace("version: 1.0.0", "version: 1/0"), "not a valid version"),
        (good.replace("crossdock.io/v1", "crossdock.io/v9"), "crossdock.io/v9"),
        (good.replace("future: [1]", "kind: Rollout"), "Rollout"),
        (good.replace("future: [1]", "minAgent: 99.0.0"), "upgrade the agent"),
        (good.replace("command: bin/run", "command: bin/walk"), "bin/run"),
        (good.replace("command: bin/run", "command: share/a.txt"), "not executable"),
        (format!("{good}  probes: {{ liveness: {{ tcp: {{ port: 0 }} }} }}\n"), "liveness probe's port is 0"),
        (good.replace("command: bin/run", "command: ../run"), "leave the tree"),
        (good.replace("command: bin/run", "command: bin/run\n  workingDir: nowhere"), "workingDir"),
        (good.replace("source: files", "source: gone"), "gone"),
        (artifact("  - { source: files/share/a.txt, target: ../a }\n"), "leave the tree"),
        (artifact("  - { source: files/share/a.txt, target: /a }\n"), "absolute"),
        (artifact("  - { source: files/share/a.txt, target: share/a.txt }\n"), "twice"),
        (artifact("  - { source: files/share/a.txt, target: share }\n"), "needs a folder"),
        (artifact("  - { source: files/share, target: Share }\n"), "upper and lower case"),
        (format!("{good}#{}", " ".repeat(1 << 20)), "larger than"),
        (format!("{good}x: {}", "[".repeat(5000)), "release.yaml"),
    ];
    for (text, why) in cases {
        desk.write("release.yaml", &text);
        let error = desk.refused();
        let shown: String = text.chars().take(300).collect();
        assert!(error.to_lowercase().contains(&why.to_lowercase()), "{shown}\n{error}");
    }
    // A program of the box cannot be checked here; a file can be declared executable.
    desk.write("release.yaml", &good.replace("command: bin/run", "command: /usr/bin/env"));
    assert!(desk.build().is_ok());
    let tool = artifact("  - { source: files/share/a.txt, target: tool, executable: true }\n");
    desk.write("release.yaml", &tool.replace("command: bin/run", "command: tool"));
    assert!(desk.build().is_ok());
    // The sample that we hand out is sound.
    desk.write("files/bin/scan-uploader", "");
    fs::set_permissions(desk.path("files/bin/scan-uploader"), fs::Permissions::from_mode(0o755)).unwrap();
    desk.write("release.yaml", include_str!("../../cli/sample_release.yaml"));
    desk.build().unwrap();
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let files = keys::write(folder.path(), "alice", &key(4), None).unwrap();
    assert_eq!(fs::metadata(&files.secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files.id, key(4).id());
    assert_eq!(keys::read_secret(&files.secret, &mut keys::Nobody).unwrap().id(), key(4).id());
    assert_eq!(public(&files.public).unwrap(), key(4).public().named("alice"));
    assert_eq!(public(&files.secret).unwrap(), key(4).public().named("alice"));
    assert!(chain(&keys::write(folder.path(), "alice", &key(5), None).unwrap_err()).contains("not overwritten"));
    for bad in ["", "../x", "a/b", ".hidden"] {
        assert!(keys::write(folder.path(), bad, &key(5), None).is_err(), "{bad}");
    }
    assert!(chain(&keys::read_secret(&files.public, &mut keys::Nobody).unwrap_err()).contains("alice.pub"));
    fs::write(folder.path().join("junk"), "junk").unwrap();
    assert!(public(&folder.path().join("junk")).is_err());
}

fn public(path: &Path) -> Result<PublicKey, ReleaseError> {
    keys::read_public(path, &mut keys::Nobody)
}

/// Says the given passphrases one after the other, then refuses.
struct Says(Vec<&'static str>);

impl AskPassphrase for Says {
    fn ask(&mut self, path: &Path, wrong: bool) -> Result<Secret, ReleaseError> {
        if self.0.is_empty() { keys::Nobody.ask(path, wrong) } else { Ok(self.0.remove(0).to_owned().into()) }
    }
}

#[test]
fn an_encrypted_key_file_opens_with_its_passphrase_alone() {
    let folder = tempfile::tempdir().unwrap();
    let passphrase: Secret = "correct horse".to_owned().into();
    let files = keys::write(folder.path(), "ann", &key(4), Some(&passphrase)).unwrap();
    let read = |says: &[&'static str]| keys::read_secret(&files.secret, &mut Says(says.to_vec()));
    assert_eq!(fs::metadata(&files.secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(keys::is_encrypted(&files.secret).unwrap());
    assert_eq!(read(&["wrong", "correct horse"]).unwrap().id(), key(4).id());
    let error = chain(&read(&["wrong"]).unwrap_err());
    assert!(error.contains("ann.pem") && error.contains("--passphrase-file"), "{error}");
    // The public half needs nobody while its file is there.
    assert_eq!(public(&files.secret).unwrap().id(), key(4).id());
    fs::remove_file(&files.public).unwrap();
    assert!(public(&files.secret).is_err());

    keys::change_passphrase(&files.secret, &key(4), None).unwrap();
    assert_eq!(read(&[]).unwrap().id(), key(4).id());
    symlink(&files.secret, folder.path().join("link")).unwrap();
    keys::change_passphrase(&folder.path().join("link"), &key(4), Some(&passphrase)).unwrap();
    assert_eq!(read(&["correct horse"]).unwrap().id(), key(4).id());
    let ours = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    fs::write(folder.path().join("id_ed25519"), ours).unwrap();
    let error = chain(&keys::read_secret(&folder.path().join("id_ed25519"), &mut keys::Nobody).unwrap_err());
    assert!(error.contains("ssh-add"), "{error}");
}

//! Placed, replaced, cleared away; and everything that keeps a secret from being opened.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use proto::{
    env::Env,
    object::ReleaseRef,
    release::{Container, Workload},
    secret::{SealedTo, seal},
};
use tempfile::TempDir;

use super::*;
use crate::driver::Side;

const PLAINTEXT: &[u8] = b"correct horse battery staple";

/// A node with a tree; what it places is on the machine's own memory.
struct Box_ {
    folder: TempDir,
    memory: TempDir,
    secrets: Secrets,
}

impl Box_ {
    fn new() -> Box_ {
        let folder = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir_all(folder.path().join("identity")).unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        let mut secrets = open(folder.path());
        secrets.places = vec![Room::new(memory.path().join("secrets"), false)];
        Box_ { folder, memory, secrets }
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// A secret of the tree, sealed to these.
    fn seal(&self, name: &str, to: &[SealedTo]) -> Secret {
        let file = format!("{name}.age");
        fs::write(self.tree().join(&file), seal(PLAINTEXT, &app(), name, to).unwrap()).unwrap();
        Secret { name: name.into(), file, sealed_to: vec![] }
    }

    fn mine(&self) -> SealedTo {
        SealedTo { node: Some("box-1".into()), key: self.secrets.public().unwrap() }
    }

    fn spec(&self, version: &str, secrets: Vec<Secret>) -> InstanceSpec {
        InstanceSpec {
            app: app(),
            side: Side::A,
            replica: 0,
            run: None,
            release: ReleaseRef { version: version.parse().unwrap(), digest: digest(version) },
            tree: self.tree(),
            data: self.folder.path().join("data"),
            workload: Workload { secrets, ..Workload::new("/bin/true".into()) },
            gpus: vec![],
            uses: BTreeMap::new(),
        }
    }

    fn check(&self, secret: Secret) -> SecretsError {
        self.secrets.check(&app(), &self.tree(), &[secret]).unwrap_err()
    }

    /// All that is in memory, by path below it.
    fn placed(&self) -> Vec<String> {
        let mut found = vec![];
        let mut folders = vec![self.memory.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.path().is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push(entry.path().strip_prefix(self.memory.path()).unwrap().display().to_string()),
                }
            }
        }
        found.sort();
        found
    }
}

fn open(folder: &Path) -> Secrets {
    Secrets::open(&Paths::new(folder), &"box-1".parse().unwrap(), &Env::real().unwrap()).unwrap()
}

fn app() -> Name {
    "scan".parse().unwrap()
}

fn digest(version: &str) -> Digest {
    Digest::of(version.as_bytes())
}

fn other() -> SealedTo {
    let key = SealingKey::from_bytes(&[9; 32]).unwrap().public().to_string();
    SealedTo { node: Some("box-9".into()), key }
}

#[test]
fn files_are_whole_closed_and_gone_with_their_release() {
    let of = Box_::new();
    let secrets = vec![of.seal("db", &[of.mine()]), of.seal("api.key", &[other(), of.mine()])];
    let first = of.spec("1", secrets.clone());
    of.secrets.check(&app(), &first.tree, &secrets).unwrap();
    assert!(of.placed().is_empty(), "a check leaves nothing");
    for _ in 0..2 {
        of.secrets.place(&first).unwrap(); // a second time, as after a crash of the workload
    }
    let folder = of.secrets.folder(&app(), first.release.digest).unwrap();
    assert_eq!(fs::read(folder.join("db")).unwrap(), PLAINTEXT);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&folder), mode(&folder.join("api.key"))), (0o500, 0o400));
    assert_eq!(of.placed().len(), 2);

    let second = of.spec("2", secrets[..1].to_vec());
    of.secrets.place(&second).unwrap();
    assert_eq!(of.placed().len(), 3, "as while the hook of the next one runs");
    of.secrets.remove_others(&app(), second.release.digest).unwrap();
    assert!(!folder.exists() && of.placed().len() == 1);
    of.secrets.remove_release(&app(), first.release.digest).unwrap();
    assert_eq!(of.placed().len(), 1);
    of.secrets.remove(&app()).unwrap();
    of.secrets.remove(&app()).unwrap();
    assert!(of.placed().is_empty());
    // Without secrets nothing is made at all.
    of.secrets.place(&of.spec("3", vec![])).unwrap();
    assert!(!folder.parent().unwrap().exists());
}

#[test]
fn credentials_for_a_registry_are_opened_and_put_nowhere() {
    let of = Box_::new();
    let mut spec = of.spec("1", vec![of.seal("registry", &[of.mine()]), of.seal("db", &[of.mine()])]);
    assert_eq!(of.secrets.open_pull_secret(&spec).unwrap(), None, "the release names none");
    spec.workload.container = Some(Container { pull_secret: Some("registry".into()), ..Container::default() });
    let found = of.secrets.open_pull_secret(&spec).unwrap().unwrap();
    assert_eq!((found.as_slice(), of.placed().len()), (PLAINTEXT, 0));
    of.secrets.place(&spec).unwrap();
    let placed = of.placed();
    assert!(placed.len() == 1 && placed[0].ends_with("/db"), "{placed:?}");
    of.seal("registry", &[other()]);
    assert_eq!(of.secrets.open_pull_secret(&spec).unwrap_err().reason(), "SecretNotForThisNode");
    of.secrets.remove(&app()).unwrap();
}

#[test]
fn the_workloads_user_owns_them() {
    let of = Box_::new();
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let mut spec = of.spec("1", vec![of.seal("db", &[of.mine()])]);
    spec.workload.user = Some("65534".into());
    of.secrets.place(&spec).unwrap();
    let folder = of.secrets.folder(&app(), spec.release.digest).unwrap();
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    assert_eq!((owner(&folder), owner(&folder.join("db"))), (65534, 65534));
    let others_may_pass = fs::metadata(folder.parent().unwrap()).unwrap().permissions().mode() & 0o777;
    assert_eq!(others_may_pass, 0o711);
    spec.workload.user = Some("nobody-of-this-name".into());
    let error = of.secrets.place(&spec).unwrap_err();
    assert!(error.to_string().contains("does not exist on this box"), "{error}");
    of.secrets.remove(&app()).unwrap();
}

#[test]
fn what_cannot_be_opened_is_told_apart_with_its_mend() {
    let of = Box_::new();
    let error = of.check(of.seal("db", &[other()]));
    assert_eq!(error.reason(), "SecretNotForThisNode");
    let text = error.to_string();
    assert!(text.contains("sealed to box-9, and this box has the key age1") && text.contains("--to"), "{text}");
    // As after a new installation.
    let error = of.check(of.seal("db", &[SealedTo { node: Some("box-1".into()), ..other() }]));
    assert_eq!(error.reason(), "SecretNotForThisNode");
    let text = error.to_string();
    assert!(text.contains("new installation") && text.contains("--accept-new-key box-1"), "{text}");

    let secret = of.seal("db", &[of.mine()]);
    let path = of.tree().join("db.age");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(of.check(secret.clone()).reason(), "SecretDamaged");
    fs::write(&path, "PASSWORD=x").unwrap();
    assert_eq!(of.check(secret.clone()).reason(), "SecretDamaged");
    fs::write(&path, seal(PLAINTEXT, &"other".parse().unwrap(), "db", &[of.mine()]).unwrap()).unwrap();
    assert_eq!(of.check(secret.clone()).reason(), "SecretOfAnotherApp");
    // Nothing half is left where one of several fails.
    let both = of.spec("1", vec![of.seal("good", &[of.mine()]), secret]);
    assert!(of.secrets.place(&both).is_err());
    assert!(of.placed().is_empty());
}

#[test]
fn plaintext_never_goes_to_a_disk() {
    let mut of = Box_::new();
    let on_disk = of.folder.path().join("run");
    of.secrets.places = vec![Room::new(&on_disk, false)];
    if room::first(&of.secrets.places).is_ok() {
        eprintln!("{} is in memory here: skipped", on_disk.display());
        return;
    }
    let secret = of.seal("db", &[of.mine()]);
    let error = of.check(secret.clone());
    assert_eq!(error.reason(), "NoRoomForSecrets");
    assert!(error.to_string().contains("is on disk") && error.to_string().contains("mount a tmpfs"), "{error}");
    assert!(of.secrets.place(&of.spec("1", vec![secret])).is_err());
    assert_eq!(of.secrets.folder(&app(), digest("1")), None);
    assert_eq!(fs::read_dir(&on_disk).unwrap().count(), 0);
    // Nor where somebody else laid a trap.
    let trap = of.memory.path().join("trap");
    std::os::unix::fs::symlink(of.folder.path(), &trap).unwrap();
    of.secrets.places = vec![Room::new(&trap, false)];
    assert!(room::first(&of.secrets.places).unwrap_err().contains("not a folder of the agent's user"));
}

#[test]
fn the_key_stays_is_mended_and_never_replaced_while_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("identity")).unwrap();
    let public = open(folder.path()).public().unwrap();
    assert_eq!(open(folder.path()).public().as_ref(), Some(&public));
    let (path, copy) = (folder.path().join("identity/sealing"), folder.path().join("identity/sealing.bak"));
    for path in [&path, &copy] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    fs::write(&path, "damaged").unwrap();
    assert_eq!(open(folder.path()).public().as_ref(), Some(&public));
    fs::write(&copy, "damaged").unwrap();
    assert_eq!(open(folder.path()).public().as_ref(), Some(&public), "the other copy was mended meanwhile");
    for path in [&path, &copy] {
        fs::write(path, "damaged").unwrap();
    }
    let lost = open(folder.path());
    assert_eq!(lost.public(), None);
    let secret = Secret { name: "db".into(), file: "db.age".into(), sealed_to: vec![] };
    let error = lost.open_one(&app(), folder.path(), &secret).unwrap_err();
    assert_eq!(error.reason(), "SealingKeyLost");
    assert!(error.to_string().contains("identity/sealing") && error.to_string().contains("backup"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"damaged", "what may be mended is left alone");
    for path in [&path, &copy] {
        fs::remove_file(path).unwrap();
    }
    assert_ne!(open(folder.path()).public(), Some(public), "a box without a key gets a new one");
}

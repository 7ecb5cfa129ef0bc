//! What the tests need of images: built once, kept in `target/images`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use cloudcore::stage::{self, Programs};
use proto::digest::Digest;

/// Makes what stands in for images of registries.
const STAND_IN: &str = include_str!("standin.sh");

/// Where images are, each as `docker save` or `docker export` writes it.
pub struct House {
    folder: PathBuf,
    programs: PathBuf,
}

impl House {
    /// The folders; nothing is built.
    pub async fn open() -> anyhow::Result<(House, Programs)> {
        let programs = stage::programs().await?;
        let folder = repository().join("target/images/tests");
        fs::create_dir_all(&folder)?;
        let built = programs.path("edgecore").parent().context("find the folder of the programs")?.to_owned();
        Ok((House { folder, programs: built }, programs))
    }

    /// Builds images with `images/build` and Podman; returns what that printed. For the network that it begins in.
    pub fn build(&self, names: &[&str]) -> anyhow::Result<String> {
        let storage = self.folder.join("storage.conf");
        let place = self.folder.display();
        let text =
            format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{place}/storage\"\nrunroot = \"{place}/run\"\n");
        fs::write(&storage, text)?;
        let run = |program: &Path, args: &[&OsStr]| {
            let mut command = Command::new(program);
            run(command.args(args).env("CONTAINERS_STORAGE_CONF", &storage).current_dir(repository()))
        };
        let (base, python) = ("localhost/crossdock-tests/python", self.stand_in("python")?);
        run(Path::new("podman"), &["import".as_ref(), "-q".as_ref(), python.as_os_str(), base.as_ref()])?;
        let options = ["--engine", "podman", "--base", base, "--python", base, "--programs"].map(OsStr::new);
        let mut args = options.to_vec();
        args.extend([self.programs.as_os_str(), "--save".as_ref(), self.folder.as_os_str()]);
        args.extend(names.iter().map(OsStr::new));
        run(Path::new("images/build"), &args)
    }

    /// An image that stands in for one of a registry, as a tar of its files.
    pub fn stand_in(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{name}-{}.tar", &Digest::of(STAND_IN.as_bytes()).hex()[..12]));
        if !path.exists() {
            let mut command = Command::new("bash");
            run(command.args(["-c", STAND_IN, "standin.sh", name]).arg(&path))
                .context("on Debian: apt-get install mmdebstrap")?;
        }
        Ok(path)
    }

    /// An image that was built.
    pub fn archive(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.tar"))
    }

    /// A file beside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a command to its end; returns what it wrote to standard output.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{:?} ended with {}: {text}{errors}", command.get_program(), output.status);
    Ok(text.into_owned())
}

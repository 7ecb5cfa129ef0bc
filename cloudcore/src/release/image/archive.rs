//! The files of an image, in a folder or in a tar file, by name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
};

use super::super::{ReleaseError, io_error};

/// Most entries of a tar file that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Links that are followed; `docker save` of before 25 wrote one to each layer that it had written already.
const MAX_LINKS: usize = 8;

/// Where the files are.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    /// Of a tar file; of a folder nothing.
    entries: Option<BTreeMap<String, Place>>,
}

/// What a name of a tar file stands for.
#[derive(Debug)]
enum Place {
    /// Content from here on, so long.
    At(u64, u64),
    /// What another name stands for.
    Link(String),
}

impl Archive {
    /// Looks what is there.
    ///
    /// # Errors
    /// When it is no folder and no tar file.
    pub(super) fn open(path: &Path) -> Result<Archive, ReleaseError> {
        let kind = fs::metadata(path)
            .map_err(io_error("find the image (workload.container.archive, relative to release.yaml)", path))?;
        if kind.is_dir() {
            return Ok(Archive { path: path.to_owned(), entries: None });
        }
        let refuse = |problem: String| ReleaseError::Tree { path: path.to_owned(), problem };
        let mut file = File::open(path).map_err(io_error("open", path))?;
        let mut magic = [0; 2];
        if file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b] {
            return Err(refuse("it is compressed as a whole; unpack it with gunzip first".into()));
        }
        file.seek(SeekFrom::Start(0)).map_err(io_error("read", path))?;
        let entries = index(file).map_err(|e| refuse(format!("it is no tar file of an image: {e}")))?;
        Ok(Archive { path: path.to_owned(), entries: Some(entries) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file of that name.
    pub(super) fn holds(&self, name: &str) -> bool {
        match &self.entries {
            Some(entries) => entries.contains_key(name),
            None => self.path.join(name).is_file(),
        }
    }

    /// The content of a file.
    ///
    /// # Errors
    /// For people, when it is not there or cannot be read.
    pub(super) fn read(&self, name: &str) -> Result<Box<dyn Read>, String> {
        let clean = clean(Path::new(name)).ok_or_else(|| format!("it names {name:?}, which could lead outside"))?;
        let missing = || format!("it names {name}, and does not hold it; save the image again, all of it");
        let failed = |e: io::Error| format!("{name} in it cannot be read: {e}");
        let Some(entries) = &self.entries else {
            let path = self.path.join(&clean);
            let inside =
                |path: &Path| Some(fs::canonicalize(path).ok()?.starts_with(fs::canonicalize(&self.path).ok()?));
            return match inside(&path) {
                None => Err(missing()),
                Some(false) => Err(format!("{name} in it is a link that leads outside")),
                Some(true) => Ok(Box::new(File::open(path).map_err(failed)?)),
            };
        };
        let mut found = clean;
        for _ in 0..MAX_LINKS {
            match entries.get(&found).ok_or_else(missing)? {
                Place::Link(to) => found.clone_from(to),
                Place::At(offset, size) => {
                    let mut file = File::open(&self.path).map_err(failed)?;
                    file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                    return Ok(Box::new(file.take(*size)));
                }
            }
        }
        Err(format!("{name} in it is a link that leads round in a circle"))
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// As [`Archive::read`], and when it has more than `limit` bytes.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let mut text = vec![];
        let read = self.read(name)?.take(limit + 1).read_to_end(&mut text);
        read.map_err(|e| format!("{name} in it cannot be read: {e}"))?;
        if text.len() as u64 > limit {
            return Err(format!("{name} in it has more than {limit} bytes"));
        }
        Ok(text)
    }
}

fn index(file: File) -> io::Result<BTreeMap<String, Place>> {
    let mut entries = BTreeMap::new();
    let mut archive = tar::Archive::new(BufReader::new(file));
    for (number, entry) in archive.entries_with_seek()?.enumerate() {
        let entry = entry?;
        if number >= MAX_ENTRIES {
            return Err(io::Error::other(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let path = entry.path()?.into_owned();
        let Some(name) = clean(&path) else { continue }; // nobody asks for it
        let kind = entry.header().entry_type();
        let place = if kind.is_file() {
            Place::At(entry.raw_file_position(), entry.size())
        } else if kind.is_symlink() || kind.is_hard_link() {
            // The one is relative to its folder, the other to the archive.
            let to = entry.link_name()?.map(std::borrow::Cow::into_owned).unwrap_or_default();
            let from = if kind.is_symlink() { path.parent().unwrap_or(Path::new("")).join(to) } else { to };
            let Some(to) = clean(&from) else { continue };
            Place::Link(to)
        } else {
            continue;
        };
        entries.insert(name, place);
    }
    Ok(entries)
}

/// A path as the archive's root sees it; none when it leaves that.
fn clean(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = vec![];
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

//! What `release build` does about secrets: are they sealed, for this app, and to whom.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::PathBuf};

use proto::{
    digest::Digest,
    name::Name,
    release::{FileEntry, Workload},
    secret::{self, MAX_SEALED_BYTES, SecretError},
};

use crate::release::{ReleaseError, io_error};

/// Fills in to whom each secret is sealed, from the sealed files themselves.
///
/// # Errors
/// What is no sealed secret of this app, and the mend. What is plaintext is never released.
pub(in crate::release) fn complete(
    app: &Name,
    workload: &mut Workload,
    files: &[FileEntry],
    blobs: &BTreeMap<Digest, PathBuf>,
) -> Result<(), ReleaseError> {
    for secret in &mut workload.secrets {
        // A file that is missing or too large is told by the manifest's own check.
        let entry = files.iter().find(|entry| entry.path.as_str() == secret.file && entry.size <= MAX_SEALED_BYTES);
        let Some(path) = entry.and_then(|entry| blobs.get(&entry.digest)) else { continue };
        let refuse = |problem: String| {
            let problem = format!("as secret {:?} {problem}", secret.name);
            ReleaseError::Tree { path: path.clone(), problem }
        };
        let mut bytes = vec![];
        let opened = File::open(path).map_err(io_error("open", path))?;
        opened.take(MAX_SEALED_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
        let sealed = secret::inspect(&bytes).map_err(|e| refuse(e.to_string()))?;
        if let Some((of, name)) = sealed.of
            && (of != app.as_str() || name != secret.name)
        {
            return Err(refuse(SecretError::OfAnother { app: of, name }.to_string()));
        }
        if sealed.to.is_empty() {
            continue; // by another program: what release.yaml says, if it does
        }
        if !secret.sealed_to.is_empty() && secret.sealed_to != sealed.to {
            return Err(refuse("release.yaml says sealedTo and the file says otherwise; leave it out there".into()));
        }
        if sealed.to.len() != sealed.recipients {
            let (said, real) = (sealed.to.len(), sealed.recipients);
            return Err(refuse(format!("says that it is sealed to {said} keys, and is to {real}; seal it again")));
        }
        secret.sealed_to = sealed.to;
    }
    Ok(())
}

//! The node's sealing key: made on the node, kept beside its identity, and kept when that is renewed or joined anew.

use std::path::PathBuf;

use proto::{
    durable::{DurableError, Loaded},
    env::Env,
    secret::SealingKey,
};
use zeroize::Zeroizing;

use crate::config::Paths;

/// The node's key; where a file of it is there and neither copy is whole, the path of that file.
type Found = Result<SealingKey, PathBuf>;

/// The node's key, made where there is none. A damaged copy is mended from the other; where both are damaged no new key
/// takes its place, since the old one may still be mended.
///
/// # Errors
/// When a file cannot be read or written.
pub fn load_or_make(paths: &Paths, env: &Env) -> Result<Found, DurableError> {
    if let Some(found) = key_of(paths, paths.sealing_key().load_and_mend()?) {
        return Ok(found);
    }
    let bytes = Zeroizing::new(env.seed.bytes::<32>("sealing key"));
    let record = paths.sealing_key();
    let Ok(key) = SealingKey::from_bytes(&bytes) else { return Ok(Err(record.path().to_owned())) };
    record.store(format!("{}\n", *key.text()).as_bytes())?;
    Ok(Ok(key))
}

/// The node's key, for who only looks; `None` where there is none yet.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read(paths: &Paths) -> Result<Option<Found>, DurableError> {
    Ok(key_of(paths, paths.sealing_key().load()?))
}

fn key_of(paths: &Paths, loaded: Loaded) -> Option<Found> {
    let path = || paths.sealing_key().path().to_owned();
    let content = match loaded {
        Loaded::Absent => return None,
        Loaded::Lost => return Some(Err(path())),
        Loaded::Good(content) | Loaded::Fallback(content) => Zeroizing::new(content),
    };
    let key = std::str::from_utf8(&content).ok().and_then(|text| text.parse().ok());
    Some(key.ok_or_else(path))
}

//! Who may run commands in a workload: see [`crate::exec`].

use serde::{Deserialize, Serialize};

use super::ManifestError;
use crate::tuf::PublicKey;

/// Most keys of a release.
const MAX_KEYS: usize = 64;

/// Who may run commands in a workload. Signed with the release, so no hub can add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// Keys of people, a line each as OpenSSH writes them: `ssh-ed25519 AAAA... NAME`.
    pub authorized_keys: Vec<String>,
}

impl Exec {
    /// Whether every line is a key.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(format!("exec.authorizedKeys: {text}")));
        if self.authorized_keys.len() > MAX_KEYS {
            return wrong(format!("{} keys are more than {MAX_KEYS}", self.authorized_keys.len()));
        }
        match self.authorized_keys.iter().find_map(|line| PublicKey::from_openssh(line).err()) {
            Some(error) => wrong(error.to_string()),
            None => Ok(()),
        }
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> Vec<PublicKey> {
        self.authorized_keys.iter().filter_map(|line| PublicKey::from_openssh(line).ok()).collect()
    }
}

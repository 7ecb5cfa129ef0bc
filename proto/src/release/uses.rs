//! Files of other apps' releases that a workload uses, such as a model of its own release.
//!
//! A process says `uses: [vision-model]` and finds the folder in `CROSSDOCK_USES_VISION_MODEL`; a container says where
//! it is mounted ([`Container::uses`](super::Container::uses)), read-only, and the variable says that path. An instance
//! has the release that was proved with it for as long as it lives and over its restarts; what
//! `$CROSSDOCK_APPS/<app>/current` leads to may be another one by then.
//!
//! When the used app gets another release, that is on trial with those that use it: each gets a new instance with the
//! new files, beside the one that is live where its [`Update`](super::Update) asks for it and the box has room, or in
//! its place. The new release succeeds once all of them proved healthy with it, as after an update of their own; if one
//! does not, the new release has failed, and all of them go on with the one before.

use std::collections::BTreeSet;

use super::{ManifestError, Workload};
use crate::name::Name;

/// Most apps whose files a process uses.
const MAX_USES: usize = 64;
/// What variables begin with that name a folder of another app's files.
pub const VARIABLE_PREFIX: &str = "CROSSDOCK_USES_";

/// Names the folder with an app's files to a workload that uses them: `CROSSDOCK_USES_VISION_MODEL`.
#[must_use]
pub fn variable(app: &Name) -> String {
    format!("{VARIABLE_PREFIX}{}", app.as_str().to_ascii_uppercase().replace('-', "_"))
}

impl Workload {
    /// Apps whose files it uses, as a process or in its container.
    #[must_use]
    pub fn used(&self) -> BTreeSet<Name> {
        let of_container = self.container.iter().flat_map(|container| &container.uses).map(|uses| uses.app.clone());
        self.uses.iter().cloned().chain(of_container).collect()
    }

    /// Checks what `app` uses.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub(super) fn check_uses(&self, app: &Name) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Workload(text));
        if self.container.is_some() && !self.uses.is_empty() {
            return wrong("uses is for a process; of a container it is container.uses, which says where".into());
        }
        if self.uses.len() > MAX_USES {
            return wrong(format!("it uses the files of {} apps; at most {MAX_USES}", self.uses.len()));
        }
        if self.used().contains(app) {
            return wrong(format!("uses names {app} itself, whose files are in CROSSDOCK_TREE"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_says_once_what_it_uses() {
        let vision: Name = "vision".parse().unwrap();
        let used = |text: &str| {
            let workload: Workload = serde_json::from_str(text).unwrap();
            workload.check_uses(&vision).map(|()| workload.used()).map_err(|e| e.to_string())
        };
        let model: BTreeSet<Name> = ["vision-model".parse().unwrap()].into();
        assert_eq!(used(r#"{"command": "run", "uses": ["vision-model"]}"#), Ok(model.clone()));
        let mounted = r#"{"container": {"uses": [{"app": "vision-model", "mountPath": "/model"}]}}"#;
        assert_eq!(used(mounted), Ok(model));
        assert_eq!(used(r#"{"command": "run"}"#), Ok(BTreeSet::new()));
        for (bad, why) in [
            (r#"{"command": "run", "uses": ["vision"]}"#, "names vision itself"),
            (r#"{"container": {}, "uses": ["vision-model"]}"#, "container.uses"),
        ] {
            assert!(used(bad).unwrap_err().contains(why), "{bad}");
        }
        assert_eq!(variable(&"vision-model".parse().unwrap()), "CROSSDOCK_USES_VISION_MODEL");
        let workload: Workload = serde_json::from_str(r#"{"command": "run"}"#).unwrap();
        assert!(!serde_json::to_string(&workload).unwrap().contains("uses"), "the default is not written");
    }
}

//! The commands that a release brings for the moment of its update.

use serde::{Deserialize, Serialize};

use super::{ManifestError, TreePath};
use crate::units::Span;

/// Longest run of a hook that a release may ask for.
pub const MAX_HOOK_TIMEOUT: Span = Span::from_secs(3600);
/// Exit code with which [`Hooks::pre_apply`] puts the update off (`EX_TEMPFAIL` of sysexits.h).
pub const PUT_OFF: i32 = 75;

/// Commands that run around the update to this release. Each runs at least once an update: when the agent or
/// the box goes down meanwhile it runs again. An agent that knows no hooks skips them, see
/// [`Manifest::min_agent`](super::Manifest::min_agent).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Once the release is on disk, before what runs is stopped. Exit code 0: go on. 75: not now; it is asked
    /// again after 30 s, then less and less often, and after the time that the rollout allows in all
    /// (`maxDeferralS`; none by default) the update goes ahead unasked. All else: the release failed on this
    /// node (`PreApplyFailed`), and what runs goes on untouched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_apply: Option<Hook>,
    /// During the trial, once the release is ready, before it counts as good. All but exit code 0: the node goes
    /// back (`PostApplyFailed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_apply: Option<Hook>,
}

/// A command in the tree of the release, run as its workload's user, with its environment and its limits
/// (of a release without one: as the agent, without limits).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// Program and arguments; the program as in [`Workload::command`](super::Workload::command).
    pub command: Vec<String>,
    /// Longest run, at most one hour. Beyond it the command is killed with all that it started, and has failed.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
}

fn default_timeout() -> Span {
    Span::from_secs(60)
}

impl Hooks {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Hooks::default()
    }

    /// Each with its name in `release.yaml`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Hook)> {
        let all = [("preApply", &self.pre_apply), ("postApply", &self.post_apply)];
        all.into_iter().filter_map(|(name, hook)| Some((name, hook.as_ref()?)))
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that cannot work.
    pub fn check(&self) -> Result<(), ManifestError> {
        for (name, hook) in self.iter() {
            let wrong = |text: String| Err(ManifestError::Hooks(format!("{name}: {text}")));
            let Some(program) = hook.command.first().filter(|program| !program.is_empty()) else {
                return wrong("its command is empty; name a program of the tree".into());
            };
            if hook.command.iter().any(|word| word.contains('\0')) {
                return wrong("its command must not hold a NUL character".into());
            }
            if !program.starts_with('/') {
                TreePath::try_from(program.clone())?;
            }
            if hook.timeout == Span::default() || hook.timeout > MAX_HOOK_TIMEOUT {
                return wrong(format!(
                    "its timeout is {}, it must be above 0 and at most {MAX_HOOK_TIMEOUT}",
                    hook.timeout
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_that_cannot_work_are_refused_with_the_reason() {
        let check = |text: &str| serde_json::from_str::<Hooks>(text).unwrap().check();
        let good = r#"{"preApply": {"command": ["bin/ask", "--now"]},
            "postApply": {"command": ["/bin/true"], "timeout": "1h"}}"#;
        check(good).unwrap();
        check("{}").unwrap();
        let hooks: Hooks = serde_json::from_str(good).unwrap();
        assert_eq!(hooks.pre_apply.unwrap().timeout, Span::from_secs(60));
        for (bad, why) in [
            (r#"{"preApply": {"command": []}}"#, "preApply: its command is empty"),
            (r#"{"postApply": {"command": [""]}}"#, "postApply: its command is empty"),
            (r#"{"preApply": {"command": ["../ask"]}}"#, "could leave the tree"),
            (r#"{"preApply": {"command": ["a", "b\u0000"]}}"#, "NUL"),
            (r#"{"preApply": {"command": ["a"], "timeout": "0s"}}"#, "above 0"),
            (r#"{"postApply": {"command": ["a"], "timeout": "61m"}}"#, "at most 1h"),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

//! What runs of a release, what of the box it gets, and what of that changes, in words for who signs it.

use std::collections::BTreeMap;

use proto::release::{Manifest, Workload};
use serde_json::Value;

use super::plain;

/// What stands in lines of its own, or in the first one.
const SAID_ELSEWHERE: [&str; 3] = ["secrets", "exec", "container"];
/// What decides how it is run and judged, and gives it nothing.
const GIVES_NOTHING: [&str; 15] = [
    "command",
    "args",
    "env",
    "user",
    "probes",
    "soak",
    "deadline",
    "stopGrace",
    "restart",
    "update",
    "requests",
    "antiAffinity",
    "container.image",
    "container.registry",
    "limits",
];

/// What runs.
pub(super) fn command(manifest: &Manifest) -> String {
    let Some(workload) = &manifest.workload else { return "nothing of it runs: files for other apps".into() };
    let words: Vec<&str> = std::iter::once(&workload.command)
        .chain(&workload.args)
        .map(String::as_str)
        .filter(|w| !w.is_empty())
        .collect();
    let text = short(&words.join(" "), 100);
    let user = workload.user.as_ref().map(|user| plain(user));
    let Some(container) = &workload.container else {
        return format!("runs \"{text}\" as {}", user.unwrap_or_else(|| "the agent's user".into()));
    };
    let image = match (&container.registry, &container.image) {
        (Some(registry), _) => format!("the image {} of a registry", plain(registry)),
        (None, Some(image)) => {
            format!("an image in its files, {} with {} layers", image.config.short(), image.layers.len())
        }
        (None, None) => "an image that it does not name".into(),
    };
    let text = if text.is_empty() { "its own command".to_owned() } else { format!("\"{text}\"") };
    format!("runs {text} in a container of {image}, as {}", user.unwrap_or_else(|| "the image's user".into()))
}

/// What of the box it is given, one line each, whole: what is cut off nobody would have seen.
pub(super) fn access(manifest: &Manifest) -> Vec<String> {
    let Some(workload) = &manifest.workload else { return vec![] };
    let fields = fields(workload).into_iter().filter(|(field, _)| !GIVES_NOTHING.contains(&field.as_str()));
    fields.map(|(field, value)| format!("         it gets {field} {}", short(&value.to_string(), usize::MAX))).collect()
}

/// What of it is another than before.
pub(super) fn changes(old: &Manifest, new: &Manifest) -> Option<String> {
    let (was, is) = match (&old.workload, &new.workload) {
        (Some(old), Some(new)) => (fields(old), fields(new)),
        (None, None) => return None,
        (Some(_), None) => return Some("         nothing of it runs any more".into()),
        (None, Some(_)) => return Some("         it RUNS from now on".into()),
    };
    let mut names: Vec<&str> =
        is.iter().filter(|(name, value)| was.get(*name) != Some(value)).map(|f| f.0.as_str()).collect();
    names.extend(was.keys().filter(|name| !is.contains_key(*name)).map(String::as_str));
    names.sort_unstable();
    (!names.is_empty()).then(|| format!("         the workload changes: {}", names.join(", ")))
}

/// The fields that stand there, those of a container as `container.image`.
fn fields(workload: &Workload) -> BTreeMap<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(workload) else { return BTreeMap::new() };
    let container = match fields.get_mut("container").map(Value::take) {
        Some(Value::Object(container)) => container,
        _ => serde_json::Map::new(),
    };
    let container = container.into_iter().map(|(name, value)| (format!("container.{name}"), value));
    let own = fields.into_iter().filter(|(name, _)| !SAID_ELSEWHERE.contains(&name.as_str()));
    own.chain(container).filter(|(_, value)| !is_empty(value)).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// What somebody else wrote, cut where it is long.
fn short(text: &str, most: usize) -> String {
    let cut = if text.chars().count() > most { "..." } else { "" };
    // Quotes stand in JSON as they are.
    text.chars()
        .take(most)
        .flat_map(|c| if c == '"' { vec![c] } else { c.escape_debug().collect() })
        .chain(cut.chars())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(workload: &str) -> Manifest {
        let text = format!(
            r#"{{"apiVersion": "crossdock.io/v1", "app": "vision", "version": "1.0.0", "files": [], "workload": {workload}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const DIGEST: &str = "sha256:4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c4f1c";

    #[test]
    fn signers_read_what_runs_and_what_it_gets() {
        let process = manifest(r#"{"command": "bin/run", "args": ["-v"]}"#);
        assert_eq!(command(&process), r#"runs "bin/run -v" as the agent's user"#);
        assert_eq!(access(&process), Vec::<String>::new());
        assert_eq!(command(&manifest("null")), "nothing of it runs: files for other apps");
        let container = manifest(&format!(
            r#"{{"gpus": {{"count": 1, "memory": "8Gi"}}, "limits": {{"memory": "1Gi"}}, "container": {{
                "registry": "registry.example/vision@{DIGEST}", "network": "host", "devices": ["/dev/video0"],
                "uses": [{{"app": "vision-model", "mountPath": "/model"}}]}}}}"#
        ));
        let registry = format!("the image registry.example/vision@{DIGEST} of a registry");
        assert_eq!(
            command(&container),
            format!("runs its own command in a container of {registry}, as the image's user")
        );
        let gets = access(&container).join("\n");
        for part in [
            r#"it gets container.network "host""#,
            r#"it gets container.devices ["/dev/video0"]"#,
            r#"it gets container.uses [{"app":"vision-model","mountPath":"/model"}]"#,
            r#"it gets gpus {"count":1,"exclusive":true,"memory":"8Gi"}"#,
        ] {
            assert!(gets.contains(part), "{part} in {gets}");
        }
        assert!(!gets.contains("limits") && gets.lines().count() == 4, "{gets}");
        let hostile = manifest(r#"{"command": "a\u001b[2Jb", "user": "x\ny"}"#);
        assert_eq!(command(&hostile), r#"runs "a\u{1b}[2Jb" as x\ny"#);
    }

    #[test]
    fn what_changes_is_named() {
        let one = manifest(&format!(r#"{{"container": {{"image": {{"config": "{DIGEST}", "layers": []}}}}}}"#));
        let other = DIGEST.replace("4f1c", "5e2d");
        let two = manifest(&format!(
            r#"{{"env": {{"A": "1"}}, "container": {{"image": {{"config": "{other}", "layers": []}}, "writableRoot": true}}}}"#
        ));
        let says = "         the workload changes: container.image, container.writableRoot, env";
        assert_eq!(changes(&one, &two).as_deref(), Some(says));
        assert_eq!(changes(&two, &one).as_deref(), Some(says));
        assert_eq!(changes(&one, &one), None);
        assert_eq!(changes(&one, &manifest("null")).as_deref(), Some("         nothing of it runs any more"));
        assert_eq!(changes(&manifest("null"), &one).as_deref(), Some("         it RUNS from now on"));
    }
}

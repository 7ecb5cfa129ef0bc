//! `crossdock describe`: one object in full, with what happened to it.

use proto::{
    name::ReleaseName,
    object::{Node, Release, ReleaseSpec},
};
use serde_json::Value;

use super::{
    Context,
    client::Client,
    get,
    kinds::{KindInfo, ago, text},
    output,
};
use crate::planner::room;

/// `crossdock describe`.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// node, site, release, rollout or jointoken
    kind: String,
    /// Its name; for a release APP@VERSION will do.
    name: String,
}

/// Runs the command.
///
/// # Errors
/// When the object is not there or the hub cannot be asked.
pub async fn run(args: DescribeArgs, context: &Context) -> anyhow::Result<()> {
    let kind = KindInfo::find(&args.kind)?;
    let client = context.client()?;
    let name = args.name.replacen('@', ".", 1);
    let object = client.get_value(kind.plural, &name).await?;
    let mut out = String::new();
    render(&object, 0, &mut out);
    if let ("Node", Ok(node)) = (kind.kind, serde_json::from_value::<Node>(object)) {
        out.push_str(&room(&node, &client).await?);
    }
    let events = client.list("events", None).await?.items;
    let mut about: Vec<_> = events
        .iter()
        .filter(|e| text(e, "/spec/involvedKind") == kind.kind && text(e, "/spec/involvedName") == name)
        .collect();
    about.sort_by_key(|e| text(e, "/spec/lastAt"));
    out.push_str("events:\n");
    if about.is_empty() {
        out.push_str("  none\n");
    }
    let now = get::now();
    let rows: Vec<Vec<String>> = about
        .iter()
        .map(|e| {
            let times = match text(e, "/spec/count").as_str() {
                "1" => String::new(),
                n => format!(" (x{n})"),
            };
            let head = [ago(e, "/spec/lastAt", now), text(e, "/spec/type"), text(e, "/spec/reason")];
            let mut row = vec![String::new()];
            row.extend(head);
            row.push(text(e, "/spec/message") + &times);
            row
        })
        .collect();
    out.push_str(&output::align(&rows));
    output::print(&out);
    Ok(())
}

/// What apps ask of a node, and what is left.
async fn room(node: &Node, client: &Client) -> anyhow::Result<String> {
    let releases: Vec<Release> = client.list_of(None).await?;
    let releases = releases.into_iter().map(|release| {
        let ReleaseSpec { app, version, .. } = &release.spec;
        (ReleaseName { app: app.clone(), version: version.clone() }, release)
    });
    let Some([memory, cpu]) = room::words(node, &releases.collect()) else { return Ok(String::new()) };
    Ok(format!("room:\n  memory: {memory}\n  cpu: {cpu}\n"))
}

/// Nested keys, indented; long lists stay readable.
fn render(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = output::plain(key);
                match value {
                    Value::Object(m) if m.is_empty() => {}
                    Value::Array(a) if a.is_empty() => {}
                    Value::Object(_) | Value::Array(_) => {
                        out.push_str(&format!("{indent}{key}:\n"));
                        render(value, depth + 1, out);
                    }
                    scalar => out.push_str(&format!("{indent}{key}: {}\n", plain(scalar))),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(_) | Value::Array(_) => {
                        let mut inner = String::new();
                        render(item, depth + 1, &mut inner);
                        out.push_str(&format!("{indent}-{}", inner.get(indent.len() + 1..).unwrap_or(&inner)));
                    }
                    scalar => out.push_str(&format!("{indent}- {}\n", plain(scalar))),
                }
            }
        }
        scalar => out.push_str(&format!("{indent}{}\n", plain(scalar))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => output::plain(text).into_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_object_holds_cannot_play_with_the_terminal() {
        let object = json!({"a": "x\u{1b}[2Jy", "b": {"k\u{7}": ["\u{9b}31m", {"c": "one\ntwo"}]}, "n": 5});
        let mut out = String::new();
        render(&object, 0, &mut out);
        assert!(!out.contains(|c: char| c.is_control() && c != '\n'), "{out:?}");
        assert!(out.contains("a: x\\u{1b}[2Jy\n") && out.contains("c: one\\ntwo\n"), "{out}");
    }
}

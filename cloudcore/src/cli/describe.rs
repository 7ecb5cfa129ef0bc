//! `crossdock describe`: one object in full, with what happened to it.

use std::fmt::Write as _;

use proto::object::{EventSpec, Node, Object, Rollout};
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    client::{Client, object_path},
    exit::{Exit, Failure},
    get, kinds,
    kinds::KindInfo,
    output, table,
};

/// Most events shown, the latest ones.
const MAX_EVENTS: usize = 20;

/// `crossdock describe`.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// Kind, or KIND/NAME
    kind: String,
    /// Names
    names: Vec<String>,
}

/// Describes objects.
///
/// # Errors
/// When the hub refuses or cannot be reached.
pub async fn run(args: DescribeArgs, context: &Context) -> anyhow::Result<()> {
    let (kind, names) = kinds::kind_and_names(&args.kind, &args.names)?;
    if names.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("name what to describe: crossdock describe {} NAME", args.kind)));
    }
    let client = context.client()?;
    for (i, name) in names.iter().enumerate() {
        let object: Value = client.call(Method::GET, &object_path(kind.plural, name), &[], None).await?;
        let mut text = if i > 0 { "\n".to_owned() } else { String::new() };
        text.push_str(&describe(kind, &object)?);
        text.push_str(&events(&client, kind, name).await?);
        output::print(&output::plain(&text))?;
    }
    Ok(())
}

fn describe(kind: KindInfo, object: &Value) -> anyhow::Result<String> {
    let mut text = section("", object.get("metadata"))?;
    text.insert_str(0, &format!("kind: {}\n", kind.kind));
    match kind.kind {
        "Node" => text.push_str(&node(&serde_json::from_value(object.clone())?)?),
        "Rollout" => text.push_str(&rollout(&serde_json::from_value(object.clone())?)?),
        _ => {
            text.push_str(&section("Spec", object.get("spec"))?);
            text.push_str(&section("Status", object.get("status"))?);
        }
    }
    Ok(text)
}

/// A part of the object as YAML under a title; nothing when there is nothing in it.
fn section(title: &str, value: Option<&Value>) -> anyhow::Result<String> {
    let empty = |v: &&Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
    let Some(value) = value.filter(|v| !empty(v)) else { return Ok(String::new()) };
    let yaml = serde_saphyr::to_string(value)?;
    if title.is_empty() {
        return Ok(yaml);
    }
    let indented: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    Ok(format!("{title}:\n{indented}"))
}

fn node(node: &Node) -> anyhow::Result<String> {
    let now = output::now();
    let status = &node.status;
    let mut text = format!("site: {}\n", node.spec.site);
    let seen =
        status.last_seen.map_or_else(|| "never".into(), |at| format!("{at} ({} ago)", output::age(Some(at), now)));
    writeln!(text, "phase: {}\nlast seen: {seen}", status.phase)?;
    writeln!(text, "remote: {}", status.remote.as_deref().unwrap_or("-"))?;
    let behind = node.metadata.generation.saturating_sub(status.observed_generation);
    let note = if behind > 0 { " (the agent has not seen the newest assignment)" } else { "" };
    writeln!(text, "assignment: {} of {}{note}", status.observed_generation, node.metadata.generation)?;
    text.push_str(&section("Identity", status.identity.as_ref().map(serde_json::to_value).transpose()?.as_ref())?);
    text.push_str(&section("System", status.info.as_ref().map(serde_json::to_value).transpose()?.as_ref())?);
    text.push_str(&section("Usage", status.usage.as_ref().map(serde_json::to_value).transpose()?.as_ref())?);
    let conditions = status.conditions.iter().map(|c| {
        let since = output::age(Some(c.last_transition_time), now);
        vec![c.r#type.clone(), c.status.to_string(), c.reason.clone(), since, c.message.clone()]
    });
    text.push_str(&titled("Conditions", &["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], conditions.collect()));
    let assigned = node.spec.apps.iter().map(|(app, a)| {
        let rollout = a.rollout.clone().unwrap_or_else(|| "-".into());
        vec![app.to_string(), a.version.to_string(), a.digest.short(), rollout]
    });
    text.push_str(&titled("Assigned", &["APP", "VERSION", "DIGEST", "ROLLOUT"], assigned.collect()));
    let workloads = status.workloads.iter().map(|(app, w)| {
        let running = w.running.as_ref();
        let restarts = running.map_or_else(|| "-".into(), |r| r.restarts.to_string());
        let exit = running.and_then(|r| r.last_exit.as_ref());
        let exit = exit.map_or_else(String::new, |e| {
            let how = e.code.map(|c| format!("code {c}")).or(e.signal.map(|s| format!("signal {s}")));
            format!(" Last exit: {} {} ago. {}", how.unwrap_or_default(), output::age(Some(e.at), now), e.message)
        });
        vec![table::workload(app.as_str(), w), restarts, output::age(Some(w.since), now), w.message.clone() + &exit]
    });
    text.push_str(&titled("Workloads", &["APP", "RESTARTS", "SINCE", "MESSAGE"], workloads.collect()));
    Ok(text)
}

/// A rollout: where it stands and each of its nodes.
///
/// # Errors
/// Never in practice: writing to a string.
pub fn rollout(rollout: &Rollout) -> anyhow::Result<String> {
    let status = &rollout.status;
    let mut text =
        format!("release: {}\nselector: {}\nphase: {}\n", rollout.release(), rollout.spec.selector, status.phase);
    if !status.message.is_empty() {
        writeln!(text, "message: {}", status.message)?;
    }
    if let Some(digest) = status.digest {
        writeln!(text, "digest: {digest}")?;
    }
    if let Some((start, end)) = status.started_at.zip(status.finished_at) {
        writeln!(text, "took: {}", output::span(end.as_second().saturating_sub(start.as_second())))?;
    }
    let nodes = status
        .nodes
        .iter()
        .map(|(name, n)| vec![name.to_string(), n.phase.to_string(), n.reason.clone(), n.message.clone()]);
    text.push_str(&titled("Nodes", &["NAME", "PHASE", "REASON", "MESSAGE"], nodes.collect()));
    Ok(text)
}

fn titled(title: &str, headers: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let table = output::columns(headers, &rows);
    let indented: String = table.lines().map(|line| format!("  {line}\n")).collect();
    format!("{title}:\n{indented}")
}

async fn events(client: &Client, kind: KindInfo, name: &str) -> anyhow::Result<String> {
    let Ok(events) = kinds::find("events") else { return Ok(String::new()) };
    let list = get::list(client, events, None).await?;
    let read = list.items.into_iter().filter_map(|v| serde_json::from_value::<Object<EventSpec>>(v).ok());
    let about = |e: &Object<EventSpec>| e.spec.involved_kind == kind.kind && e.spec.involved_name == name;
    let mut found: Vec<_> = read.filter(about).collect();
    found.sort_by_key(|e| e.spec.last_at);
    let now = output::now();
    let rows = found.iter().skip(found.len().saturating_sub(MAX_EVENTS)).map(|e| {
        let spec = &e.spec;
        let seen = format!("{} ago x{}", output::age(Some(spec.last_at), now), spec.count);
        vec![seen, spec.r#type.to_string(), spec.reason.clone(), spec.source.clone(), spec.message.clone()]
    });
    Ok(titled("Events", &["SEEN", "TYPE", "REASON", "SOURCE", "MESSAGE"], rows.collect()))
}

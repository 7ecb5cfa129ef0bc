//! `crossdock get`: lists, single objects, and `-w`.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use proto::{
    env::{SystemClock, WallClock as _},
    selector::Selector,
};
use serde_json::{Value, json};

use super::{
    Context,
    client::Client,
    exit::{self, Exit, is_final},
    kinds::{KindInfo, text},
    output::{self, Format},
};

/// `crossdock get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// nodes, sites, releases, rollouts, jointokens or events
    kind: String,
    /// Only these.
    names: Vec<String>,
    /// Label selector, such as site=hz-01,line
    #[arg(short = 'l', long)]
    selector: Option<Selector>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Go on with changes as they come.
    #[arg(short, long)]
    watch: bool,
}

impl GetArgs {
    /// Whether an object is the one that was named, or none was.
    fn wants(&self, kind: &KindInfo, o: &Value) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| is_named(kind, o, name))
    }
}

fn is_named(kind: &KindInfo, object: &Value, name: &str) -> bool {
    output_name(kind, object) == name || object_name(object) == name
}

/// Time of day, for ages.
#[must_use]
pub fn now() -> Timestamp {
    SystemClock.now()
}

/// Runs the command.
///
/// # Errors
/// When the object is not there or the hub cannot be asked.
pub async fn run(args: GetArgs, context: &Context) -> anyhow::Result<()> {
    let kind = KindInfo::find(&args.kind)?;
    let client = context.client()?;
    let listed = client.list(kind.plural, args.selector.as_ref()).await?;
    let is_wanted = |o: &Value| args.wants(kind, o);
    match args.names.as_slice() {
        [] => output::list(args.output, kind, &sorted(kind, listed.items.clone()), now())?,
        names => {
            let mut objects = vec![];
            for name in names {
                objects.push(match listed.items.iter().find(|o| is_named(kind, o, name)) {
                    Some(object) => object.clone(),
                    None => client.get_value(kind.plural, name).await?, // says why not
                });
            }
            match (args.output, objects.as_slice()) {
                (Format::Json | Format::Yaml, [object]) => output::structured(args.output, object)?,
                (format, objects) => output::list(format, kind, objects, now())?,
            }
        }
    }
    if !args.watch {
        return Ok(());
    }
    let wanted: Vec<Value> = listed.items.into_iter().filter(is_wanted).collect();
    follow(&args, kind, &client, Known::of(wanted), listed.resource_version).await
}

/// Shows changes until nobody looks any more. When the watch is lost or the hub restarts, what happened
/// meanwhile is found by listing again.
async fn follow(
    args: &GetArgs,
    kind: &KindInfo,
    client: &Client,
    mut known: Known,
    mut since: String,
) -> anyhow::Result<()> {
    let selector = args.selector.as_ref();
    loop {
        match client.watch(kind.plural, &since, selector).await {
            Ok(changes) => {
                pin_mut!(changes);
                // An error (such as 410, or a broken line) and the end come to the same.
                while let Some(Ok(change)) = changes.next().await {
                    let (word, object) = (text(&change, "/type"), change.get("object"));
                    let Some(object) = object.filter(|o| args.wants(kind, o)) else { continue };
                    if known.take(&word, object) {
                        show(args.output, kind, &word, object)?;
                    }
                }
            }
            // Refused: the version is too old by now. All else is as final as it is for a list.
            Err(e) if is_final(&e) && exit::code(&e) != Exit::Refused as u8 => return Err(e),
            Err(_) => {}
        }
        let listed = loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match client.list(kind.plural, selector).await {
                Ok(listed) => break listed,
                Err(e) if is_final(&e) => return Err(e),
                Err(_) => {} // the hub is away for a moment
            }
        };
        since = listed.resource_version;
        let wanted = listed.items.into_iter().filter(|o| args.wants(kind, o)).collect();
        for (word, object) in known.catch_up(wanted) {
            show(args.output, kind, word, &object)?;
        }
    }
}

fn show(format: Format, kind: &KindInfo, word: &str, object: &Value) -> anyhow::Result<()> {
    let change = || json!({"type": word, "object": object});
    match format {
        Format::Json => output::print(&format!("{}\n", change())),
        Format::Yaml => output::print(&format!("---\n{}", serde_saphyr::to_string(&change())?)),
        Format::Name => output::print(&format!("{}/{}\n", kind.plural, object_name(object))),
        format => {
            let gone = if word == "DELETED" { "   (deleted)" } else { "" };
            let row = output::table(kind, std::slice::from_ref(object), format == Format::Wide, false, now());
            output::print(&format!("{}{gone}\n", row.trim_end()));
        }
    }
    Ok(())
}

/// What was shown, by name, so that a new list says what is new.
struct Known(BTreeMap<String, Value>);

impl Known {
    fn of(objects: Vec<Value>) -> Known {
        Known(objects.into_iter().map(|o| (object_name(&o).to_owned(), o)).collect())
    }

    /// Takes note of a change; whether there is anything to show.
    fn take(&mut self, word: &str, object: &Value) -> bool {
        let name = object_name(object);
        if word == "DELETED" {
            return self.0.remove(name).is_some();
        }
        self.0.insert(name.to_owned(), object.clone());
        true
    }

    /// What happened since, as a watch would have told it.
    fn catch_up(&mut self, objects: Vec<Value>) -> Vec<(&'static str, Value)> {
        let Known(mut before) = std::mem::replace(self, Known::of(objects));
        let mut changes = vec![];
        for (name, object) in &self.0 {
            let version = |o: &Value| text(o, "/metadata/resourceVersion");
            match before.remove(name) {
                None => changes.push(("ADDED", object.clone())),
                Some(old) if version(&old) != version(object) => changes.push(("MODIFIED", object.clone())),
                Some(_) => {}
            }
        }
        changes.extend(before.into_values().map(|o| ("DELETED", o)));
        changes
    }
}

fn object_name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// The first cell: a release also answers to `app@version`.
fn output_name(kind: &KindInfo, object: &Value) -> String {
    kind.cells(object, Timestamp::UNIX_EPOCH).into_iter().next().unwrap_or_default()
}

/// Events by time, everything else as the hub has it, by name.
fn sorted(kind: &KindInfo, mut items: Vec<Value>) -> Vec<Value> {
    if kind.kind == "Event" {
        items.sort_by_key(|e| e.pointer("/spec/lastAt").and_then(Value::as_str).map(str::to_owned));
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_list_tells_what_the_lost_watch_did_not() {
        let object =
            |name: &str, version: u8| json!({"metadata": {"name": name, "resourceVersion": version.to_string()}});
        let mut known = Known::of(vec![object("a", 1), object("b", 2), object("c", 3)]);
        assert!(known.take("MODIFIED", &object("c", 4)));
        assert!(known.take("DELETED", &object("b", 5)));
        assert!(!known.take("DELETED", &object("b", 5)), "what was never shown does not go");
        assert!(known.take("ADDED", &object("d", 6)));
        let changes = known.catch_up(vec![object("a", 7), object("c", 4), object("e", 8)]);
        let told: Vec<_> = changes.iter().map(|(word, o)| (*word, object_name(o))).collect();
        assert_eq!(told, [("MODIFIED", "a"), ("ADDED", "e"), ("DELETED", "d")]);
        assert!(known.catch_up(vec![object("a", 7), object("c", 4), object("e", 8)]).is_empty());
    }
}

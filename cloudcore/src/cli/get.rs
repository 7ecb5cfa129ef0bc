//! `crossdock get`: objects in short, once or as they change.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    client::{Client, ClientError, collection_path, object_path},
    exit::{Exit, Failure},
    kinds::{self, KindInfo},
    output::{self, Format},
    table,
};

/// How long a watch waits before it tries again.
const RETRY: Duration = Duration::from_secs(1);

/// `crossdock get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Kind (nodes, sites, releases, rollouts, jointokens, events), or KIND/NAME
    kind: String,
    /// Names; all objects by default
    names: Vec<String>,
    /// Only those that a selector names, such as site=hz-01,gpu
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "names")]
    selector: Option<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Go on with every change
    #[arg(short, long)]
    watch: bool,
}

/// Shows objects.
///
/// # Errors
/// When the hub refuses or cannot be reached.
pub async fn run(args: GetArgs, context: &Context) -> anyhow::Result<()> {
    let (kind, names) = kinds::kind_and_names(&args.kind, &args.names)?;
    let client = context.client()?;
    if args.watch {
        if names.len() > 1 {
            return Err(Failure::new(Exit::Usage, "watch one object or a selector, not several names"));
        }
        let selector = names.first().map(|name| format!("name={name}")).or(args.selector);
        return watch(&client, kind, selector.as_deref(), args.output).await;
    }
    if names.is_empty() {
        let mut list = list(&client, kind, args.selector.as_deref()).await?;
        sort(kind, &mut list.items);
        let whole = match args.output {
            Format::Json | Format::Yaml => Some(list.whole()),
            _ => None,
        };
        return show(kind, &list.items, whole.as_ref(), args.output);
    }
    let mut objects = vec![];
    for name in &names {
        objects.push(client.call::<Value>(Method::GET, &object_path(kind.plural, name), &[], None).await?);
    }
    let whole = match objects.as_slice() {
        [one] => one.clone(),
        _ => serde_json::json!({"apiVersion": proto::API_VERSION, "kind": "List", "items": objects}),
    };
    show(kind, &objects, Some(&whole), args.output)
}

/// Objects and the version they were read at.
pub struct Listed {
    kind: KindInfo,
    /// The objects.
    pub items: Vec<Value>,
    /// Where a watch goes on.
    pub resource_version: String,
}

impl Listed {
    fn whole(&self) -> Value {
        serde_json::json!({
            "apiVersion": proto::API_VERSION,
            "kind": format!("{}List", self.kind.kind),
            "metadata": {"resourceVersion": self.resource_version},
            "items": self.items,
        })
    }
}

/// Reads all objects of a kind, or those that a selector names.
///
/// # Errors
/// As [`ClientError`] has them.
pub async fn list(client: &Client, kind: KindInfo, selector: Option<&str>) -> Result<Listed, ClientError> {
    let query: Vec<_> = selector.map(|s| ("labelSelector", s.to_owned())).into_iter().collect();
    let mut list: Value = client.call(Method::GET, &collection_path(kind.plural), &query, None).await?;
    let version = list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
    let resource_version = version.to_owned();
    let items = list.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    Ok(Listed { kind, items, resource_version })
}

/// Events by time, all else as it comes (by name).
fn sort(kind: KindInfo, items: &mut [Value]) {
    if kind.kind == "Event" {
        let time = |v: &Value| {
            let text = v.pointer("/spec/lastAt").and_then(Value::as_str).unwrap_or_default();
            text.parse::<jiff::Timestamp>().unwrap_or_default()
        };
        items.sort_by_key(time);
    }
}

fn show(kind: KindInfo, items: &[Value], whole: Option<&Value>, format: Format) -> anyhow::Result<()> {
    let whole = whole.unwrap_or(&Value::Null);
    match format {
        Format::Json => output::print(&(serde_json::to_string_pretty(whole)? + "\n")),
        Format::Yaml => output::print(&serde_saphyr::to_string(whole)?),
        Format::Name => output::print(&items.iter().map(|o| name_line(kind, o)).collect::<String>()),
        Format::Table | Format::Wide if items.is_empty() => {
            eprintln!("no {} found", kind.plural);
            Ok(())
        }
        Format::Table | Format::Wide => output::print(&table_of(kind, items, format == Format::Wide)),
    }
}

fn name_line(kind: KindInfo, object: &Value) -> String {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?");
    format!("{}/{name}\n", kind.kind.to_ascii_lowercase())
}

/// A table of objects.
#[must_use]
pub fn table_of(kind: KindInfo, items: &[Value], wide: bool) -> String {
    let now = output::now();
    let rows: Vec<_> = items.iter().map(|o| table::row(kind, o, wide, now)).collect();
    output::columns(&table::headers(kind, wide), &rows)
}

/// Shows what is, then every change; starts over by itself when the hub was away.
async fn watch(client: &Client, kind: KindInfo, selector: Option<&str>, format: Format) -> anyhow::Result<()> {
    let mut first = true;
    loop {
        match watch_once(client, kind, selector, format, first).await {
            Ok(()) => {}
            Err(error) if !first && is_passing(&error) => {
                eprintln!("watch interrupted: {error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
        first = false;
    }
}

/// Whether trying again may help.
fn is_passing(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ClientError::Unreachable { .. } | ClientError::Refused { code: 410 | 500..=599, .. })
    )
}

async fn watch_once(
    client: &Client,
    kind: KindInfo,
    selector: Option<&str>,
    format: Format,
    show_list: bool,
) -> anyhow::Result<()> {
    let list = list(client, kind, selector).await?;
    let mut changes = client.watch(kind.plural, selector, &list.resource_version).await?;
    let mut widths: Vec<usize> = vec![];
    let mut row = |event: &str, object: &Value| -> anyhow::Result<()> {
        match format {
            Format::Json => output::print(&format!("{}\n", serde_json::json!({"type": event, "object": object}))),
            Format::Yaml => output::print(&format!("---\n{}", serde_saphyr::to_string(object)?)),
            Format::Name => output::print(&name_line(kind, object)),
            Format::Table | Format::Wide => {
                let wide = format == Format::Wide;
                let mut cells = vec![event.to_owned()];
                cells.extend(table::row(kind, object, wide, output::now()));
                let fresh = widths.is_empty();
                widths.resize(cells.len(), 8);
                widths.iter_mut().zip(&cells).for_each(|(w, cell)| *w = (*w).max(cell.chars().count()));
                if fresh && show_list {
                    let headers = std::iter::once("EVENT").chain(table::headers(kind, wide)).map(str::to_owned);
                    output::print(&output::line(&headers.collect::<Vec<_>>(), &widths))?;
                }
                output::print(&output::line(&cells, &widths))
            }
        }
    };
    for object in list.items.iter().filter(|_| show_list) {
        row("PRESENT", object)?;
    }
    while let Some(change) = changes.next().await {
        let change = change?;
        let text = |key: &str| change.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("type") == "ERROR" {
            return Ok(()); // fell behind: the caller lists again
        }
        row(text("type"), change.get("object").unwrap_or(&Value::Null))?;
    }
    Ok(())
}

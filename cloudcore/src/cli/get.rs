//! `crossdock get`: lists, single objects, and `-w`.

use anyhow::Context as _;
use futures_util::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use proto::{
    env::{SystemClock, WallClock as _},
    selector::Selector,
};
use serde_json::Value;

use super::{
    Context,
    kinds::KindInfo,
    output::{self, Format},
};

/// `crossdock get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// nodes, sites, releases, rollouts, jointokens or events
    kind: String,
    /// Only this one.
    name: Option<String>,
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
    let is_wanted =
        |o: &Value| args.name.as_deref().is_none_or(|name| output_name(kind, o) == name || object_name(o) == name);
    match &args.name {
        Some(name) => {
            let found = listed.items.iter().find(|o| is_wanted(o)).cloned();
            let object = match found {
                Some(object) => object,
                None => client.get_value(kind.plural, name).await?, // says why not
            };
            match args.output {
                Format::Json | Format::Yaml => output::structured(args.output, &object)?,
                format => output::list(format, kind, &[object], now())?,
            }
        }
        None => output::list(args.output, kind, &sorted(kind, listed.items), now())?,
    }
    if !args.watch {
        return Ok(());
    }
    let changes = client.watch(kind.plural, &listed.resource_version, args.selector.as_ref()).await?;
    pin_mut!(changes);
    while let Some(change) = changes.next().await {
        let change = change.context("follow the changes")?;
        let Some(object) = change.get("object").filter(|o| is_wanted(o)) else { continue };
        match args.output {
            Format::Json => output::print(&format!("{change}\n")),
            Format::Yaml => output::print(&format!("---\n{}", serde_saphyr::to_string(&change)?)),
            Format::Name => output::print(&format!("{}/{}\n", kind.plural, object_name(object))),
            format => {
                let gone =
                    if change.get("type").and_then(Value::as_str) == Some("DELETED") { "   (deleted)" } else { "" };
                let row = output::table(kind, std::slice::from_ref(object), format == Format::Wide, false, now());
                output::print(&format!("{}{gone}\n", row.trim_end()));
            }
        }
    }
    Ok(())
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

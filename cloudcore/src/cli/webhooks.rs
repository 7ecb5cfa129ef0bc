//! `crossdock webhooks`: who is told of events, how that goes, and another chance for what was given up.

use proto::{name::Name, object::EventSpec};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context,
    kinds::text,
    output::{self, Format},
};

/// `crossdock webhooks`.
#[derive(Debug, clap::Subcommand)]
pub enum WebhooksCommand {
    /// Show the webhooks of hub.yaml and how each fares
    List {
        /// json or yaml instead of columns.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Show the deliveries of one that were given up, and why
    Dead {
        /// Its name.
        name: Name,
        /// json or yaml instead of columns.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Deliver again what was given up, and what waits at once
    Retry {
        /// Its name.
        name: Name,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no such webhook, or the hub cannot be reached.
pub async fn run(command: WebhooksCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        WebhooksCommand::List { output } => {
            let listed: Value =
                client.send("list webhooks", client.request(Method::GET, "webhooks")).await?.json().await?;
            show(&listed, output, &["NAME", "URL", "LAST SUCCESS", "WAITING", "DEAD", "FAILURE"], |item| {
                ["/name", "/url", "/succeededAt", "/waiting", "/deadLetters", "/failure"].map(|p| cell(item, p)).into()
            })
        }
        WebhooksCommand::Dead { name, output } => {
            let request = client.request(Method::GET, &format!("webhooks/{name}/deadletters"));
            let listed: Value = client.send(&format!("list dead letters of {name}"), request).await?.json().await?;
            show(&listed, output, &["DELIVERY", "SINCE", "ATTEMPTS", "ABOUT", "EVENT", "REASON"], |item| {
                let spec = item.pointer("/event/spec").cloned();
                let spec = spec.and_then(|spec| serde_json::from_value::<EventSpec>(spec).ok());
                let about = spec.as_ref().map(|spec| format!("{}/{}", spec.involved_kind, spec.involved_name));
                let event = spec.map(|spec| spec.reason).unwrap_or_default();
                let [id, since, attempts, reason] = ["/id", "/since", "/attempts", "/reason"].map(|p| cell(item, p));
                vec![id, since, attempts, about.unwrap_or_default(), event, reason]
            })
        }
        WebhooksCommand::Retry { name } => {
            let request = client.request(Method::POST, &format!("webhooks/{name}/retry")).json(&json!({}));
            let answer: Value = client.send(&format!("retry webhook {name}"), request).await?.json().await?;
            println!("webhook {name}: {} dead letters are delivered again", cell(&answer, "/retried"));
            Ok(())
        }
    }
}

fn show(
    listed: &Value,
    output: Option<Format>,
    heads: &[&str],
    cells: impl Fn(&Value) -> Vec<String>,
) -> anyhow::Result<()> {
    if let Some(format @ (Format::Json | Format::Yaml)) = output {
        return output::structured(format, listed);
    }
    let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        eprintln!("There are none.");
        return Ok(());
    }
    let mut rows = vec![heads.iter().map(|head| (*head).to_owned()).collect()];
    rows.extend(items.iter().map(cells));
    output::print(&output::align(&rows));
    Ok(())
}

/// A text, or `-`.
fn cell(item: &Value, pointer: &str) -> String {
    Some(text(item, pointer)).filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into())
}

//! `crossdock audit`: who changed what at the hub, and whether that record is whole.

use reqwest::Method;
use serde_json::Value;

use super::{
    Context,
    exit::{CliError, Exit},
    kinds::text,
    output::{self, Format},
};
use crate::audit::Head;

/// `crossdock audit`.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Show the newest lines, the newest first
    List(ListArgs),
    /// Show the end of the log, HASH@SEQUENCE: keep it elsewhere, and verify with it later
    Head,
    /// Whether the log is whole: nothing changed, left out or put in; with --head, nothing cut off either
    Verify {
        /// An end of the log that was kept elsewhere. Repeatable.
        #[arg(long = "head", value_name = "HASH@SEQUENCE")]
        heads: Vec<Head>,
    },
}

/// `crossdock audit list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// So many lines, 1 to 1000.
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: usize,
    /// Lines before this sequence.
    #[arg(long)]
    before: Option<u64>,
    /// Of this user alone.
    #[arg(long)]
    user: Option<String>,
    /// With this verb alone, such as delete or login.
    #[arg(long)]
    verb: Option<String>,
    /// About this kind alone, such as rollouts.
    #[arg(long)]
    kind: Option<String>,
    /// About the object of this name alone.
    #[arg(long)]
    name: Option<String>,
    /// json or yaml instead of columns.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Runs the command.
///
/// # Errors
/// When the hub refuses or cannot be reached, or the log is not whole.
pub async fn run(command: AuditCommand, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        AuditCommand::List(args) => {
            let mut query = vec![("limit", args.limit.to_string())];
            query.extend(args.before.map(|before| ("before", before.to_string())));
            let fields = [("user", args.user), ("verb", args.verb), ("kind", args.kind), ("name", args.name)];
            query.extend(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
            let request = client.request(Method::GET, "audit").query(&query);
            let listed: Value = client.send("read the audit log", request).await?.json().await?;
            if let Some(format @ (Format::Json | Format::Yaml)) = args.output {
                return output::structured(format, &listed);
            }
            let items = listed.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let heads = ["SEQ", "TIME", "USER", "FROM", "VERB", "KIND", "NAME", "OUTCOME", "DETAIL"];
            let mut rows = vec![heads.map(str::to_owned).to_vec()];
            rows.extend(items.iter().map(row));
            output::print(&output::align(&rows));
            Ok(())
        }
        AuditCommand::Head => {
            let request = client.request(Method::GET, "audit/head");
            let head: Value = client.send("read the end of the audit log", request).await?.json().await?;
            println!("{}", text(&head, "/head"));
            Ok(())
        }
        AuditCommand::Verify { heads } => {
            let heads: Vec<String> = heads.iter().map(ToString::to_string).collect();
            let request = client.request(Method::GET, "audit/verify").query(&[("head", heads.join(","))]);
            let report: Value = client.send("verify the audit log", request).await?.json().await?;
            if report.get("whole").and_then(Value::as_bool) != Some(true) {
                let text = format!("the audit log is not whole: {}", text(&report, "/problem"));
                return Err(CliError::new(Exit::Failed, text).into());
            }
            println!("whole, lines {} to {}", report.get("first").unwrap_or(&Value::Null), text(&report, "/head"));
            Ok(())
        }
    }
}

fn row(line: &Value) -> Vec<String> {
    let seq = line.get("seq").map(ToString::to_string).unwrap_or_default();
    let fields = ["/time", "/user", "/from", "/verb", "/kind", "/name", "/outcome", "/detail"];
    std::iter::once(seq).chain(fields.map(|pointer| text(line, pointer))).collect()
}

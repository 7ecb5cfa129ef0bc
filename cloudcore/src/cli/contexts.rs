//! Which hub the commands talk to: a file of contexts, and `crossdock login`.
//!
//! The file is `$CROSSDOCK_CONFIG`, else `~/.config/crossdock/contexts.yaml`, readable by its owner
//! alone. `CROSSDOCK_SERVER`, `CROSSDOCK_TOKEN` and `CROSSDOCK_CA` (a path) override the context in use (or
//! the one that `CROSSDOCK_CONTEXT` names), for pipelines. Nothing overrides `--context`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{
    client::Client,
    exit::{CliError, Exit},
    oidc,
};
use crate::bounded;

/// Largest file that is read here, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Contexts {
    /// The one in use.
    #[serde(default)]
    current: String,
    /// All, by name.
    #[serde(default)]
    contexts: BTreeMap<String, HubContext>,
}

/// One hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HubContext {
    server: String,
    token: String,
    /// PEM.
    ca: String,
    /// What renews the token, where somebody logged in at a provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oidc: Option<oidc::Session>,
}

/// `crossdock login`.
#[derive(Debug, clap::Args)]
pub struct LoginArgs {
    /// URL of the hub's API, such as https://hub.example.com:8443
    url: String,
    /// Bearer token.
    #[arg(long, env = "CROSSDOCK_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the bearer token, such as admin.token of the hub's data folder.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The hub's CA, ca.pem of its data folder.
    #[arg(long)]
    ca: PathBuf,
    /// Name of the context. Default: the host of the URL.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    oidc: oidc::OidcArgs,
}

/// `crossdock context`.
#[derive(Debug, clap::Subcommand)]
pub enum ContextCommand {
    /// Show all; the one in use has a star.
    List,
    /// Use another from now on.
    Use {
        /// Its name.
        name: String,
    },
    /// Forget one.
    Remove {
        /// Its name.
        name: String,
    },
}

/// Where the file is.
fn file() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("CROSSDOCK_CONFIG") {
        return Ok(path.into());
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    Ok(config
        .context("neither HOME nor CROSSDOCK_CONFIG is set: set one, so contexts have a place")?
        .join("crossdock/contexts.yaml"))
}

impl Contexts {
    fn load() -> anyhow::Result<Contexts> {
        let path = file()?;
        let text = match bounded::read_file(&path, MAX_FILE_BYTES) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        serde_saphyr::from_str(&text)
            .with_context(|| format!("understand {}; mend it or remove it and log in again", path.display()))
    }

    fn save(&self) -> anyhow::Result<()> {
        let path = file()?;
        if let Some(folder) = path.parent() {
            proto::durable::create_dir_all(folder)?;
        }
        Ok(proto::durable::write(&path, serde_saphyr::to_string(self)?.as_bytes(), 0o600)?)
    }
}

/// Logs in: tries the token, and remembers the hub as a context, which is in use from then on.
///
/// # Errors
/// When the hub cannot be reached or the token is refused; nothing is remembered then.
pub async fn login(args: LoginArgs) -> anyhow::Result<()> {
    let ca = read(&args.ca)?;
    let (token, session) = match (&args.token, &args.token_file) {
        _ if args.oidc.oidc => {
            let described = Client::new(&args.url, "", ca.as_bytes())?.how_to_log_in().await?;
            let (token, session) = oidc::login(args.oidc, &described).await?;
            (token, Some(oidc::absolute(session)))
        }
        (Some(token), _) => (token.clone(), None),
        (None, Some(path)) => (read(path)?, None),
        (None, None) => {
            let text = "give --token-file FILE, --token T, CROSSDOCK_TOKEN, or --oidc";
            return Err(CliError::new(Exit::Usage, text).into());
        }
    };
    let client = Client::new(&args.url, &token, ca.as_bytes())?;
    let me = client.whoami().await.context("try the token")?;
    let host = client.server().trim_start_matches("https://").to_owned();
    let name = args.name.unwrap_or(host);
    let mut contexts = Contexts::load()?;
    let token = token.trim().to_owned();
    let context = HubContext { server: client.server().to_owned(), token, ca, oidc: session };
    contexts.contexts.insert(name.clone(), context);
    contexts.current.clone_from(&name);
    contexts.save()?;
    println!("Logged in to {} as {}; context {name} is in use.", client.server(), super::kinds::text(&me, "/name"));
    Ok(())
}

/// Renews the token of a context that somebody got at a provider, where it is at its end. When that fails the hub
/// says what to do, for commands that ask it at all.
pub async fn renew(wanted: Option<&str>) {
    if let Err(error) = try_renew(wanted).await {
        eprintln!("warning: the login could not be renewed: {error:#}");
    }
}

async fn try_renew(wanted: Option<&str>) -> anyhow::Result<()> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if wanted.is_none() && set("CROSSDOCK_TOKEN").is_some() {
        return Ok(());
    }
    let Ok(mut contexts) = Contexts::load() else { return Ok(()) }; // whoever needs it says what is wrong
    let name = wanted.map(str::to_owned).or_else(|| set("CROSSDOCK_CONTEXT"));
    let name = name.unwrap_or_else(|| contexts.current.clone());
    let Some(context) = contexts.contexts.get_mut(&name) else { return Ok(()) };
    let Some(session) = context.oidc.clone().filter(|_| oidc::is_due(&context.token, super::get::now())) else {
        return Ok(());
    };
    let (token, session) = oidc::renew(session).await.map_err(anyhow::Error::msg)?;
    (context.token, context.oidc) = (token, Some(session));
    contexts.save()
}

/// Forgets a context, and tells the provider where there is one.
///
/// # Errors
/// When there is no such context, or the file cannot be written.
pub async fn logout(name: Option<String>) -> anyhow::Result<()> {
    let mut contexts = Contexts::load()?;
    let name = name.unwrap_or_else(|| contexts.current.clone());
    let context = contexts.find(&name)?.clone();
    contexts.contexts.remove(&name);
    contexts.save()?; // forgotten here, whatever the provider says
    if let Some(session) = &context.oidc
        && let Err(error) = oidc::revoke(session).await
    {
        eprintln!("warning: the provider could not be told: {error}");
    }
    println!("Logged out of {}; context {name} is gone.", context.server);
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    bounded::read_file(path, MAX_FILE_BYTES).with_context(|| format!("read {}", path.display()))
}

/// Shows or changes contexts.
///
/// # Errors
/// When the file cannot be used or a name is unknown.
pub fn run(command: ContextCommand) -> anyhow::Result<()> {
    let mut contexts = Contexts::load()?;
    match command {
        ContextCommand::List => {
            for (name, context) in &contexts.contexts {
                let star = if *name == contexts.current { "*" } else { " " };
                println!("{star} {name:<30} {}", context.server);
            }
            return Ok(());
        }
        ContextCommand::Use { name } => {
            contexts.find(&name)?;
            contexts.current = name;
        }
        ContextCommand::Remove { name } => {
            contexts.find(&name)?;
            contexts.contexts.remove(&name);
        }
    }
    contexts.save()
}

impl Contexts {
    fn find(&self, name: &str) -> anyhow::Result<&HubContext> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let message = if known.is_empty() {
                "no hub is known; log in first: crossdock login URL --token-file FILE --ca ca.pem".to_owned()
            } else {
                format!("context {name:?} is not known; there are {}", known.join(", "))
            };
            CliError::new(Exit::Unauthorized, message).into()
        })
    }
}

/// A client for the context in use, or for `wanted`, which was named on the command line.
///
/// # Errors
/// When nobody logged in, or the context is unknown.
pub fn client(wanted: Option<&str>) -> anyhow::Result<Client> {
    let of_environment = |name: &str| std::env::var(name).ok();
    client_with(wanted, &of_environment, Contexts::load)
}

fn client_with(
    wanted: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
    load: impl FnOnce() -> anyhow::Result<Contexts>,
) -> anyhow::Result<Client> {
    if let Some(wanted) = wanted {
        let contexts = load()?;
        let context = contexts.find(wanted)?;
        return Client::new(&context.server, &context.token, context.ca.as_bytes());
    }
    let env = |name| variable(name).filter(|v: &String| !v.is_empty());
    let (server, token, ca) = (env("CROSSDOCK_SERVER"), env("CROSSDOCK_TOKEN"), env("CROSSDOCK_CA"));
    let ca = ca.map(|path| read(Path::new(&path))).transpose()?;
    if let (Some(server), Some(token), Some(ca)) = (&server, &token, &ca) {
        return Client::new(server, token, ca.as_bytes());
    }
    let contexts = load()?;
    let context = contexts.find(&env("CROSSDOCK_CONTEXT").unwrap_or_else(|| contexts.current.clone()))?;
    let server = server.unwrap_or_else(|| context.server.clone());
    let token = token.unwrap_or_else(|| context.token.clone());
    Client::new(&server, &token, ca.unwrap_or_else(|| context.ca.clone()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> anyhow::Result<Contexts> {
        let key = rcgen::KeyPair::generate()?;
        let ca = rcgen::CertificateParams::new(vec!["hub".into()])?.self_signed(&key)?.pem();
        let hub = |host: &str| {
            let server = format!("https://{host}:8443");
            (host.to_owned(), HubContext { server, token: "t".into(), ca: ca.clone(), oidc: None })
        };
        Ok(Contexts { current: "a".into(), contexts: [hub("a"), hub("b"), hub("c")].into() })
    }

    #[test]
    fn a_context_on_the_command_line_wins_over_the_environment() {
        let server = |wanted, variables: &[(&str, &str)]| {
            let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            client_with(wanted, &variable, contexts).map(|client| client.server().to_owned())
        };
        let variables = [("CROSSDOCK_CONTEXT", "c"), ("CROSSDOCK_SERVER", "https://pipeline:1")];
        assert_eq!(server(None, &[]).unwrap(), "https://a:8443");
        assert_eq!(server(None, &variables[..1]).unwrap(), "https://c:8443");
        assert_eq!(server(None, &variables).unwrap(), "https://pipeline:1");
        assert_eq!(server(Some("b"), &variables).unwrap(), "https://b:8443");
        let error = server(Some("z"), &variables).unwrap_err();
        assert!(error.to_string().contains("not known"), "{error}");
    }
}

//! `cloudcore init`: makes the data folder of a new hub.
//!
//! ```text
//! hub.yaml          configuration; written last, so with it the hub exists
//! ca/, ca.pem       certificate authority of the fleet, and its certificate for people to copy
//! tls/              the hub's own certificates
//! hub.db            objects
//! admin.token       the first administrator's API token; api-tokens.json keeps the hash
//! ```
//!
//! A folder with a hub is never touched. An init that was interrupted is finished by the next one.
//! Called by the program's `main`, and by tests.

use std::{net::SocketAddr, path::PathBuf};

use proto::{
    durable::{self, DurableError},
    env::Env,
    identity::HUB_DNS_NAME,
    name::Name,
    units::Span,
};

use crate::{
    api::{AuthError, Tokens},
    ca::{Ca, CaError},
    config::{ConfigError, HubConfig},
    store::{Store, StoreError},
};

/// Name of the first administrator.
const ADMIN: &str = "admin";

/// What a new hub is told.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// Data folder to make
    #[arg(long, default_value = "/var/lib/cloudcore", value_name = "DIR")]
    pub data: PathBuf,
    /// Name of the fleet
    #[arg(long)]
    pub fleet: Name,
    /// Where agents connect (UDP); port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub link_listen: Option<SocketAddr>,
    /// Where the API listens (TCP); port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub api_listen: Option<SocketAddr>,
    /// Host name or address under which the API is reached, for its certificate; may be given several times
    #[arg(long, value_name = "NAME")]
    pub api_name: Vec<String>,
    /// Address under which agents reach the link, told to them when they join; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Vec<String>,
    /// Leave a hub that is there already as it is, and succeed
    #[arg(long)]
    pub keep: bool,
    /// How often agents should be heard from
    #[arg(long)]
    pub heartbeat: Option<Span>,
    /// How long a node may be silent before it counts as Unknown
    #[arg(long)]
    pub unknown_after: Option<Span>,
}

/// The data folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is a hub.
    #[error(
        "there is a hub in {} already, and agents trust its keys, so it is left as it is; start it with `cloudcore serve --data {}`, or choose another folder",
        .0.display(), .0.display()
    )]
    Exists(PathBuf),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// No database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] DurableError),
}

/// Makes the data folder.
///
/// # Errors
/// When there is a hub in it, an option is wrong, or something could not be written.
pub async fn init(args: InitArgs, env: &Env) -> Result<HubConfig, InitError> {
    let config = config_from(args)?;
    let data = config.data_dir.clone();
    if data.join("hub.yaml").exists() {
        return Err(InitError::Exists(data));
    }
    durable::create_dir_all(&data)?;
    let ca = match Ca::create(&data, &config.fleet, env) {
        // Without hub.yaml this is what an interrupted init left.
        Err(CaError::Exists(_)) => Ca::open(&data, env)?,
        other => other?,
    };
    durable::write(&config.ca_certificate(), ca.pem().as_bytes(), 0o644)?;
    ca.server_identity("link", &[HUB_DNS_NAME.to_owned()])?;
    ca.server_identity("api", &config.api_names)?;
    Store::open(&config.database(), env).await?;
    issue_token(&config, &mut Tokens::default(), ADMIN, env)?;
    config.save()?;
    Ok(config)
}

/// Makes a new token for a user and writes it to `NAME.token` in the data folder, for its owner alone.
///
/// # Errors
/// When a file cannot be written.
pub fn issue_token(config: &HubConfig, tokens: &mut Tokens, user: &str, env: &Env) -> Result<PathBuf, AuthError> {
    let token = tokens.issue(config, user, &env.seed)?;
    let path = config.data_dir.join(format!("{user}.token"));
    durable::write(&path, format!("{token}\n").as_bytes(), 0o600)?;
    Ok(path)
}

fn config_from(args: InitArgs) -> Result<HubConfig, ConfigError> {
    let mut config = HubConfig::new(args.data, args.fleet);
    config.link_listen = args.link_listen.unwrap_or(config.link_listen);
    config.api_listen = args.api_listen.unwrap_or(config.api_listen);
    config.heartbeat = args.heartbeat.unwrap_or(config.heartbeat);
    config.unknown_after = args.unknown_after.unwrap_or(config.unknown_after);
    config.advertise = args.advertise;
    config.api_names = args.api_name;
    let mut local = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !config.api_listen.ip().is_unspecified() {
        local.push(config.api_listen.ip().to_string());
    }
    for name in local {
        if !config.api_names.contains(&name) {
            config.api_names.push(name);
        }
    }
    config.check()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: InitArgs,
    }

    fn args(folder: &std::path::Path, more: &[&str]) -> InitArgs {
        let data = folder.join("hub");
        let line = ["init", "--fleet", "hz", "--data", &data.to_string_lossy()].map(str::to_owned);
        Line::parse_from(line.into_iter().chain(more.iter().map(|s| (*s).to_owned()))).args
    }

    #[tokio::test]
    async fn a_folder_is_made_once_and_an_interrupted_init_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real().unwrap();
        let bad = init(args(folder.path(), &["--advertise", "hub"]), &env).await.unwrap_err();
        assert!(bad.to_string().contains("host:port"), "{bad}");
        let bad = init(args(folder.path(), &["--api-name", "no good"]), &env).await;
        assert!(bad.is_err());

        let config = init(args(folder.path(), &["--api-name", "hub.example"]), &env).await.unwrap();
        assert!(config.api_names.contains(&"hub.example".to_owned()));
        assert_eq!(HubConfig::load(&config.data_dir).unwrap(), config);
        let mode = |p: PathBuf| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(config.admin_token()), 0o600);
        assert_eq!(mode(config.data_dir.join("ca/ca.key")), 0o600);
        let ca = fs::read(config.ca_certificate()).unwrap();
        let token = fs::read(config.admin_token()).unwrap();

        let again = init(args(folder.path(), &[]), &env).await.unwrap_err();
        assert!(again.to_string().contains("cloudcore serve"), "{again}");
        assert_eq!(fs::read(config.admin_token()).unwrap(), token);

        fs::remove_file(config.data_dir.join("hub.yaml")).unwrap();
        init(args(folder.path(), &[]), &env).await.unwrap();
        assert_eq!(fs::read(config.ca_certificate()).unwrap(), ca);
    }
}

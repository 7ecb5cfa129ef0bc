//! Which hub to talk to: the file with the hubs logged in to, overridden by flags and environment.
//!
//! Made once by [`super::run`] and handed to every command that talks to a hub.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use proto::durable;
use serde::{Deserialize, Serialize};

use super::{
    client::Client,
    exit::{Exit, Failure},
};

/// Options that choose a hub, valid before and after any command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Context {
    /// Which hub that you logged in to; the current one by default.
    #[arg(long, global = true, env = "CROSSDOCK_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// File with the hubs that you logged in to.
    #[arg(long, global = true, env = "CROSSDOCK_CONFIG", value_name = "FILE", hide = true)]
    pub config: Option<PathBuf>,
    #[arg(long, global = true, env = "CROSSDOCK_SERVER", value_name = "URL", hide = true)]
    server: Option<String>,
    #[arg(long, global = true, env = "CROSSDOCK_TOKEN", value_name = "TOKEN", hide = true, hide_env_values = true)]
    api_token: Option<String>,
    #[arg(long, global = true, env = "CROSSDOCK_CA", value_name = "FILE", hide = true)]
    api_ca: Option<PathBuf>,
}

/// How one hub is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// URL of its API.
    pub server: String,
    /// Bearer token.
    pub token: String,
    /// Certificate of its authority, PEM. No other authority is believed.
    pub ca: String,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Contexts {
    /// The one that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All, by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Entry>,
}

impl Context {
    /// Connects to the chosen hub (lazily: nothing is sent yet).
    ///
    /// # Errors
    /// When no hub is chosen, or its entry is unusable.
    pub fn client(&self) -> anyhow::Result<Client> {
        let entry = self.entry()?;
        Ok(Client::new(&entry.server, &entry.token, &entry.ca)?)
    }

    fn entry(&self) -> anyhow::Result<Entry> {
        if let Some(server) = &self.server {
            let missing = |what| Failure::new(Exit::Usage, format!("CROSSDOCK_SERVER is set, so set {what} too"));
            let token = self.api_token.clone().ok_or_else(|| missing("CROSSDOCK_TOKEN"))?;
            let ca = self.api_ca.as_ref().ok_or_else(|| missing("CROSSDOCK_CA"))?;
            let ca = fs::read_to_string(ca).with_context(|| format!("could not read {}", ca.display()))?;
            return Ok(Entry { server: server.clone(), token, ca });
        }
        let contexts = self.load()?;
        let name = self.context.as_ref().or(contexts.current.as_ref());
        let Some(name) = name else {
            let text = "no hub is chosen; log in first: crossdock login https://HUB:8443 --token-file FILE --ca FILE";
            return Err(Failure::new(Exit::Usage, text));
        };
        let unknown =
            || Failure::new(Exit::Usage, format!("there is no context {name:?}; see: crossdock context list"));
        let mut entry = contexts.contexts.get(name).cloned().ok_or_else(unknown)?;
        if let Some(token) = &self.api_token {
            entry.token.clone_from(token);
        }
        Ok(entry)
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = folder.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
        let none = || Failure::new(Exit::Usage, "neither HOME nor CROSSDOCK_CONFIG is set; set one of them");
        Ok(folder.ok_or_else(none)?.join("crossdock/contexts.yaml"))
    }

    /// Reads the file; no file is an empty one.
    ///
    /// # Errors
    /// When it is there and not readable.
    pub fn load(&self) -> anyhow::Result<Contexts> {
        let path = self.path()?;
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            other => other.with_context(|| format!("could not read {}", path.display()))?,
        };
        serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is damaged; remove it and log in again", path.display()))
    }

    /// Replaces the file, readable by its owner alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, contexts: &Contexts) -> anyhow::Result<PathBuf> {
        let path = self.path()?;
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            durable::create_dir_all(folder)?;
        }
        durable::write(&path, serde_saphyr::to_string(contexts)?.as_bytes(), 0o600)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_kept_and_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context { config: Some(folder.path().join("deep/c.yaml")), ..Context::default() };
        let error = context.entry().unwrap_err();
        assert_eq!(super::super::exit::code(&error), Exit::Usage);
        assert!(error.to_string().contains("crossdock login"), "{error}");

        let entry = |n: &str| Entry { server: format!("https://{n}"), token: n.into(), ca: "a: b\n\"c\"\n".into() };
        let mut contexts = Contexts { current: Some("a".into()), ..Contexts::default() };
        contexts.contexts.extend(["a", "b"].map(|n| (n.to_owned(), entry(n))));
        context.save(&contexts).unwrap();
        assert_eq!(context.load().unwrap(), contexts);
        assert_eq!(context.entry().unwrap(), entry("a"));
        let other = Context { context: Some("b".into()), ..context.clone() };
        assert_eq!(other.entry().unwrap(), entry("b"));
        let none = Context { context: Some("c".into()), ..context };
        assert!(none.entry().unwrap_err().to_string().contains("context list"));
    }
}

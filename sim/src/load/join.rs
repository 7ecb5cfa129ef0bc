//! Who the agents of a load are, and how they join: each with a key and a data folder of its own, once.

use std::{fs, path::Path};

use anyhow::{Context as _, anyhow, bail};
use edgecore::{
    config::AgentConfig,
    join::{JoinError, JoinOptions, join, with_port},
};
use futures_util::StreamExt as _;
use proto::{env::Env, name::Name, token::Token};

use super::LoadArgs;

/// Joins that run at the same time.
const JOINS_AT_ONCE: usize = 16;
/// No doors: records are handed in here. No metrics: their load is not what is asked for.
const SETTINGS: &str = "[streams]\nhttp = \"off\"\nsocket = \"off\"\nmqtt = \"off\"\nmetrics-interval = \"off\"\n";

/// Names of all agents.
///
/// # Errors
/// When the prefix leaves no room for the number.
pub(super) fn names(args: &LoadArgs) -> anyhow::Result<Vec<Name>> {
    let name = |number: usize| format!("{}-{number:05}", args.prefix.as_str()).parse();
    (1..=args.nodes).map(name).collect::<Result<_, _>>().context("--prefix is too long for the number behind it")
}

/// Joins those that have not joined in an earlier load; returns how many that were.
///
/// # Errors
/// When an agent that is there belongs to another hub, or one cannot join.
pub(super) async fn join_all(args: &LoadArgs, token: &Token, folder: &Path, names: &[Name]) -> anyhow::Result<usize> {
    let mut fresh = vec![];
    for name in names {
        if !is_there(args, &folder.join(name.as_str()))? {
            fresh.push(name);
        }
    }
    let count = fresh.len();
    let joins = fresh.into_iter().map(|name| async move {
        let joined = join_one(args, token, folder, name).await;
        joined.with_context(|| format!("join {name} at {}", args.hub))
    });
    let mut joins = futures_util::stream::iter(joins).buffer_unordered(JOINS_AT_ONCE);
    while let Some(joined) = joins.next().await {
        joined.map_err(|error| advised(error, count))?;
    }
    Ok(count)
}

/// Whether an agent joined there before, and the hub that is asked for.
fn is_there(args: &LoadArgs, data_dir: &Path) -> anyhow::Result<bool> {
    if !data_dir.join("agent.json").exists() {
        return Ok(false);
    }
    let there = AgentConfig::load(data_dir).with_context(|| format!("read the agent in {}", data_dir.display()))?;
    let hub = with_port(&args.hub).context("--hub")?;
    if !there.hubs.contains(&hub) {
        let (folder, joined) = (data_dir.display(), there.hubs.join(" or "));
        bail!(
            "the agent in {folder} joined the hub {joined}, not {hub}: give --hub {joined}, or --data another folder"
        );
    }
    Ok(true)
}

async fn join_one(args: &LoadArgs, token: &Token, folder: &Path, name: &Name) -> anyhow::Result<()> {
    // The key is drawn from the seed of the environment: one for all would be one key for all.
    let env = Env::real()?;
    let data_dir = folder.join(name.as_str());
    fs::create_dir_all(&data_dir).with_context(|| format!("make {}", data_dir.display()))?;
    fs::write(data_dir.join("agent.toml"), SETTINGS).context("write agent.toml")?;
    let options = JoinOptions {
        brokers: vec![],
        data_dir,
        hub: vec![args.hub.clone()],
        token: token.clone(),
        name: Some(name.to_string()),
        machine_id: format!("load agent {name}"),
    };
    join(options, &env).await?;
    Ok(())
}

/// What to do, where that is known: about the token only when it is the token that the hub refused.
fn advised(error: anyhow::Error, count: usize) -> anyhow::Error {
    let Some(JoinError::Refused { code, .. }) = error.downcast_ref() else { return error };
    let advice = match code.as_str() {
        "TokenUnknown" | "TokenExpired" | "TokenUsedUp" | "TokenForOtherNode" => {
            format!(
                "{count} agents had to join; make a token for them: crossdock token create --site load --uses {count}"
            )
        }
        "NameTaken" => "another machine has this name: choose another --prefix".to_owned(),
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::digest::Digest;

    use super::{super::tests::args, *};

    fn token() -> Token {
        let digest = Digest::of(b"");
        Token { id: "t".into(), secret: "s".into(), ca: digest, root: digest, director: None, fleet: None }
    }

    #[tokio::test(start_paused = true)]
    async fn every_agent_has_a_key_of_its_own() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let args = args(&["--hub", "127.0.0.1:1", "--nodes", "5"]);
        // Nobody answers, and no advice about the token is given for that; the keys are on disk by then.
        let error = join_all(&args, &token(), folder.path(), &names(&args).unwrap()).await.unwrap_err();
        assert!(!format!("{error:#}").contains("token create"), "{error:#}");
        let keys: BTreeSet<Vec<u8>> = names(&args)
            .unwrap()
            .iter()
            .map(|name| {
                fs::read(edgecore::config::Paths::new(&folder.path().join(name.as_str())).joining_key()).unwrap()
            })
            .collect();
        assert_eq!(keys.len(), 5);
    }

    #[tokio::test]
    async fn agents_of_another_hub_are_not_measured_as_those_of_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(&["--hub", "new.example:7443", "--nodes", "1"]);
        let names = names(&args).unwrap();
        let data_dir = folder.path().join("load-00001");
        edgecore::config::create_folders(&edgecore::config::Paths::new(&data_dir)).unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let mut there = AgentConfig {
            data_dir,
            node: name("load-00001"),
            site: name("load"),
            fleet: name("fleet"),
            hubs: vec!["old.example:7443".into()],
            brokers: vec![],
        };
        there.store().unwrap();
        let error = join_all(&args, &token(), folder.path(), &names).await.unwrap_err().to_string();
        assert!(error.contains("old.example:7443, not new.example:7443"), "{error}");
        there.hubs.push("new.example:7443".into());
        there.store().unwrap();
        assert_eq!(join_all(&args, &token(), folder.path(), &names).await.unwrap(), 0);
    }

    #[test]
    fn only_a_refused_token_is_answered_with_advice_about_the_token() {
        let refused = |code: &str| {
            let error = JoinError::Refused { code: code.into(), message: "no".into() };
            format!("{:#}", advised(anyhow::Error::from(error).context("join load-00001"), 20))
        };
        assert!(refused("TokenUsedUp").ends_with("crossdock token create --site load --uses 20"));
        assert!(refused("NameTaken").contains("--prefix"));
        assert_eq!(refused("BadRequest"), "join load-00001: the hub refused: no (BadRequest)");
    }
}

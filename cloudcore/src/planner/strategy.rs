//! Named strategies: what `canary`, `by-site` and `all-at-once` mean, and those of `hub.yaml`.

use std::collections::BTreeMap;

use proto::{
    object::{
        RolloutSpec,
        rollout::{Budget, Gate, OnFailure, Share, Wave, Windows},
    },
    units::Span,
};
use serde::{Deserialize, Serialize};

/// One node first, then a tenth, then all; one node a site at a time.
pub const CANARY: &str = "canary";
/// One site first, then a quarter, then all; one node a site at a time.
pub const BY_SITE: &str = "by-site";
/// All nodes at once.
pub const ALL_AT_ONCE: &str = "all-at-once";

/// How long an early wave of the built-in strategies must stay healthy.
const SOAK: Span = Span::from_secs(300);

/// Rollouts, in `hub.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutsConfig {
    /// Strategy of rollouts that name none.
    #[serde(default = "canary")]
    pub strategy: String,
    /// Strategies by name, besides the built-in ones or in their place.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub strategies: BTreeMap<String, Strategy>,
    /// How many rollouts of each app are kept that are over, as `revisionHistoryLimit` in Kubernetes. What nodes still
    /// follow is kept beyond that.
    #[serde(default = "history_limit")]
    pub history_limit: usize,
}

fn history_limit() -> usize {
    100
}

fn canary() -> String {
    CANARY.into()
}

impl Default for RolloutsConfig {
    fn default() -> RolloutsConfig {
        RolloutsConfig { strategy: canary(), strategies: BTreeMap::new(), history_limit: history_limit() }
    }
}

/// What a strategy fills in. See the fields of [`RolloutSpec`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// Waves.
    pub waves: Vec<Wave>,
    /// Gate.
    pub gate: Gate,
    /// Budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Windows.
    pub windows: Windows,
    /// Spread of the beginnings.
    pub jitter: Span,
    /// Cap of what a workload may put off.
    pub max_deferral: Span,
    /// What follows a failure.
    pub on_failure: OnFailure,
}

impl RolloutsConfig {
    /// A strategy by name.
    ///
    /// # Errors
    /// When there is none; says which there are.
    pub fn find(&self, name: &str) -> Result<Strategy, String> {
        if let Some(own) = self.strategies.get(name) {
            return Ok(own.clone());
        }
        let wave = |name: &str| Wave { name: Some(name.into()), soak: SOAK, ..Wave::default() };
        let one_per_site = Some(Budget { max_unavailable: Share::Count(1), per: Budget::SITE.into() });
        let rest = Wave { name: Some("rest".into()), percent: Some(100), ..Wave::default() };
        let waves = match name {
            ALL_AT_ONCE => return Ok(Strategy::default()),
            CANARY => {
                vec![Wave { count: Some(1), ..wave("canary") }, Wave { percent: Some(10), ..wave("tenth") }, rest]
            }
            BY_SITE => {
                vec![Wave { sites: Some(1), ..wave("first-site") }, Wave { percent: Some(25), ..wave("quarter") }, rest]
            }
            _ => {
                let own = self.strategies.keys().map(String::as_str);
                let all: Vec<&str> = [CANARY, BY_SITE, ALL_AT_ONCE].into_iter().chain(own).collect();
                return Err(format!("there is no strategy {name:.60?}; there are {}", all.join(", ")));
            }
        };
        Ok(Strategy { waves, budget: one_per_site, ..Strategy::default() })
    }

    /// Fills in what a spec leaves to its strategy: the one it names, or the fleet's default when it says nothing
    /// of how to go about it.
    ///
    /// # Errors
    /// When it names a strategy that does not exist.
    pub fn fill_in(&self, spec: &mut RolloutSpec) -> Result<(), String> {
        let silent = spec.waves.is_empty() && spec.budget.is_none() && spec.undoes.is_none();
        let name = match &spec.strategy {
            Some(name) => name.clone(),
            None if silent => self.strategy.clone(),
            None => return Ok(()),
        };
        let Strategy { waves, mut gate, budget, windows, jitter, max_deferral, on_failure } = self.find(&name)?;
        if spec.version.is_none() {
            gate.metrics.clear(); // they judge a release, and a restart has none
        }
        spec.strategy = Some(name);
        fill(&mut spec.waves, waves);
        fill(&mut spec.gate, gate);
        fill(&mut spec.budget, budget);
        fill(&mut spec.windows, windows);
        fill(&mut spec.jitter, jitter);
        fill(&mut spec.max_deferral, max_deferral);
        fill(&mut spec.on_failure, on_failure);
        Ok(())
    }
}

fn fill<T: PartialEq + Default>(field: &mut T, filling: T) {
    if *field == T::default() {
        *field = filling;
    }
}

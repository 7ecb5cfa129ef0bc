//! What to do when a key is lost or stolen: numbered steps for the repository at hand, with the commands to type.
//!
//! Pure: a root and who is where gives the steps. `crossdock key drill` prints them; the end-to-end test runs the very
//! commands that it prints.

pub mod hub;

use std::{fmt, str::FromStr};

use proto::tuf::{RoleName, schema::RootMeta};

use super::rotate::{Duty, label};

/// What happened to which kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Somebody else may have it. Otherwise it is gone, and nobody has it.
    pub stolen: bool,
    /// What it is for.
    pub duty: Duty,
}

impl Case {
    /// All of them.
    pub const ALL: [Case; 6] = [
        Case { stolen: false, duty: Duty::Root },
        Case { stolen: true, duty: Duty::Root },
        Case { stolen: false, duty: Duty::Targets },
        Case { stolen: true, duty: Duty::Targets },
        Case { stolen: false, duty: Duty::Pipeline },
        Case { stolen: true, duty: Duty::Pipeline },
    ];
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-key", if self.stolen { "stolen" } else { "lost" }, self.duty)
    }
}

impl FromStr for Case {
    type Err = String;
    fn from_str(text: &str) -> Result<Case, String> {
        Case::ALL.into_iter().find(|case| case.to_string() == text).ok_or_else(|| {
            let names = Case::ALL.map(|case| case.to_string()).join(", ");
            format!("{text:?} is no drill; there are {names}")
        })
    }
}

/// One step: what to do, and what to type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In words.
    pub text: String,
    /// Commands, each a line.
    pub commands: Vec<String>,
}

/// The repository that the steps are for.
#[derive(Debug, Clone)]
pub struct Ground<'a> {
    /// Its newest root.
    pub root: &'a RootMeta,
    /// Its folder, as it is typed.
    pub folder: String,
    /// Whether it holds releases, not roots alone.
    pub releases: bool,
    /// Key files that lie in it, by duty.
    pub own: &'a [(Duty, String)],
    /// Full ID of the key, if it is known which one.
    pub key: Option<&'a str>,
}

/// The steps for a case.
#[must_use]
pub fn steps(case: Case, ground: &Ground<'_>) -> Vec<Step> {
    let (root, duty) = (ground.root, case.duty);
    let holders = ids(root, duty);
    let left = holders.len().saturating_sub(1);
    if duty == Duty::Root && left < threshold(root, Duty::Root) {
        return start_over(case, ground);
    }
    let mut steps = vec![];
    if case.stolen {
        steps.push(close_the_door(ground));
    }
    steps.push(which(case, ground, &holders));
    let name = format!("{duty}-{}", root.version + 1);
    let folder = ground.own.first().map_or_else(|| ".".to_owned(), |_| format!("{}/keys", ground.folder));
    let public = format!("{folder}/{name}.pub");
    let open = if duty == Duty::Pipeline { " --no-passphrase" } else { "" };
    let keeper = match duty {
        Duty::Pipeline => {
            "Make a new key. It goes into the pipeline's store of secrets, which guards it: it has no passphrase, for nobody is there to type one"
        }
        _ => "Make a new key, on the machine of who will hold it, and bring its public half (.pub) here",
    };
    steps.push(step(format!("{keeper}."), [format!("crossdock keys new {name} --out {folder}{open}")]));
    let key = ground.key.map_or_else(|| "KEY-ID".to_owned(), str::to_owned);
    steps.push(step(
        format!(
            "Stage a root without the {} key and with the new one in its place. It says who must sign.",
            adjective(case)
        ),
        [format!("crossdock key revoke {key} --replace-with {public} --repo {}", ground.folder)],
    ));
    if case.stolen && duty != Duty::Root && ground.releases {
        steps.push(step(
            "Look at every release that is listed. Withdraw those that you did not make; it is signed together with the rest. \
             A box that runs one goes on running it until you roll out another: crossdock rollout start.",
            [format!("crossdock release verify --repo {}", ground.folder)],
        ));
        // Not a command line of its own: the names are for a person to find.
        if let Some(last) = steps.last_mut() {
            last.text
                .push_str(&format!(" To withdraw one: crossdock release remove APP@VERSION --repo {}.", ground.folder));
            last.text.push_str(
                " If the hub lists what your repository does not (crossdock get releases), the thief has published: \
                 revoke the pipeline's key too, in the same root, or clients take yours for a step back.",
            );
        }
    }
    steps.push(sign(case, ground, &format!("{folder}/{name}.pem")));
    steps.push(publish(duty, ground, &format!("{folder}/{name}.pem")));
    let check = if ground.releases { "release verify" } else { "root show" };
    steps.push(step(
        format!(
            "See that it holds: root version {} is published, and the {} key is listed nowhere. Boxes take the new root up at their next contact with the hub, those that are away when they are back; what the old key signs is refused from then on.",
            root.version + 1,
            adjective(case)
        ),
        [format!("crossdock {check} --repo {}", ground.folder), format!("crossdock keys list --repo {}", ground.folder)],
    ));
    let end = if case.stolen {
        "Destroy what is left of the old key, and find out how it was taken before the new one goes the same way."
    } else {
        "Should the old key turn up again, destroy it: it signs nothing any more. Let the new holder make a second copy of the new key now, encrypted, elsewhere."
    };
    steps.push(step(end, []));
    steps
}

fn close_the_door(ground: &Ground<'_>) -> Step {
    let at = if ground.releases {
        "the hub's API tokens and the pipeline's secrets that lay beside it"
    } else {
        "what else lay beside it"
    };
    step(
        format!(
            "Change {at}: a key alone publishes nothing. Tell the other key holders by telephone to sign nothing that they did not expect."
        ),
        [],
    )
}

fn which(case: Case, ground: &Ground<'_>, holders: &[String]) -> Step {
    let mut text = match ground.key {
        Some(id) => format!("The {} key is {}: {id}.", adjective(case), label(ground.root, id)),
        None => {
            let names: Vec<String> = holders.iter().map(|id| label(ground.root, id)).collect();
            format!(
                "Find out which key it is, and write its ID for KEY-ID below. Listed for {}: {}.",
                case.duty,
                names.join(", ")
            )
        }
    };
    let needed = threshold(ground.root, case.duty);
    let left = holders.len().saturating_sub(1);
    text.push_str(&match (case.stolen, case.duty) {
        (_, Duty::Pipeline) if !case.stolen => {
            let until = "what is published stays good until its timestamp expires".to_owned();
            format!(" Nothing can be published meanwhile; {until}.")
        }
        (true, Duty::Pipeline) => {
            " Its thief can hold newer releases back and mix what you signed, and can release nothing.".into()
        }
        (true, _) if needed > 1 => {
            format!(" Its thief needs {} more to sign anything; be quick all the same.", needed - 1)
        }
        (true, Duty::Targets) => {
            " Its thief can list any release, and needs the pipeline or the hub's tokens to publish it.".into()
        }
        (true, _) => " Its thief can change every key: be quicker.".into(),
        (false, _) if left >= needed => {
            format!(" The {left} that are left can go on signing: there is time, and no spare any more.")
        }
        (false, _) => format!(" Nothing can be signed for {} until it is replaced.", case.duty),
    });
    let list = format!("crossdock keys list --repo {}", ground.folder);
    step(text, [list])
}

fn sign(case: Case, ground: &Ground<'_>, new: &str) -> Step {
    let (root, duty) = (ground.root, case.duty);
    let signers = |of: Duty| -> String {
        let old = ids(root, of).into_iter().filter(|id| Some(id.as_str()) != ground.key).map(|id| label(root, &id));
        old.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "Sign. Each signer reads what changes, and signs if it is this and nothing else. The root needs {} of: {}.",
        threshold(root, Duty::Root),
        signers(Duty::Root)
    );
    let mut keys: Vec<String> = own(ground, Duty::Root).into_iter().collect();
    if duty == Duty::Targets && ground.releases {
        let others = signers(Duty::Targets);
        let others = if others.is_empty() { String::new() } else { format!("{others}, ") };
        text.push_str(&format!(" The targets need {} of: {others}the new key.", threshold(root, duty)));
        if !keys.is_empty() {
            keys.push(new.to_owned());
        }
    }
    text.push_str(" On other machines: crossdock release export and import carry it.");
    let keys = if keys.is_empty() { vec!["KEY".to_owned()] } else { keys };
    let keys: String = keys.iter().map(|key| format!(" --key {key}")).collect();
    step(text, [format!("crossdock release sign --repo {}{keys}", ground.folder)])
}

fn publish(duty: Duty, ground: &Ground<'_>, new: &str) -> Step {
    if !ground.releases {
        return step(
            "Finish it, and give the new file in metadata/ to who serves it.",
            [format!("crossdock root finish --repo {}", ground.folder)],
        );
    }
    let key = match duty {
        Duty::Pipeline => format!(" --key {new}"),
        _ => own(ground, Duty::Pipeline).map(|_| String::new()).unwrap_or_else(|| " --key PIPELINE-KEY".into()),
    };
    let text = match duty {
        Duty::Pipeline => "Publish with the new key, and put it in the old one's place in the pipeline.",
        _ => "Publish. Snapshot and timestamp are signed anew with it.",
    };
    step(text, [format!("crossdock release publish --repo {}{key}", ground.folder)])
}

/// Fewer root keys are left than must sign: nobody can change the keys any more, not the thief's either.
fn start_over(case: Case, ground: &Ground<'_>) -> Vec<Step> {
    let root = ground.root;
    let new = format!("{}-2", ground.folder.trim_end_matches('/'));
    let mut steps = vec![];
    if case.stolen {
        steps.push(close_the_door(ground));
    }
    let why = if case.stolen {
        "Its thief can change every key, and so can nobody else without it: no root that you sign could shut the thief out. The fleet must trust a new repository, now."
    } else {
        "With it nobody can change keys any more. All else goes on as before until that root expires; until then the fleet must trust a new repository."
    };
    steps.push(step(
        format!(
            "{} root keys must sign, and {} are left. {why} The root expires at {}.",
            threshold(root, Duty::Root),
            ids(root, Duty::Root).len().saturating_sub(1),
            root.expires
        ),
        [],
    ));
    steps.push(step(
        "Make keys, this time three for the root with two that must sign, held by different people at different places.",
        ["1", "2", "3"].map(|n| format!("crossdock keys new root-{n}")).into_iter().chain(["targets", "pipeline"].map(|n| format!("crossdock keys new {n}"))),
    ));
    steps.push(step(
        "Make a repository with them, and let two of the three sign its root.",
        [
            format!("crossdock release init {new} --root-key root-1.pub --root-key root-2.pub --root-key root-3.pub --root-threshold 2 --targets-key targets.pub --pipeline-key pipeline.pub"),
            format!("crossdock release sign --repo {new} --key root-1.pem --key root-2.pem --key targets.pem"),
        ],
    ));
    if ground.releases {
        steps.push(step(
            "Build and sign every release that boxes run, from its sources, under a new version.",
            [
                format!("crossdock release build PATH/release.yaml --repo {new}"),
                format!("crossdock release sign --repo {new} --key targets.pem"),
            ],
        ));
        steps.push(step(
            "Set up a hub with an empty data folder (cloudcore init), log in to it, and publish there. Its join tokens carry the new root.",
            [format!("crossdock release publish --repo {new} --key pipeline.pem")],
        ));
        steps.push(step(
            "On every box, join the new hub: edgecore join HUB --token TOKEN. What runs goes on meanwhile; what waits in the outbox is kept.",
            ["crossdock token create --site SITE --node NODE".to_owned()],
        ));
    }
    steps
}

fn step(text: impl Into<String>, commands: impl IntoIterator<Item = String>) -> Step {
    Step { text: text.into(), commands: commands.into_iter().collect() }
}

fn adjective(case: Case) -> &'static str {
    if case.stolen { "stolen" } else { "lost" }
}

fn own(ground: &Ground<'_>, duty: Duty) -> Option<String> {
    ground.own.iter().find(|(of, _)| *of == duty).map(|(_, path)| path.clone())
}

fn keys(root: &RootMeta, duty: Duty) -> impl Iterator<Item = &proto::tuf::schema::RoleKeys> {
    duty.roles().first().into_iter().filter_map(|role: &RoleName| root.roles.get(role.as_str()))
}

fn ids(root: &RootMeta, duty: Duty) -> Vec<String> {
    keys(root, duty).flat_map(|keys| keys.keyids.clone()).collect()
}

fn threshold(root: &RootMeta, duty: Duty) -> usize {
    keys(root, duty).map(|keys| keys.threshold as usize).max().unwrap_or(1)
}

//! What to do when the hub, its online key, or a box is in other hands. See [`super`].

use std::{fmt, str::FromStr};

use super::{Step, step};

/// What was stolen, where it is no key of people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubCase {
    /// A copy of the key that signs for nodes; the machine is the fleet's again.
    OnlineKey,
    /// The machine, or all that was on its disk.
    Hub,
    /// A box, or its disk.
    Node,
}

impl HubCase {
    /// All of them.
    pub const ALL: [HubCase; 3] = [HubCase::OnlineKey, HubCase::Hub, HubCase::Node];
}

impl fmt::Display for HubCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            HubCase::OnlineKey => "stolen-online-key",
            HubCase::Hub => "stolen-hub",
            HubCase::Node => "stolen-node",
        })
    }
}

impl FromStr for HubCase {
    type Err = ();
    fn from_str(text: &str) -> Result<HubCase, ()> {
        HubCase::ALL.into_iter().find(|case| case.to_string() == text).ok_or(())
    }
}

/// The steps for a case. `folder` is the release repository.
#[must_use]
pub fn steps(case: HubCase, folder: &str) -> Vec<Step> {
    match case {
        HubCase::OnlineKey => vec![
            step(
                "Make a new online key. Either it signs at once, since the hub holds the director's root key; or it prints \
                 the commands that are left: type them, each holder of a director's root key signs.",
                ["crossdock director rekey".to_owned()],
            ),
            step(
                "Look: the new key stands for targets, snapshot and timestamp, the stolen one for nothing. Nodes with a \
                 session have it already; the others believe the thief until they connect, and run nothing by that: \
                 releases are signed by other keys.",
                ["crossdock director show".to_owned()],
            ),
            step(
                "Look whether nodes were told to run what nobody here wanted, and put it right: crossdock rollout start.",
                ["crossdock get nodes".to_owned()],
            ),
        ],
        HubCase::Node => node(folder),
        HubCase::Hub => vec![
            step(
                "Take the stolen machine off the network, or its name out of the DNS: nodes run on, and keep counting. \
                 Whoever has it can read what nodes report, and order releases that you signed; it can run nothing else. \
                 Change what else lay on it: passwords of brokers and databases, secrets of webhooks.",
                [],
            ),
            step(
                "Make a new hub on a new machine, in a new folder: it has an authority and an online key of its own. \
                 Of the old folder, or a backup of it, nothing but the records (streams.db) may be taken over, before \
                 the new hub is started for the first time; without them there is nothing to copy. Write hub.yaml anew.",
                [
                    "cloudcore init --data NEW-FOLDER --fleet FLEET --api-name NAME --advertise HOST:PORT".to_owned(),
                    "cp BACKUP/streams.db NEW-FOLDER/streams.db".to_owned(),
                    "cloudcore serve --data NEW-FOLDER".to_owned(),
                ],
            ),
            step(
                "Log in there, and publish: the release repository never was at the hub, and its keys are as good as before.",
                [
                    "crossdock login https://NAME:8443 --token-file NEW-FOLDER/admin.token --ca NEW-FOLDER/ca.pem"
                        .to_owned(),
                    format!("crossdock release publish --repo {folder}"),
                ],
            ),
            step(
                "Make the users again: their old tokens are worth nothing here. So are the join tokens.",
                ["crossdock user create NAME --role ROLE".to_owned()],
            ),
            step(
                "Let each box join the new hub; it keeps its apps, its counters and its records, since the release \
                 repository is the same. Until then it believes the old authority.",
                [
                    "crossdock token create --site SITE --node NODE".to_owned(),
                    "edgecore join HOST:PORT --token TOKEN".to_owned(),
                    "systemctl restart crossdock-edge".to_owned(),
                ],
            ),
            step(
                "Say again what shall run where: the new hub knows no rollouts.",
                ["crossdock rollout start APP@VERSION --to all".to_owned()],
            ),
        ],
    }
}

/// A box is lost: its certificate is revoked, and what its disk opens is made anew.
fn node(folder: &str) -> Vec<Step> {
    vec![
        step(
            "Let its key in no longer. Its session ends at once; what runs on it runs on while it has power.",
            ["crossdock node revoke NODE".to_owned()],
        ),
        step(
            "See which secrets were sealed to it. Its disk holds them and the key that opens them: each of them counts as \
             known to the thief, whatever is sealed from now on.",
            [format!("crossdock secret list --node NODE --repo {folder}")],
        ),
        step(
            "Make each of them anew where it comes from (the database, the broker), let the old one be worth nothing once \
             the boxes have the new one, and seal that to the boxes that are left.",
            [format!(
                "crossdock secret seal NAME --app APP --from-file FILE --to 'SELECTOR,name!=NODE' --repo {folder}"
            )],
        ),
        step(
            "Release them under a new version, and roll it out.",
            [
                format!("crossdock release build PATH/release.yaml --repo {folder}"),
                format!("crossdock release sign --repo {folder}"),
                format!("crossdock release publish --repo {folder}"),
                "crossdock rollout start APP@VERSION --to all".to_owned(),
            ],
        ),
        step(
            "A box in its place joins under the same name, with a sealing key of its own. Compare it with `edgecore status` \
             on that box before you seal to it.",
            [
                "crossdock token create --site SITE --node NODE".to_owned(),
                format!(
                    "crossdock secret seal NAME --app APP --from-file FILE --to SELECTOR --accept-new-key NODE --repo {folder}"
                ),
            ],
        ),
    ]
}

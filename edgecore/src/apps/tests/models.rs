//! Files of one app that others use: a new release of them is proved by its users, or it is taken back.

use std::{collections::BTreeSet, time::Duration};

use proto::{durable::Record, object::UpdatePhase};

use super::{
    APP, LONG,
    fakes::WITH_HOOKS,
    fleet::{Fleet, LABELS, MODEL, OTHER, name, pair},
    gpus::show,
};
use crate::{
    apps::{
        plan::Wanted,
        slot::{self, MAX_ATTEMPTS},
    },
    driver::{HookOutcome, Side},
    fetch::tree,
};

#[tokio::test(start_paused = true)]
async fn a_new_model_warms_up_beside_the_old_one_and_takes_over_without_a_gap() {
    let mut fleet = Fleet::new(true).await;
    fleet.want(MODEL, "2");
    fleet
        .turn_until(|fleet| fleet.status(APP).message.contains("with model 2: it warms up beside the running one"))
        .await;
    let (user, model) = (fleet.status(APP), fleet.status(MODEL));
    assert_eq!((user.phase, user.reason.as_str()), (UpdatePhase::Succeeded, "NewFiles"));
    assert_eq!((model.phase, model.message.as_str()), (UpdatePhase::Verifying, "waits for web to prove it"));
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.status(MODEL).phase, UpdatePhase::Succeeded);
    assert_eq!((fleet.active(MODEL).as_deref(), fleet.status(APP).reason.as_str()), (Some("2"), ""));
    assert_eq!(fleet.starts(APP), [pair("1", "1"), pair("1", "2")]);
    assert_eq!(fleet.slot(APP).side, Side::B);
    // What proved itself is what comes up again.
    fleet.must_serve = false;
    fleet.reboot();
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.starts(APP).last(), Some(&pair("1", "2")));
}

#[tokio::test(start_paused = true)]
async fn a_bad_model_is_taken_back_and_not_tried_again() {
    for warm in [true, false] {
        for bad in ["3", "4"] {
            let mut fleet = Fleet::new(warm).await;
            fleet.want(MODEL, bad);
            fleet.settle().await;
            fleet.check_settled();
            let status = fleet.status(MODEL);
            assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::RolledBack, "UserFailed"));
            assert!(status.message.contains("web did not prove it: "), "{}", status.message);
            assert_eq!(fleet.status(APP).phase, UpdatePhase::Succeeded);
            let started = |fleet: &Fleet, model: &str| fleet.starts(APP).iter().filter(|s| s.1 == model).count();
            assert_eq!(started(&fleet, "1"), if warm { 1 } else { 2 }, "warm, the old one never stopped");
            let tried = started(&fleet, bad);
            fleet.crash();
            fleet.settle().await;
            assert_eq!(started(&fleet, bad), tried, "it is not tried again");
            // Unless that is asked for.
            fleet.ask(MODEL, |ask| ask.order.retry = Some("again".into()));
            fleet.settle().await;
            fleet.check_settled();
            assert!(started(&fleet, bad) > tried);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_room_for_both_the_old_one_is_stopped_first() {
    let mut fleet = Fleet::new(true).await;
    (fleet.must_serve, _) = (false, fleet.world.set_room(false));
    fleet.want(MODEL, "2");
    let mut said = vec![];
    while !fleet.turns(1, LONG).await {
        assert!(fleet.specs(APP).len() < 2, "there is no room for two");
        said.push(fleet.status(APP).message);
    }
    fleet.check_settled();
    assert!(
        said.iter().any(|text| text.contains("stopped first: beside the running one it needs 512 MiB")),
        "{said:?}"
    );
    assert_eq!((fleet.slot(APP).side, fleet.active(MODEL).as_deref()), (Side::A, Some("2")));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_fails_once_it_is_live_goes_back_the_same_way() {
    let mut fleet = Fleet::empty(true, &[MODEL]);
    fleet.want(MODEL, "1");
    fleet.want(APP, WITH_HOOKS);
    fleet.settle().await;
    fleet.must_serve = true;
    fleet.world.driver.answers.lock().unwrap().push_back(HookOutcome::Failure("no boxes in the picture".into()));
    fleet.want(MODEL, "2");
    fleet.settle().await;
    fleet.check_settled();
    let status = fleet.status(MODEL);
    assert!(status.message.contains("web did not prove it: its postApply hook failed"), "{}", status.message);
    let runs = [pair(WITH_HOOKS, "1"), pair(WITH_HOOKS, "2"), pair(WITH_HOOKS, "1")];
    assert_eq!(fleet.starts(APP), runs, "it was started again, beside");
}

#[tokio::test(start_paused = true)]
async fn one_user_that_fails_takes_it_back_for_all() {
    let mut fleet = Fleet::new(true).await;
    fleet.want(OTHER, "1");
    fleet.settle().await;
    fleet.want(MODEL, "5");
    fleet.turn_until(|fleet| fleet.status(APP).message.contains("it has proved it, and waits for others")).await;
    assert_eq!(fleet.status(MODEL).phase, UpdatePhase::Verifying);
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!((fleet.active(MODEL).as_deref(), fleet.status(MODEL).phase), (Some("1"), UpdatePhase::RolledBack));
    assert!(fleet.status(MODEL).message.contains("other did not prove it"));
    // One that suits both.
    fleet.want(MODEL, "2");
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.active(MODEL).as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn an_update_of_its_own_and_a_new_model_go_one_after_the_other() {
    // Both may begin: its own comes first.
    let mut fleet = Fleet::new(true).await;
    fleet.ask(APP, |ask| ask.order.hold = true);
    fleet.want(APP, "2");
    fleet.turn_until(|fleet| fleet.slot(APP).trial.is_some()).await;
    fleet.want(MODEL, "2");
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.starts(APP), [pair("1", "1"), pair("2", "1"), pair("2", "2")]);
    // The model is being proved: that ends first.
    let mut fleet = Fleet::new(true).await;
    fleet.want(MODEL, "2");
    fleet.turn_until(|fleet| fleet.slot(APP).trial.is_some()).await;
    fleet.want(APP, "2");
    fleet.turns(1_000, Duration::from_secs(2)).await;
    assert_eq!(fleet.status(APP).reason, "NewFiles");
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.starts(APP), [pair("1", "1"), pair("1", "2"), pair("2", "2")]);
    // One that is held back waits for nothing.
    let mut fleet = Fleet::new(true).await;
    fleet.want(APP, "2");
    fleet.ask(APP, |ask| ask.order.hold = true);
    fleet.want(MODEL, "2");
    fleet.settle().await;
    assert_eq!((fleet.active(MODEL).as_deref(), fleet.active(APP).as_deref()), (Some("2"), Some("1")));
    // A bad update of its own and a good model: each is judged for itself.
    let mut fleet = Fleet::new(true).await;
    fleet.want(APP, "4");
    fleet.turn_until(|fleet| fleet.slot(APP).trial.is_some()).await;
    fleet.want(MODEL, "2");
    fleet.settle().await;
    assert_eq!((fleet.active(MODEL).as_deref(), fleet.active(APP).as_deref()), (Some("2"), Some("1")));
    assert_eq!(fleet.slot(APP).failed.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_models_at_once_do_not_wait_for_each_other() {
    for reboot in [None, Some(false), Some(true)] {
        let mut fleet = Fleet::empty(true, &[LABELS, MODEL]);
        for app in [MODEL, LABELS, APP, OTHER] {
            fleet.want(app, "1");
        }
        fleet.settle().await;
        fleet.check_settled();
        for model in [MODEL, LABELS] {
            fleet.want(model, "2");
        }
        fleet.turn_until(|fleet| fleet.slot(APP).trial.is_some()).await;
        match reboot {
            None => fleet.must_serve = true,
            Some(false) => fleet.crash(),
            Some(true) => fleet.reboot(),
        }
        fleet.settle().await;
        fleet.check_settled();
        assert_eq!((fleet.active(MODEL).as_deref(), fleet.active(LABELS).as_deref()), (Some("2"), Some("2")));
    }
}

#[tokio::test(start_paused = true)]
async fn another_wish_in_between_costs_the_users_nothing() {
    for version in ["1", "5"] {
        for turns in [4, 8, 12, 16, 20] {
            let mut fleet = Fleet::new(true).await;
            fleet.want(MODEL, "2");
            fleet.turns(turns, LONG).await;
            let is_proved = fleet.active(MODEL).as_deref() == Some("2");
            fleet.want(MODEL, version);
            fleet.settle().await;
            fleet.check_settled();
            let expected = if is_proved && version == "1" { "2" } else { version }; // an older one is refused then
            assert_eq!(fleet.active(MODEL).as_deref(), Some(expected));
        }
    }
    // A node that is drained stops, and goes on with what was proved.
    let mut fleet = Fleet::new(true).await;
    fleet.want(MODEL, "4");
    fleet.turn_until(|fleet| fleet.specs(APP).len() == 2).await;
    fleet.must_serve = false;
    for drained in [true, false] {
        fleet.ask(APP, |ask| ask.drained = drained);
        fleet.ask(MODEL, |ask| ask.drained = drained);
        fleet.turns(10_000, LONG).await;
        assert_eq!(fleet.specs(APP).is_empty(), drained);
    }
    fleet.check_settled();
}

/// Everything that may be half done: which release of the model, and whether the app has an update of its own.
/// Warm or not, crash or reboot.
const CUTS: [(&str, &str, bool, bool); 8] = [
    ("2", "1", true, false),
    ("4", "1", true, false),
    ("2", "2", true, false),
    ("2", "1", true, true),
    ("4", "2", true, true),
    ("2", "2", false, false),
    ("4", "1", false, false),
    ("3", "1", false, true),
];

#[tokio::test(start_paused = true)]
async fn cut_between_any_two_steps_it_converges() {
    for (model, version, warm, reboot) in CUTS {
        let mut cuts = 0;
        loop {
            let mut fleet = Fleet::new(warm).await;
            fleet.must_serve = warm && !reboot;
            fleet.want(MODEL, model);
            fleet.want(APP, version);
            let rested = fleet.turns(cuts, LONG).await;
            match reboot {
                true => fleet.reboot(),
                false => fleet.crash(),
            }
            fleet.settle().await;
            fleet.check_settled();
            let good = if model == "2" { "2" } else { "1" };
            assert_eq!(fleet.active(MODEL).as_deref(), Some(good), "cut after {cuts}");
            assert_eq!(fleet.active(APP).as_deref(), Some(version), "cut after {cuts}");
            if rested {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 8, "{model} {version}: {cuts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_takes_the_agent_down_counts_as_failed_and_its_users_do_not() {
    let mut fleet = Fleet::new(true).await;
    let digest = fleet.release(MODEL, "2").digest;
    fleet.want(MODEL, "2");
    for cut in 0..MAX_ATTEMPTS {
        fleet.turn_until(|fleet| fleet.slot(MODEL).attempts(digest) > cut && fleet.slot(APP).trial.is_some()).await;
        fleet.crash();
    }
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.slot(MODEL).failure(digest).unwrap().reason, "Interrupted");
    assert_eq!(fleet.active(MODEL).as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn files_stay_for_as_long_as_somebody_has_them() {
    let mut fleet = Fleet::new(false).await;
    fleet.wanted[MODEL].send_replace(Wanted::Remove);
    fleet.settle().await;
    assert!(fleet.slot(MODEL).is_cleared());
    let message = fleet.status_or_gone(MODEL).unwrap().message;
    assert!(message.contains("its files go when web does not use them any more"), "{message}");
    // It can be started again, by another agent, too.
    fleet.reboot();
    fleet.settle().await;
    assert_eq!(fleet.specs(APP).len(), 1);
    // Nobody new begins to use them.
    fleet.want(APP, "2");
    fleet.settle().await;
    let status = fleet.status(APP);
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Blocked, "FilesMissing"));
    assert!(status.message.contains("model, which is not on this box"), "{}", status.message);
    // It comes back as another one, which has to be proved by who has the one before.
    fleet.want(MODEL, "2");
    fleet.want(APP, "1");
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.active(MODEL).as_deref(), Some("2"));
    for app in [MODEL, APP] {
        fleet.wanted[app].send_replace(Wanted::Remove);
    }
    fleet.settle().await;
    assert!(fleet.status_or_gone(MODEL).is_none());
    let left: BTreeSet<_> = std::fs::read_dir(fleet.folder(MODEL).join("releases")).unwrap().collect_names();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_before_started_is_pinned_to_what_is_current() {
    for leftover in [true, false] {
        let mut fleet = Fleet::new(false).await;
        fleet.crash();
        if !leftover {
            fleet.world.reboot();
        }
        let mut slot = fleet.slot(APP);
        slot.active.as_mut().unwrap().uses.clear();
        slot::store(&Record::at(fleet.folder(APP).join("slot")), &slot).unwrap();
        fleet.turn_until(|fleet| !fleet.slot(APP).active.unwrap().uses.is_empty()).await;
        fleet.settle().await;
        fleet.check_settled();
        fleet.want(MODEL, "2");
        fleet.settle().await;
        fleet.check_settled();
        assert_eq!(fleet.active(MODEL).as_deref(), Some("2"));
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_files_of_others_are_never_run_with_and_fetched_again() {
    let mut fleet = Fleet::new(false).await;
    fleet.reboot();
    fleet.turn_until(|fleet| fleet.apps.len() == 2).await;
    let digest = fleet.release(MODEL, "1").digest;
    let file = tree::release_folder(&fleet.folder(MODEL).join("releases"), digest).join("tree/bin/run");
    std::fs::write(&file, "damaged").unwrap();
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "model 1");
}

#[tokio::test(start_paused = true)]
async fn what_it_had_of_gpus_beside_itself_is_given_back() {
    for (has, warm) in [(&[("GPU-a", ""), ("GPU-b", "")][..], true), (&[("GPU-a", "")], false)] {
        let mut fleet = Fleet::empty(true, &[MODEL]);
        fleet.publish(APP, "1", "3s", r#""update": {"strategy": "warm"}, "uses": ["model"], "gpus": {}"#);
        show(&fleet.world, has);
        fleet.want(MODEL, "1");
        fleet.want(APP, "1");
        fleet.settle().await;
        fleet.must_serve = warm;
        for model in ["2", "5", "4"] {
            fleet.want(MODEL, model);
            fleet.settle().await;
            fleet.check_settled();
            let inventory = fleet.world.gpus.inventory().unwrap();
            assert_eq!(inventory.devices.iter().map(|gpu| gpu.apps.len()).sum::<usize>(), 1, "the rest is given back");
        }
        assert_eq!(fleet.active(MODEL).as_deref(), Some("5"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_could_not_be_started_again_goes_on_and_proves_nothing() {
    let mut fleet = Fleet::empty(false, &[MODEL]);
    fleet.publish(APP, "1", "3s", r#""uses": ["model"], "gpus": {}"#);
    show(&fleet.world, &[("GPU-a", "")]);
    for app in [MODEL, LABELS, APP] {
        fleet.want(app, "1");
    }
    fleet.settle().await;
    show(&fleet.world, &[("GPU-a", "lost")]);
    fleet.want(MODEL, "2");
    fleet.settle().await;
    assert_eq!(fleet.starts(APP), [pair("1", "1")], "it runs, and is left alone");
    assert_eq!(fleet.status(MODEL).message, "waits for web to prove it, which cannot run now");
    // Other files do not wait for that.
    fleet.publish(OTHER, "1", "3s", r#""uses": ["labels"]"#);
    fleet.want(OTHER, "1");
    fleet.settle().await;
    fleet.want(LABELS, "2");
    fleet.settle().await;
    assert_eq!((fleet.active(LABELS).as_deref(), fleet.active(MODEL).as_deref()), (Some("2"), Some("1")));
    // Its GPU goes in the middle of the proof: nothing is held against the files.
    show(&fleet.world, &[("GPU-a", "")]);
    fleet.turn_until(|fleet| fleet.starts(APP).len() == 2).await;
    fleet.world.driver.set_sick(true);
    show(&fleet.world, &[("GPU-a", "lost")]);
    assert!(fleet.turns(1_000, LONG).await, "it never comes to rest");
    assert_eq!(fleet.slot(MODEL).failed, []);
    fleet.world.driver.set_sick(false);
    show(&fleet.world, &[("GPU-a", "")]);
    fleet.settle().await;
    assert_eq!(fleet.active(MODEL).as_deref(), Some("2"));
    assert_eq!(fleet.starts(APP).last(), Some(&pair("1", "2")));
    // Or between stop and start.
    fleet.want(MODEL, "5");
    fleet.turn_until(|fleet| fleet.specs(APP).is_empty()).await;
    show(&fleet.world, &[("GPU-a", "lost")]);
    assert!(fleet.turns(1_000, LONG).await, "it never comes to rest");
    show(&fleet.world, &[("GPU-a", "")]);
    fleet.settle().await;
    assert_eq!((fleet.active(MODEL).as_deref(), fleet.starts(APP).last()), (Some("5"), Some(&pair("1", "5"))));
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_own_files_are_to_be_proved_has_that_done_first() {
    for held in [true, false] {
        let mut fleet = Fleet::empty(false, &[]);
        for version in ["1", "2"] {
            fleet.publish(APP, version, "3s", r#""uses": ["model"]"#);
            fleet.publish(OTHER, version, "3s", r#""uses": ["web"]"#);
        }
        for app in [MODEL, APP, OTHER] {
            fleet.want(app, "1");
            fleet.settle().await;
        }
        fleet.want(APP, "2");
        fleet.ask(APP, |ask| ask.order.hold = held);
        if !held {
            fleet.turn_until(|fleet| fleet.slot(APP).trial.is_some()).await;
        }
        fleet.want(MODEL, "2");
        if held {
            let asked = |fleet: &Fleet| fleet.status(MODEL).message.contains("waits for web to prove it");
            fleet.turn_until(asked).await;
            fleet.ask(APP, |ask| ask.order.hold = false);
        }
        fleet.settle().await;
        for app in [MODEL, APP, OTHER] {
            assert_eq!((app, fleet.active(app).as_deref()), (app, Some(if app == OTHER { "1" } else { "2" })));
        }
        assert_eq!(fleet.slot(OTHER).active.unwrap().uses[&name(APP)].version.as_str(), "2");
        assert_eq!(fleet.starts(APP).last(), Some(&pair("2", "2")));
    }
}

#[tokio::test(start_paused = true)]
async fn apps_that_use_each_other_are_refused() {
    let mut fleet = Fleet::empty(false, &[]);
    fleet.publish(OTHER, "1", "3s", r#""uses": ["web"]"#);
    fleet.publish(APP, "2", "3s", r#""uses": ["other"]"#);
    fleet.want(APP, "1");
    fleet.want(OTHER, "1");
    fleet.settle().await;
    fleet.want(APP, "2");
    fleet.settle().await;
    let status = fleet.status(APP);
    assert_eq!((status.phase, status.reason.as_str()), (UpdatePhase::Blocked, "FilesCircle"));
    assert!(status.message.contains("it uses the files of other, which uses its own"), "{}", status.message);
    assert_eq!(fleet.starts(APP), [pair("1", "")]);
    assert_eq!(fleet.active(OTHER).as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn who_went_back_after_its_proof_is_asked_again() {
    let mut fleet = Fleet::new(false).await;
    fleet.publish(OTHER, "1", "12s", r#""uses": ["model"]"#);
    fleet.want(OTHER, "1");
    fleet.settle().await;
    fleet.want(MODEL, "2");
    fleet.turn_until(|fleet| fleet.status(APP).message.contains("it has proved it, and waits for others")).await;
    let digest = fleet.release(APP, "1").digest;
    let file = tree::release_folder(&fleet.folder(APP).join("releases"), digest).join("tree/bin/run");
    std::fs::write(&file, "damaged").unwrap();
    fleet.world.driver.end(&name(APP));
    fleet.settle().await;
    fleet.check_settled();
    assert_eq!(fleet.active(MODEL).as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn files_that_are_found_damaged_do_not_stop_who_owns_them() {
    let mut fleet = Fleet::empty(false, &[]);
    fleet.publish(APP, "1", "3s", r#""uses": ["other"]"#);
    fleet.want(OTHER, "1");
    fleet.settle().await;
    fleet.want(APP, "1");
    fleet.settle().await;
    let digest = fleet.release(OTHER, "1").digest;
    let file = tree::release_folder(&fleet.folder(OTHER).join("releases"), digest).join("tree/bin/run");
    std::fs::write(&file, "damaged").unwrap();
    fleet.world.driver.end(&name(APP));
    fleet.settle().await;
    assert_eq!(std::fs::read_to_string(file).unwrap(), "other 1");
    assert_eq!((fleet.starts(OTHER).len(), fleet.starts(APP).len()), (1, 2));
}

trait CollectNames {
    fn collect_names(self) -> BTreeSet<String>;
}

impl CollectNames for std::fs::ReadDir {
    fn collect_names(self) -> BTreeSet<String> {
        self.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

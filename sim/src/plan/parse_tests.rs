use super::*;
use crate::fault::Way;

const GOOD: &str = r#"about = "one site is dark for a while"
duration = "4h"

[[site]]
name = "hz-01"
nodes = 3
line = "bad"
labels = { ring = "early" }
settings = { quota = "4Mi" }

[[site]]
name = "hz-02"
nodes = ["gpu-a", "gpu-b"]

[[line]]
name = "bad"
like = "256k-lossy"
loss = "8%"
rate = "1Mbit/s"

[[release]]
app = "scan-counter"
version = "1.0.0"
size = "2Mi"

[[release]]
app = "scan-counter"
version = "2.0.0"
behaviour = "crash-after 2s"

[[producer]]
per-minute = 30
curve = "daily"
peaks = [{ at = "1h", for = "30m", times = 10 }]

[[timeline]]
at = "1m"
rollout = "scan-counter@1.0.0"
to = "ring=early"

[[timeline]]
when = { node = "gpu-a", downloaded = "40%" }
cut = "site hz-01"
for = "1h"

[[timeline]]
at = "10m"
every = "30m"
times = 4
jitter = "5m"
crash-agent = "all"

[expect]
in-gaps = 0
rollouts = { "scan-counter@1.0.0" = "Succeeded" }
"#;

fn read(text: &str) -> Result<Plan, PlanError> {
    parse("test", "test.toml", text, None)
}

#[test]
fn a_good_file_says_all_of_a_run() {
    let plan = read(GOOD).unwrap();
    let nodes: Vec<_> = plan.sites.iter().flat_map(|site| &site.nodes).map(AsRef::as_ref).collect();
    assert_eq!(nodes, ["hz-01-1", "hz-01-2", "hz-01-3", "gpu-a", "gpu-b"]);
    assert_eq!(plan.duration, Duration::from_secs(4 * 3600));
    assert!(plan.sites[0].settings.contains("quota"));
    assert_eq!((plan.releases[0].bad, plan.releases[1].bad), (false, true));
    assert_eq!(plan.releases[1].args, ["crash-after=2s"]);
    assert_eq!(plan.timeline.iter().map(|entry| entry.line).collect::<Vec<_>>(), [36, 41, 46]);
    assert!(matches!(&plan.timeline[1].moment, Moment::Downloaded { percent: 40, .. }));
    let Action::Break { fault: Fault::Cut { way: Way::Both, .. }, lasts } = &plan.timeline[1].action else {
        panic!("{:?}", plan.timeline[1])
    };
    assert_eq!(*lasts, Some(Duration::from_secs(3600)));
    let Action::Break { lasts, .. } = &plan.timeline[2].action else { panic!("{:?}", plan.timeline[2]) };
    assert_eq!(*lasts, Some(Duration::from_secs(10)), "an agent is started again where nothing is said");
    assert_eq!(plan.expect.in_gaps, Some(0));
}

#[test]
fn a_target_means_boxes_and_never_the_hub() {
    let plan = read(GOOD).unwrap();
    let of = |target: &str| plan.nodes_of(&target.parse().unwrap()).map(AsRef::as_ref).collect::<Vec<&str>>();
    assert_eq!(of("all").len(), 5);
    assert_eq!(of("site hz-02"), ["gpu-a", "gpu-b"]);
    assert_eq!(of("node hz-01-2"), ["hz-01-2"]);
    assert_eq!((of("hub"), of("node hz-03-1")), (vec![], vec![]));
}

#[test]
fn times_may_be_put_together() {
    for (text, seconds) in [("4h30m", 16_200), ("1d1s", 86_401), ("12.5h", 45_000), ("4h 1m", 14_460)] {
        let plan =
            read(&GOOD.replace("duration = \"4h\"", &format!("duration = \"{text}\""))).map(|plan| plan.duration);
        assert_eq!(plan, Ok(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(read(&GOOD.replace("\"4h\"", "\"4h30\"")).unwrap_err().column, 12);
}

#[test]
fn a_line_may_be_slower_one_way() {
    let plan = read(&GOOD.replace("rate = \"1Mbit/s\"", "up = \"256kbit/s\"\ndown = \"2Mbit/s\"")).unwrap();
    let line = &plan.sites[0].line;
    assert_eq!((line.up().bytes_per_s, line.down().bytes_per_s), (Some(32_000), Some(250_000)));
    assert_eq!((line.up().loss_ppm, line.down().loss_ppm), (80_000, 80_000));
    let line = read(GOOD).unwrap().sites[0].line.clone();
    assert_eq!((line.up().bytes_per_s, line.down().bytes_per_s), (Some(125_000), Some(125_000)));
}

#[test]
fn the_number_of_nodes_can_be_set_for_a_run() {
    let scaled = |all| {
        parse("test", "test.toml", GOOD, Some(all))
            .map(|plan| plan.sites.iter().map(|site| site.nodes.len()).collect::<Vec<_>>())
    };
    assert_eq!(scaled(7), Ok(vec![4, 3]));
    assert_eq!(scaled(2), Ok(vec![1, 1]));
    assert!(scaled(1).unwrap_err().problem.contains("do not fit"));
    assert!(scaled(20_001).is_err());
}

#[test]
fn settings_are_read_as_the_agent_reads_them() {
    let of = |settings: &str| read(&GOOD.replace("quota = \"4Mi\"", settings)).map(|plan| plan.sites[0].streams());
    let streams = of("quota = \"4Mi\", metrics-interval = \"off\"").unwrap();
    assert_eq!((streams.quota.get(), streams.metrics_interval), (4 << 20, None));
    let streams = of("metrics-interval = \"1d\", stream = [{ name = \"scans\" }, { name = \"a\", class = \"logs\" }]");
    let streams = streams.unwrap();
    assert_eq!(streams.metrics_interval, Some(Duration::from_secs(86_400)));
    assert_eq!(streams.streams.iter().map(|s| s.name.as_ref()).collect::<Vec<_>>(), ["scans", "a"]);
}

#[test]
fn a_rollout_says_how_it_goes_about_it() {
    let how = "waves = [\"1\", \"10%\", \"site=hz-02\", \"all\"]\nsoak = \"10m\"\napproval = true\nmax-unavailable = \"10%\"\n\
               per = \"ring\"\non-failure = \"roll-back\"\nrollback-to = \"2.0.0\"\napply-window = \"22:00-04:00\"\n\
               spread = \"5m\"\nmax-failures = 2";
    let more = "[[timeline]]\nat = \"20m\"\napprove = \"scan-counter@1.0.0\"\n[[timeline]]\nat = \"21m\"\n\
                see = \"scan-counter@1.0.0\"\nphase = \"Paused\"\nnode = \"gpu-a\"\nwaits = \"\"\n[expect]\ntouched = { \
                \"scan-counter@1.0.0\" = 3 }";
    let plan = read(&GOOD.replace("to = \"ring=early\"", how).replace("[expect]", more)).unwrap();
    let Action::Rollout { app, version, to, how } = &plan.timeline[0].action else { panic!() };
    let spec = how.spec(app, version, to);
    assert_eq!(
        spec.waves.iter().map(|wave| (wave.count, wave.percent, wave.approval)).collect::<Vec<_>>(),
        [(Some(1), None, false), (None, Some(10), true), (None, None, true), (None, Some(100), true)]
    );
    assert_eq!(spec.waves.iter().map(|wave| wave.soak.get().as_secs()).collect::<Vec<_>>(), [600, 600, 600, 0]);
    assert_eq!(spec.budget.as_ref().map(|budget| budget.per.as_str()), Some("ring"));
    assert!(how.in_waves() && spec.windows.apply.len() == 1 && spec.gate.max_failures == 2);
    let Action::Rollout { how, .. } = &read(GOOD).unwrap().timeline[0].action else { panic!() };
    assert_eq!((**how).clone(), How::default());
    // As it is written it is read again.
    let again = read(&write(&plan)).unwrap();
    let actions = |plan: &Plan| plan.timeline.iter().map(|entry| entry.action.clone()).collect::<Vec<_>>();
    assert_eq!(actions(&again), actions(&plan));
    assert_eq!(again.expect.touched, plan.expect.touched);
}

/// A change of the good file, where the error must stand, and what it must say.
type Bad = (&'static str, &'static str, (usize, usize), &'static str, &'static str);

const BAD: &[Bad] = &[
    // (what is replaced, by what, (line, column), the problem has, the hint has)
    ("about =", "abuot =", (1, 1), "no field \"abuot\"", "\"about\""),
    ("duration = \"4h\"", "", (1, 1), "no \"duration\"", "write duration"),
    ("\"4h\"", "\"4 weeks\"", (2, 12), "not a span of time", ""),
    ("\"4h\"", "\"0s\"", (2, 12), "zero", "2h"),
    ("\"4h\"", "\"2000d\"", (2, 12), "longer than a run can be", "366d"),
    ("\"4h\"", "4", (2, 12), "without a unit", "5m"),
    ("\"4h\"", "\"4h", (2, 15), "", ""),
    ("nodes = 3", "nodes = 0", (6, 9), "out of range", "1 to 20000"),
    ("nodes = 3", "nodes = -3", (6, 9), "negative", "1 to 20000"),
    ("nodes = 3", "nodes = 20000", (13, 9), "more than 20000", ""),
    ("nodes = 3", "nodes = \"three\"", (6, 9), "a text", ""),
    ("nodes = 3", "nodes = []", (6, 9), "a list", ""),
    ("nodes = 3", "node = 3", (6, 1), "no field \"node\" in [[site]]", "\"nodes\""),
    ("nodes = 3", "nodes = 3\nnodes = 4", (7, 1), "duplicate", ""),
    ("\"gpu-b\"", "\"gpu-a\"", (13, 9), "already is a node gpu-a", ""),
    ("\"gpu-b\"", "\"hub\"", (13, 9), "\"hub\"", "otherwise"),
    ("\"gpu-b\"", "\"hz-01-2\"", (13, 9), "already is a node hz-01-2", "of its own"),
    ("\"gpu-b\"", "\"GPU b\"", (13, 19), "GPU b", ""),
    ("\"hz-02\"", "\"hz-01\"", (12, 8), "already is a site hz-01", ""),
    ("line = \"bad\"", "line = \"4gg\"", (7, 8), "no line \"4gg\"", "\"4g\""),
    ("line = \"bad\"", "line = \"satellite\"", (7, 8), "no line", "256k-lossy"),
    ("ring = \"early\" }", "ring = \"too early\" }", (8, 19), "no label", "letters"),
    ("quota = \"4Mi\"", "quota = \"1Ki\"", (9, 22), "out of range", "2Mi"),
    ("quota = \"4Mi\"", "qouta = \"4Mi\"", (9, 14), "no field \"qouta\"", "\"quota\""),
    ("quota = \"4Mi\"", "metrics-interval = \"2d\"", (9, 33), "out of range", ""),
    ("quota = \"4Mi\"", "metrics-interval = \"250ms\"", (9, 33), "write 1s to 1d", ""),
    ("quota = \"4Mi\"", "metrics-interval = 30", (9, 33), "must be a text", ""),
    ("quota = \"4Mi\"", "stream = [{ name = \"a\", class = \"scan\" }]", (9, 46), "no class \"scan\"", "\"scans\""),
    ("quota = \"4Mi\"", "stream = [{ name = \"cameras\" }]", (9, 24), "has no class", ""),
    ("quota = \"4Mi\"", "stream = [{ name = \"scans\" }, { name = \"scans\" }]", (9, 53), "named twice", ""),
    ("name = \"bad\"", "name = \"fiber\"", (16, 8), "already is a line", ""),
    ("\"8%\"", "\"108%\"", (18, 8), "out of range", "100%"),
    ("\"8%\"", "0.08", (18, 8), "no share", "%"),
    ("\"8%\"", "\"-8%\"", (18, 8), "out of range", ""),
    ("1Mbit/s", "1MB/s", (19, 8), "no rate", "kbit/s"),
    ("1Mbit/s", "-1Mbit/s", (19, 8), "out of range", ""),
    ("\"2Mi\"\n", "\"2Gi\"\n", (24, 8), "out of range", "1Gi"),
    ("\"2.0.0\"", "\"1.0.0\"", (27, 7), "already is a release scan-counter@1.0.0", "version"),
    ("crash-after 2s", "crash-after", (29, 13), "crash-after what", "2s"),
    ("crash-after 2s", "crsh-after 2s", (29, 13), "no behaviour", "\"crash-after\""),
    ("crash-after 2s", "hang 2s", (29, 13), "nothing more", ""),
    ("per-minute = 30", "stream = \"scan\"\nper-minute = 30", (32, 10), "hz-01 has no stream \"scan\"", "\"scans\""),
    ("per-minute = 30", "stream = \"events\"\nper-minute = 30", (32, 10), "the agent itself", "another"),
    ("quota = \"4Mi\"", "stream = [{ name = \"logs\" }]", (31, 1), "hz-01 has no stream \"scans\"", "logs"),
    ("per-minute = 30", "per-minute = -30", (32, 14), "negative", "0 to"),
    ("per-minute = 30", "per-minute = nan", (32, 14), "out of range", ""),
    ("per-minute = 30", "per-minute = 90000", (32, 14), "90000 a minute on 5 boxes for 240 minutes", "at most 5000000"),
    (
        "peaks = [",
        "peaks = [{ at = \"1h\", for = \"1h\", times = 30 }, { at = \"1h\", for = \"1h\", times = 30 }, { at = \"1h\", \
         for = \"1h\", times = 30 }, ",
        (32, 14),
        "by curve and peaks",
        "at most",
    ),
    ("\"daily\"", "\"dialy\"", (33, 9), "no curve", "\"daily\""),
    ("at = \"1h\", for", "at = \"5h\", for", (34, 17), "after the end", "duration"),
    ("times = 10", "times = \"many\"", (34, 44), "a text", ""),
    ("at = \"1m\"", "at = \"4h\"", (37, 6), "after the end", "duration"),
    ("at = \"1m\"", "", (36, 1), "never happens", "at = "),
    ("at = \"1m\"", "at = \"1m\"\nfor = \"1h\"", (38, 7), "at once", "leave \"for\" out"),
    ("rollout = \"scan-counter@1.0.0\"", "rollout = \"scan-counter@1.0.1\"", (38, 11), "no [[release]]", "1.0.0"),
    ("rollout = \"scan-counter@1.0.0\"", "rollout = \"scan-counter\"", (38, 11), "rollout", ""),
    ("rollout = \"scan-counter@1.0.0\"\nto = \"ring=early\"", "", (36, 1), "does nothing", "crash-agent"),
    ("ring=early", "ring=late", (39, 6), "no node of the file is selected", ""),
    ("ring=early", "site=hz-03", (39, 6), "no node of the file is selected", "\"site=hz-0"),
    ("ring=early", "ring in (", (39, 6), "selector", ""),
    ("node = \"gpu-a\"", "node = \"gpu-c\"", (42, 17), "no node \"gpu-c\"", "\"gpu-"),
    ("\"40%\"", "\"100%\"", (42, 39), "out of range", "99%"),
    ("downloaded = \"40%\"", "phase = \"Verifying\"", (42, 8), "no \"app\"", "write app"),
    ("downloaded = \"40%\"", "app = \"scan-counter\", phase = \"Verfying\"", (42, 56), "no phase", "\"Verifying\""),
    ("when = {", "at = \"1m\"\nwhen = {", (43, 1), "at the same time", "keep one"),
    ("cut = \"site hz-01\"", "cut = \"site hz-11\"", (43, 7), "no site \"hz-11\"", "\"hz-01\""),
    ("cut = \"site hz-01\"", "cut = \"hz-01\"", (43, 7), "nobody", "\"site hz-01\""),
    ("cut = \"site hz-01\"", "cut = \"hub\"", (43, 7), "cannot strike the hub", "\"all\""),
    ("cut = \"site hz-01\"", "cut = \"site hz-01\"\nreboot = \"all\"", (44, 1), "both", "another"),
    ("cut = \"site hz-01\"", "crash-hub = false", (43, 13), "must be true", "leave it out"),
    ("cut = \"site hz-01\"", "cut = \"all\"\noffset = \"1h\"", (44, 1), "says nothing about \"cut\"", "\"clock\""),
    ("cut = \"site hz-01\"", "clock = \"all\"\noffset = \"-200y\"", (44, 10), "too long", "-10y"),
    ("cut = \"site hz-01\"", "clock = \"all\"", (41, 1), "no \"offset\"", "-10y"),
    ("cut = \"site hz-01\"", "flip-bit = \"all\"\nin = \"outbx\"", (44, 6), "no bit flips", "\"outbox\""),
    ("cut = \"site hz-01\"", "rebind = \"all\"", (44, 7), "at once", "leave"),
    ("cut = \"site hz-01\"", "line = \"bad\"", (41, 1), "no \"of\"", "site hz-01"),
    (
        "crash-agent = \"all\"",
        "crash-agent = \"all\"\n\n[[timeline]]\nat = \"2h\"\nrollout = \"scan-counter@1.0.0\"",
        (55, 1),
        "scan-counter@1.0.0 is rolled out already",
        "higher version",
    ),
    ("to = \"ring=early\"", "every = \"1h\"\ntimes = 2", (39, 1), "rolled out once", "another [[release]]"),
    ("to = \"ring=early\"", "strategy = \"canry\"", (39, 12), "no strategy \"canry\"", "\"canary\""),
    ("to = \"ring=early\"", "waves = [\"1\", \"120%\"]", (39, 15), "more than all", ""),
    ("to = \"ring=early\"", "waves = \"1\"", (39, 9), "a list of texts", ""),
    ("to = \"ring=early\"", "waves = []", (39, 9), "0 entries", "leave it out"),
    ("to = \"ring=early\"", "soak = \"10m\"", (39, 1), "without \"waves\"", "waves = "),
    ("to = \"ring=early\"", "max-unavailable = 1", (39, 19), "a whole number", ""),
    ("to = \"ring=early\"", "max-unavailable = \"one\"", (39, 19), "no number of nodes", ""),
    ("to = \"ring=early\"", "per = \"site\"", (39, 1), "without \"max-unavailable\"", "max-unavailable = "),
    ("to = \"ring=early\"", "on-failure = \"rollback\"", (39, 14), "no on-failure", "\"roll-back\""),
    ("to = \"ring=early\"", "on-failure = \"roll-back\"", (39, 1), "without \"rollback-to\"", "rollback-to = "),
    ("to = \"ring=early\"", "rollback-to = \"1.1.0\"", (39, 15), "no [[release]] scan-counter@1.1.0", "1.0.0"),
    ("to = \"ring=early\"", "apply-window = \"22-04\"", (39, 16), "apply-window", "22:00-04:00"),
    ("to = \"ring=early\"", "spread = \"0s\"", (39, 10), "zero", ""),
    ("cut = \"site hz-01\"", "cut = \"all\"\nsoak = \"1m\"", (44, 1), "says nothing about \"cut\"", "\"rollout\""),
    ("cut = \"site hz-01\"\nfor = \"1h\"", "pause = \"scan-counter@2.0.0\"", (43, 9), "no entry before", "@1.0.0"),
    ("cut = \"site hz-01\"", "abort = \"scan-counter@1.0.0\"", (44, 7), "at once", "leave"),
    (
        "cut = \"site hz-01\"\nfor = \"1h\"",
        "see = \"scan-counter@1.0.0\"\nnode = \"gpu-a\"",
        (44, 1),
        "without \"waits\"",
        "",
    ),
    (
        "cut = \"site hz-01\"\nfor = \"1h\"",
        "see = \"scan-counter@1.0.0\"\nphase = \"Pausd\"",
        (44, 9),
        "no phase",
        "\"Paused\"",
    ),
    ("in-gaps = 0", "touched = { \"scan-counter@2.0.0\" = 1 }", (54, 13), "rolls", "1.0.0"),
    ("to = \"ring=early\"", "may-miss = \"yes\"", (39, 12), "true or false", ""),
    ("every = \"30m\"\n", "", (48, 1), "without \"every\"", "every ="),
    ("times = 4\n", "", (48, 1), "without \"times\"", "times ="),
    ("times = 4", "times = 40", (49, 1), "may begin", "duration"),
    ("every = \"30m\"", "every = \"5s\"", (48, 1), "before it is over", "longer than"),
    ("crash-agent = \"all\"", "crash-agent = \"all\"\nfor = \"25m\"", (48, 1), "before it is over", ""),
    ("times = 4", "times = 8\nfor = \"24m\"", (50, 1), "may end", "\"end\""),
    ("in-gaps = 0", "in-gaps = 1.5", (54, 11), "whole number", ""),
    ("\"scan-counter@1.0.0\" = \"Succeeded\"", "\"scan-counter@2.0.0\" = \"Failed\"", (55, 14), "rolls", "1.0.0"),
    ("\"Succeeded\"", "\"Suceeded\"", (55, 37), "no phase", "\"Succeeded\""),
    ("in-gaps = 0", "gaps = 0", (54, 1), "no field \"gaps\"", "\"in-gaps\""),
    ("[expect]", "[[broker]]\nname = \"gpu-a\"\n\n[expect]", (54, 8), "already is a host gpu-a", "otherwise"),
    ("[expect]", "[[broker]]\nname = \"house\"\ndrop = \"200%\"\n\n[expect]", (55, 8), "out of range", "100%"),
    ("[expect]", "[[broker]]\nname = \"house\"\nline = \"fibre\"\n\n[expect]", (55, 8), "no line", "\"fiber\""),
    ("[expect]", "[[broker]]\nname = \"house\"\npacket-limit = 10\n\n[expect]", (55, 16), "out of range", "write 100"),
    ("[expect]", "[[broker]]\nname = \"house\"\nlimit = 10\n\n[expect]", (55, 1), "no field \"limit\"", ""),
    ("cut = \"site hz-01\"", "broker-down = \"house\"", (43, 15), "no [[broker]] \"house\"", "there are none"),
];

#[test]
fn what_is_wrong_is_said_with_its_place_and_what_was_meant() {
    let mut wrong = vec![];
    for (from, to, place, problem, hint) in BAD {
        assert!(GOOD.contains(from), "{from:?} is not in the good file");
        match read(&GOOD.replacen(from, to, 1)) {
            Ok(_) => wrong.push(format!("{to:?} is taken")),
            Err(error) => {
                let said = error.problem.contains(problem) && error.hint.contains(hint);
                if !said || (error.line, error.column) != *place {
                    wrong.push(format!("{to:?}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn an_error_shows_the_line_that_it_means() {
    let error = read(&GOOD.replace("per-minute", "per-minite")).unwrap_err().to_string();
    let wanted = "test.toml:32:1: there is no field \"per-minite\" in [[producer]]\n 32 | per-minite = 30\n    | ^^^^^^^^^^\n    \
                  = did you mean \"per-minute\"?";
    assert_eq!(error, wanted);
}

#[test]
fn nothing_that_is_not_toml_ends_in_a_panic() {
    for text in ["", "=", "[[site]]", "a = \"\u{1f4e6}", "[site]\nname = 1", "site = [1]", "\u{0}", "é = 1\n[[site"] {
        let error = read(text).unwrap_err();
        assert!(error.line >= 1 && error.column >= 1, "{error}");
    }
    let deep = "[".repeat(10_000);
    assert!(read(&format!("a = {deep}")).is_err());
}

#[test]
fn gpus_of_sites_releases_and_faults_are_read_as_they_are_written() {
    let text = GOOD.replacen("nodes = 3", "nodes = 3\ngpus = 2", 1);
    let text = text.replacen(
        "version = \"1.0.0\"",
        "version = \"1.0.0\"\ngpus = { count = 2, memory = \"8Gi\", exclusive = false }",
        1,
    );
    let text = text.replacen("cut = \"site hz-01\"", "gpu-lost = \"node hz-01-1\"", 1);
    let plan = read(&text).unwrap();
    let gpus = plan.releases[0].gpus.clone().unwrap();
    assert_eq!((plan.sites[0].gpus, gpus.count, gpus.memory_bytes(), gpus.exclusive), (2, 2, 8 << 30, false));
    let lost = |entry: &Entry| matches!(&entry.action, Action::Break { fault: Fault::GpuLost { .. }, .. });
    assert!(plan.timeline.iter().any(lost));
    let again = read(&write(&plan)).unwrap();
    assert_eq!((again.sites[0].gpus, again.sites[1].gpus, &again.releases), (2, 0, &plan.releases));
    let error = read(&text.replacen("memory = \"8Gi\", ", "", 1)).unwrap_err();
    assert!(error.problem.contains("need \"memory\""), "{error}");
}

#[test]
fn replicas_and_what_they_follow_are_read_as_they_are_written() {
    let replicas = "replicas = { min = 2, max = 5, metric = \"backlog\", target = 0.5, window = \"1m\", tells = 7 }";
    let text = GOOD.replacen("version = \"1.0.0\"", &format!("version = \"1.0.0\"\n{replicas}"), 1);
    let text = text.replacen("cut = \"site hz-01\"", "backlog = \"site hz-01\"\ncount = 400", 1);
    let plan = read(&text).unwrap();
    let Scaling { replicas, tells } = plan.releases[0].scaling.clone().unwrap();
    assert_eq!((replicas.min, replicas.max, replicas.metric.as_ref(), tells), (2, 5, "backlog", 7));
    assert_eq!((replicas.target.get(), replicas.stabilization_window.get()), (0.5, Duration::from_secs(60)));
    let told = Fault::Backlog { target: "site hz-01".parse().unwrap(), count: 400 };
    let tells = |entry: &Entry| matches!(&entry.action, Action::Break { fault, .. } if *fault == told);
    assert!(plan.timeline.iter().any(tells));
    let again = read(&write(&plan)).unwrap();
    assert_eq!((&again.releases, again.timeline.iter().filter(|entry| tells(entry)).count()), (&plan.releases, 1));
    for (from, to, problem) in [
        ("max = 5", "max = 17", "max is out of range"),
        ("max = 5", "max = 1", "min is out of range"),
        ("metric = \"backlog\", ", "", "no \"metric\""),
        ("count = 400\n", "", "no \"count\""),
        ("replicas = {", "gpus = { count = 1 }\nreplicas = {", "do not go together"),
    ] {
        let error = read(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.problem.contains(problem), "{to}: {error}");
    }
    let error = read(&GOOD.replacen("cut = \"site hz-01\"", "backlog = \"all\"\ncount = 4", 1)).unwrap_err();
    assert!(error.problem.contains("no [[release]] has \"replicas\""), "{error}");
}

#[test]
fn so_many_instances_are_as_many_as_a_number_asks_for() {
    let text = GOOD.replacen(
        "version = \"1.0.0\"",
        "version = \"1.0.0\"\nreplicas = { min = 2, max = 5, metric = \"backlog\", target = 100 }",
        1,
    );
    let scaling = read(&text).unwrap().releases[0].scaling.clone().unwrap();
    let met = |told| (0..=7).filter(|instances| scaling.is_met(told, *instances)).collect::<Vec<_>>();
    assert_eq!((met(0), met(200), met(250), met(9000)), (vec![2], vec![2], vec![3], vec![5]));
    // Ten percent change nothing.
    assert_eq!((met(310), met(290), met(500)), (vec![3, 4], vec![3], vec![5]));
}

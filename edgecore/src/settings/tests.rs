use super::*;

fn problem(text: &str) -> (usize, String) {
    Settings::parse(text).expect_err(text)
}

#[test]
fn no_file_and_an_empty_one_are_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Settings::load(folder.path()).unwrap(), Settings::default());
    fs::write(folder.path().join(FILE), "# nothing\n[streams]\n").unwrap();
    assert_eq!(Settings::load(folder.path()).unwrap(), Settings::default());
    let streams = Settings::default().streams;
    assert_eq!(streams.streams.len(), 4);
    assert_eq!(streams.topics[0].filter.as_str(), "crossdock/streams/scans");
}

#[test]
fn every_key_is_read() {
    let text = r#"
        [streams]
        http = "0.0.0.0:0"
        socket = "/run/x.sock"
        socket-mode = "0600"
        socket-group = "scanners"
        mqtt = "off"
        user = "scanner"
        password-file = "secret"
        allow-remote = true
        quota = "64Mi"
        disk-share-percent = 10
        metrics-interval = "5m"
        [[streams.stream]]
        name = "scans"
        [[streams.stream]]
        name = "weights"
        class = "scans"
        [[streams.topic]]
        filter = "line/+/scan"
        stream = "weights"
        [[streams.broker]]
        url = "mqtts://[::1]"
        client-id = "box-1"
        user = "u"
        password-file = "/etc/p"
        ca = "ca.pem"
        topics = [{ filter = "line/#", stream = "scans" }]
        [[streams.broker]]
        url = "mqtt://broker.local:11883/"
        topics = [{ filter = "a", stream = "scans" }]
    "#;
    let settings = Settings::parse(text).unwrap();
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    let s = settings.streams;
    assert_eq!(s.http, Some("0.0.0.0:0".parse().unwrap()));
    assert_eq!((s.socket.as_deref(), s.socket_mode, s.mqtt), (Some(Path::new("/run/x.sock")), 0o600, None));
    assert_eq!((s.quota.get(), s.disk_share_percent), (64 << 20, 10));
    assert_eq!(s.metrics_interval, Some(Duration::from_secs(300)));
    assert_eq!(Settings::parse("[streams]\nmetrics-interval = \"off\"").unwrap().streams.metrics_interval, None);
    assert_eq!(s.streams[0].class, Class::Scans, "a class's own name is its class");
    assert_eq!(s.topics.len(), 1, "given topics replace the defaults");
    assert_eq!(s.brokers[0].broker.url.to_string(), "mqtts://[::1]:8883");
    assert_eq!(s.brokers[1].broker.url.to_string(), "mqtt://broker.local:11883");
}

#[test]
fn unknown_keys_are_named_and_skipped() {
    let settings = Settings::parse("colour = 1\n[streams]\nquota = 100000000\nspeed = 2\n").unwrap();
    assert_eq!(settings.streams.quota.get(), 100_000_000);
    let mut warnings = settings.warnings;
    warnings.sort();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("line 1: colour"), "{warnings:?}");
    assert!(warnings[1].contains("line 4: streams.speed"), "{warnings:?}");
}

#[test]
fn bad_values_name_their_line_and_the_mend() {
    for (text, line, part) in [
        ("[streams\n", 1, "no TOML"),
        ("\n[streams]\nhttp = 7480", 3, "text in quotes"),
        ("[streams]\nhttp = \"localhost\"", 2, "127.0.0.1:7480"),
        ("[streams]\nhttp = \"0.0.0.0:7480\"", 2, "allow-remote"),
        ("[streams]\nallow-remote = true\nmqtt = \"0.0.0.0:1\"", 3, "user"),
        ("[streams]\nuser = \"a\"", 2, "password-file"),
        ("[streams]\npassword-file = \"a\"", 2, "user"),
        ("[streams]\nuser = \"a:b\"\npassword-file = \"a\"", 2, "':'"),
        ("[streams]\nallow-remote = 1", 2, "true or false"),
        ("[streams]\nsocket = \"\"", 2, "off"),
        ("[streams]\nsocket-mode = \"0999\"", 2, "0660"),
        ("[streams]\nquota = \"lots\"", 2, "64Mi"),
        ("[streams]\nquota = \"1Ki\"", 2, "2Mi"),
        ("[streams]\ndisk-share-percent = 0", 2, "1 to 100"),
        ("[streams]\ndisk-share-percent = 300", 2, "1 to 100"),
        ("streams = 1", 1, "[streams]"),
        ("[streams]\nstream = 1", 2, "[[streams.stream]]"),
        ("[[streams.stream]]\nclass = \"logs\"", 1, "no name"),
        ("[[streams.stream]]\nname = \"A b\"", 2, "lower-case"),
        ("[[streams.stream]]\nname = \"weights\"", 1, "class ="),
        ("[[streams.stream]]\nname = \"logs\"\nclass = \"x\"", 3, "metrics"),
        ("[[streams.stream]]\nname = \"logs\"\n[[streams.stream]]\nname = \"logs\"", 4, "twice"),
        ("[[streams.topic]]\nfilter = \"a/#/b\"\nstream = \"scans\"", 2, "last"),
        ("[[streams.topic]]\nfilter = \"a\"\nstream = \"nix\"", 3, "scans, events, metrics, logs"),
        ("[[streams.topic]]\nstream = \"scans\"", 1, "filter"),
        ("[[streams.topic]]\nfilter = \"a\"", 1, "nowhere"),
        ("[[streams.broker]]\ntopics = []", 1, "no url"),
        ("[[streams.broker]]\nurl = \"http://a\"", 2, "mqtt://HOST"),
        ("[[streams.broker]]\nurl = \"mqtt://a:b\"", 2, "mqtt://HOST"),
        ("[[streams.broker]]\nurl = \"mqtt://a\"", 1, "topics"),
        ("[[streams.broker]]\nurl = \"mqtts://a\"\ntopics = [{filter=\"a\",stream=\"logs\"}]", 1, "ca"),
    ] {
        let (at, said) = problem(text);
        assert_eq!(at, line, "{text}: {said}");
        assert!(said.contains(part), "{text}: {said}");
    }
    let many: String = (0..40).map(|i| format!("[[streams.stream]]\nname = \"s{i}\"\nclass = \"logs\"\n")).collect();
    assert!(problem(&many).1.contains("at most"));
}

#[test]
fn a_file_that_is_no_text_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE), [0xFF, 0xFE]).unwrap();
    let error = Settings::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains(FILE), "{error}");
}

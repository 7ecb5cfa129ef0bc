//! `agent.toml` in the data folder: what an operator may set on a box. No file is the same as an empty one.
//!
//! ```toml
//! [node]
//! reboot = "systemctl reboot"    # run when the hub wants the box to restart; words are split at blanks; or "off"
//!
//! [containers]
//! socket = "/run/docker.sock"    # of the engine; default: the first there is of Docker's and Podman's; or "off"
//!
//! [streams]
//! http = "127.0.0.1:7480"        # or "off"; port 0: one that is free, the same again after a restart
//! socket = "doors/streams.sock"  # Unix socket in the data folder, or "off"; containers see it if it is alone in its folder
//! socket-mode = "0660"
//! socket-group = ""
//! mqtt = "127.0.0.1:7483"        # or "off"
//! user = ""                      # with it, HTTP basic and MQTT user and password are required over TCP
//! password-file = ""
//! allow-remote = false           # addresses other than loopback; needs a user
//! quota = "1Gi"                  # of the outbox
//! disk-share-percent = 50        # and never more than this share of the disk
//! metrics-interval = "30s"       # between records of stream metrics about node and workloads; or "off"
//!
//! [[streams.stream]]             # given ones replace scans, events, metrics and logs; the agent itself writes
//!                                # to events and metrics, where there are such streams
//! name = "scans"
//! class = "scans"                # scans | events | metrics | logs
//!
//! [[streams.topic]]              # given ones replace crossdock/streams/<stream>; the first that fits counts
//! filter = "line/+/scan"
//! stream = "scans"
//!
//! [[streams.broker]]             # subscribed at; mqtts:// needs the ca
//! url = "mqtt://127.0.0.1:1883"
//! client-id = ""                 # default: crossdock-<node>
//! user = ""
//! password-file = ""
//! ca = ""
//! topics = [{ filter = "line/+/scan", stream = "scans" }]
//!
//! [link]
//! carrier = "auto"               # UDP, or MQTT where UDP does not get through; or "mqtt": that alone
//!
//! [[link.broker]]                # through which the hub is reached where UDP does not get through; in order
//! url = "mqtts://broker:8883"    # or mqtt://, ws://, wss://; TLS needs the ca
//! user = ""
//! password-file = ""
//! ca = ""
//! certificate = ""               # shown to the broker, with its key
//! key = ""
//! proxy = "http://proxy:3128"    # HTTP CONNECT
//! proxy-user = ""
//! proxy-password-file = ""
//! ```
//!
//! A `[[streams.broker]]` takes certificate, key and proxy as well. Paths are in the data folder unless they begin
//! with `/`. Unknown keys are skipped and named in [`Settings::warnings`], so that a newer file does not stop an
//! older agent; a bad value does.

mod section;

use std::{
    cell::RefCell,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    broker::{Broker, BrokerUrl, ProxyUrl},
    name::Name,
    stream::{Class, MAX_STREAMS},
    units::{Bytes, Span},
};
use toml::de::DeTable;

use self::section::{Section, Wrong};
use crate::{doors::topic::Filter, driver::container::SOCKETS};

/// Name of the file in the data folder.
pub const FILE: &str = "agent.toml";
/// Streams of one box: every one may still have something of an epoch before this one.
const MAX_NAMED: usize = MAX_STREAMS / 2;
const MAX_TOPICS: usize = 256;
const MAX_BROKERS: usize = 8;
const MIN_QUOTA_BYTES: u64 = 2 << 20;
const METRICS_LEAST: Duration = Duration::from_secs(1);
const METRICS_MOST: Duration = Duration::from_secs(86_400);

/// What an operator may set on a box.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The box itself.
    pub node: NodeSetting,
    /// Containers.
    pub containers: Containers,
    /// How records come in and how many may wait.
    pub streams: Streams,
    /// How the hub is reached.
    pub link: Link,
    /// What was skipped, in words.
    pub warnings: Vec<String>,
}

/// The box itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSetting {
    /// The command that restarts it; empty: not from afar.
    pub reboot: Vec<String>,
}

impl Default for NodeSetting {
    fn default() -> NodeSetting {
        NodeSetting { reboot: words("systemctl reboot") }
    }
}

/// Containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containers {
    /// Sockets of the engine; the first that is there counts.
    pub sockets: Vec<PathBuf>,
}

impl Default for Containers {
    fn default() -> Containers {
        Containers { sockets: SOCKETS.map(PathBuf::from).into() }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Whether UDP is tried at all.
    pub udp: bool,
    /// Brokers to reach it through, in order.
    pub brokers: Vec<Broker>,
}

impl Default for Link {
    fn default() -> Link {
        Link { udp: true, brokers: vec![] }
    }
}

/// How records come in and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Where the HTTP door listens.
    pub http: Option<SocketAddr>,
    /// Where the Unix socket lies.
    pub socket: Option<PathBuf>,
    /// Its permission bits.
    pub socket_mode: u32,
    /// Its group; otherwise the agent's own.
    pub socket_group: Option<String>,
    /// Where the MQTT door listens.
    pub mqtt: Option<SocketAddr>,
    /// Who may come in over TCP; otherwise everybody who can connect.
    pub user: Option<String>,
    /// Holds that user's password.
    pub password_file: Option<PathBuf>,
    /// Whether the doors may listen beyond this box.
    pub allow_remote: bool,
    /// Bytes that the outbox may take on disk.
    pub quota: Bytes,
    /// Share of the disk that it may take at most.
    pub disk_share_percent: u8,
    /// Between two records of the agent about itself and its workloads; absent: none.
    pub metrics_interval: Option<Duration>,
    /// The streams.
    pub streams: Vec<StreamSetting>,
    /// Which topics of the MQTT door lead to which stream; the first that fits counts.
    pub topics: Vec<TopicSetting>,
    /// Brokers to subscribe at.
    pub brokers: Vec<BrokerSetting>,
}

/// A stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSetting {
    /// Its name.
    pub name: Name,
    /// Its class.
    pub class: Class,
}

/// Topics that lead to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSetting {
    /// The topics.
    pub filter: Filter,
    /// The stream.
    pub stream: Name,
}

/// A broker to subscribe at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerSetting {
    /// The broker, and how it is reached.
    pub broker: Broker,
    /// Name of this client there; otherwise `crossdock-<node>`.
    pub client_id: Option<String>,
    /// What to subscribe to, and where it leads.
    pub topics: Vec<TopicSetting>,
}

/// `agent.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is there and cannot be read.
    #[error("could not read {}: {source}; mend its permissions, or remove it to run with the defaults", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something that it must not.
    #[error("{}, line {line}: {problem}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and how to mend it.
        problem: String,
    },
}

impl Default for Streams {
    fn default() -> Streams {
        let local = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let streams = default_streams();
        Streams {
            http: local(7480),
            socket: Some("doors/streams.sock".into()),
            socket_mode: 0o660,
            socket_group: None,
            mqtt: local(7483),
            user: None,
            password_file: None,
            allow_remote: false,
            quota: Bytes::new(1 << 30),
            disk_share_percent: 50,
            metrics_interval: Some(Duration::from_secs(30)),
            topics: default_topics(&streams),
            streams,
            brokers: vec![],
        }
    }
}

fn default_streams() -> Vec<StreamSetting> {
    let named = ["scans", "events", "metrics", "logs"].into_iter();
    named.filter_map(|text| Some(StreamSetting { name: text.parse().ok()?, class: class(text).ok()? })).collect()
}

fn default_topics(streams: &[StreamSetting]) -> Vec<TopicSetting> {
    let topic = |s: &StreamSetting| {
        let filter = format!("crossdock/streams/{}", s.name).parse().ok()?;
        Some(TopicSetting { filter, stream: s.name.clone() })
    };
    streams.iter().filter_map(topic).collect()
}

impl Settings {
    /// Reads `agent.toml` of a data folder; without one, the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or holds a bad value; names the line.
    pub fn load(data_dir: &Path) -> Result<Settings, SettingsError> {
        let path = data_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(source) => return Err(SettingsError::Read { path, source }),
        };
        let settings = Settings::parse(&text).map_err(|(line, problem)| SettingsError::Bad {
            path: path.clone(),
            line,
            problem,
        })?;
        Ok(settings)
    }

    /// From the text of a file.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong there.
    pub fn parse(text: &str) -> Result<Settings, (usize, String)> {
        let line = |at: usize| text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
        let root = DeTable::parse(text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            (line(at), format!("this is no TOML: {}", e.message()))
        })?;
        let skipped = RefCell::new(vec![]);
        let read = (|| {
            let mut top = Section::new("", root.span(), root.get_ref(), &skipped);
            let node = top.section("node")?.map(read_node).transpose()?;
            let containers = top.section("containers")?.map(read_containers).transpose()?;
            let streams = top.section("streams")?.map(read_streams).transpose()?;
            let link = top.section("link")?.map(read_link).transpose()?;
            top.done();
            let (node, containers) = (node.unwrap_or_default(), containers.unwrap_or_default());
            Ok::<_, Wrong>((node, containers, streams.unwrap_or_default(), link.unwrap_or_default()))
        })();
        let (node, containers, streams, link) = read.map_err(|wrong| (line(wrong.at.start), wrong.problem))?;
        let unknown = skipped.into_inner().into_iter();
        let warnings = unknown
            .map(|(at, key)| format!("line {}: {key} is not known to this version: skipped", line(at.start)))
            .collect();
        Ok(Settings { node, containers, streams, link, warnings })
    }
}

fn read_node(mut s: Section<'_>) -> Result<NodeSetting, Wrong> {
    let reboot = s.parsed("reboot", |text| match text {
        "off" => Ok(vec![]),
        text if words(text).is_empty() => Err("it is empty: write a command, or \"off\"".into()),
        text => Ok(words(text)),
    })?;
    s.done();
    Ok(reboot.map_or_else(NodeSetting::default, |reboot| NodeSetting { reboot }))
}

fn read_containers(mut s: Section<'_>) -> Result<Containers, Wrong> {
    let sockets = s.parsed("socket", |text| match text {
        "off" => Ok(vec![]),
        path if path.starts_with('/') => Ok(vec![path.into()]),
        _ => Err("name the engine's socket by its whole path, or write \"off\"".into()),
    })?;
    s.done();
    Ok(sockets.map_or_else(Containers::default, |sockets| Containers { sockets }))
}

fn read_streams(mut s: Section<'_>) -> Result<Streams, Wrong> {
    let default = Streams::default();
    let (user, password_file) = login(&mut s)?;
    let allow_remote = s.flag("allow-remote")?.unwrap_or(default.allow_remote);
    let mut address = |key, default| {
        let address = s.parsed(key, listen_address)?.unwrap_or(default);
        if address.is_some_and(|a| !a.ip().is_loopback()) && !(allow_remote && user.is_some()) {
            return Err(s.wrong_at(
                key,
                format!(
                    "streams.{key} opens the door beyond this box: use 127.0.0.1, or set allow-remote = true \
                     together with user and password-file"
                ),
            ));
        }
        Ok(address)
    };
    let http = address("http", default.http)?;
    let mqtt = address("mqtt", default.mqtt)?;
    let socket = match s.text("socket")? {
        None => default.socket,
        Some("off") => None,
        Some("") => return Err(s.wrong_at("socket", "streams.socket is empty: name a file, or \"off\"")),
        Some(path) => Some(path.into()),
    };
    let socket_mode = s.parsed("socket-mode", mode)?.unwrap_or(default.socket_mode);
    let socket_group = filled(s.text("socket-group")?);
    let quota = s.amount("quota", quota)?.unwrap_or(default.quota);
    let disk_share_percent = s.amount("disk-share-percent", percent)?.unwrap_or(default.disk_share_percent);
    let metrics_interval = s.parsed("metrics-interval", metrics_interval)?.unwrap_or(default.metrics_interval);
    let mut streams = vec![];
    for section in s.sections("stream")? {
        streams.push(read_stream(section, &streams)?);
    }
    if streams.is_empty() {
        streams = default_streams();
    }
    let given = s.sections("topic")?;
    let topics = if given.is_empty() { default_topics(&streams) } else { read_topics(given, &streams)? };
    let brokers = s.sections("broker")?;
    if streams.len() > MAX_NAMED || topics.len() > MAX_TOPICS || brokers.len() > MAX_BROKERS {
        return Err(s.wrong(format!(
            "at most {MAX_NAMED} streams, {MAX_TOPICS} topics and {MAX_BROKERS} brokers can be named"
        )));
    }
    let brokers = brokers.into_iter().map(|b| read_broker(b, &streams)).collect::<Result<_, _>>()?;
    s.done();
    Ok(Streams {
        http,
        socket,
        socket_mode,
        socket_group,
        mqtt,
        user,
        password_file,
        allow_remote,
        quota,
        disk_share_percent,
        metrics_interval,
        streams,
        topics,
        brokers,
    })
}

fn read_stream(mut s: Section<'_>, before: &[StreamSetting]) -> Result<StreamSetting, Wrong> {
    let name = s.parsed("name", |text| text.parse::<Name>().map_err(|e| e.to_string()))?;
    let name = name.ok_or_else(|| s.wrong("a [[streams.stream]] has no name: add name = \"scans\""))?;
    if before.iter().any(|b| b.name == name) {
        return Err(s.wrong_at("name", format!("stream {name} is named twice: remove one")));
    }
    let class = match s.parsed("class", class)? {
        Some(class) => class,
        None => class(name.as_str())
            .map_err(|_| s.wrong(format!("stream {name} has no class: add class = \"scans\" ({CLASSES})")))?,
    };
    s.done();
    Ok(StreamSetting { name, class })
}

fn read_topics(sections: Vec<Section<'_>>, streams: &[StreamSetting]) -> Result<Vec<TopicSetting>, Wrong> {
    let topic = |mut s: Section<'_>| {
        let filter = s.parsed("filter", |text| text.parse::<Filter>().map_err(|e| e.to_string()))?;
        let filter = filter.ok_or_else(|| s.wrong("a topic has no filter: add filter = \"line/+/scan\""))?;
        let stream = s.text("stream")?;
        let stream = stream.ok_or_else(|| s.wrong(format!("filter {filter} leads nowhere: add stream = \"…\"")))?;
        let Some(known) = streams.iter().find(|k| k.name.as_str() == stream) else {
            let names: Vec<_> = streams.iter().map(|k| k.name.as_str()).collect();
            let problem = format!("there is no stream {stream:?}: use one of {}", names.join(", "));
            return Err(s.wrong_at("stream", problem));
        };
        s.done();
        Ok(TopicSetting { filter, stream: known.name.clone() })
    };
    sections.into_iter().map(topic).collect()
}

fn read_broker(mut s: Section<'_>, streams: &[StreamSetting]) -> Result<BrokerSetting, Wrong> {
    let broker = read_place(&mut s)?;
    let client_id = filled(s.text("client-id")?);
    let topics = s.sections("topics")?;
    if topics.is_empty() || topics.len() > MAX_TOPICS {
        return Err(s.wrong_at(
            "topics",
            format!(
                "1 to {MAX_TOPICS} topics of a broker: topics = [{{ filter = \"line/+/scan\", stream = \"scans\" }}]"
            ),
        ));
    }
    let topics = read_topics(topics, streams)?;
    s.done();
    Ok(BrokerSetting { broker, client_id, topics })
}

fn read_link(mut s: Section<'_>) -> Result<Link, Wrong> {
    let udp = s.parsed("carrier", |text| match text {
        "auto" => Ok(true),
        "mqtt" => Ok(false),
        _ => Err(format!("{text:?} is no carrier: write \"auto\" or \"mqtt\"")),
    })?;
    let brokers = s.sections("broker")?;
    if brokers.len() > MAX_BROKERS {
        return Err(s.wrong(format!("at most {MAX_BROKERS} brokers can be named")));
    }
    let read = |mut s: Section<'_>| {
        let broker = read_place(&mut s)?;
        s.done();
        Ok(broker)
    };
    let brokers: Vec<_> = brokers.into_iter().map(read).collect::<Result<_, _>>()?;
    s.done();
    Ok(Link { udp: udp.unwrap_or(true), brokers })
}

/// A broker, and how it is reached.
fn read_place(s: &mut Section<'_>) -> Result<Broker, Wrong> {
    let url = s.parsed("url", |text| text.parse::<BrokerUrl>().map_err(|e| e.to_string()))?;
    let url = url.ok_or_else(|| s.wrong("a broker has no url: add url = \"mqtt://127.0.0.1:1883\""))?;
    let mut path = |key| Ok::<_, Wrong>(filled(s.text(key)?).map(PathBuf::from));
    let (password_file, ca, certificate, key) =
        (path("password-file")?, path("ca")?, path("certificate")?, path("key")?);
    let proxy_password_file = path("proxy-password-file")?;
    let (user, proxy_user) = (filled(s.text("user")?), filled(s.text("proxy-user")?));
    let proxy =
        s.parsed("proxy", |text| if text.is_empty() { Ok(None) } else { text.parse::<ProxyUrl>().map(Some) })?;
    let proxy = proxy.flatten();
    let broker = Broker { url, user, password_file, ca, certificate, key, proxy, proxy_user, proxy_password_file };
    broker.check().map_err(|wrong| s.wrong_at(wrong.key, wrong.problem))?;
    Ok(broker)
}

/// A user and where the password stands: both or neither.
fn login(s: &mut Section<'_>) -> Result<(Option<String>, Option<PathBuf>), Wrong> {
    let user = filled(s.text("user")?);
    let file = filled(s.text("password-file")?).map(PathBuf::from);
    match (&user, &file) {
        (Some(_), None) => Err(s.wrong_at("user", "a user needs a password: set password-file too")),
        (None, Some(_)) => Err(s.wrong_at("password-file", "a password needs a user: set user too")),
        (Some(user), _) if user.contains(':') => {
            Err(s.wrong_at("user", "a user with ':' cannot log in over HTTP: choose another name"))
        }
        _ => Ok((user, file)),
    }
}

fn filled(text: Option<&str>) -> Option<String> {
    text.filter(|t| !t.is_empty()).map(str::to_owned)
}

fn listen_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let wrong = |_| format!("{text:?} is no address: write it as 127.0.0.1:7480 or [::1]:7480, or \"off\"");
    text.parse().map(Some).map_err(wrong)
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o777);
    mode.ok_or_else(|| format!("{text:?} is no file mode: write three octal digits, such as \"0660\""))
}

fn quota(text: &str) -> Result<Bytes, String> {
    let quota: Bytes = text.parse().map_err(|e: proto::units::UnitError| e.to_string())?;
    let least = Bytes::new(MIN_QUOTA_BYTES);
    if quota >= least { Ok(quota) } else { Err(format!("{quota} is too little to work with: at least {least}")) }
}

fn percent(text: &str) -> Result<u8, String> {
    let share = text.parse().ok().filter(|p| (1..=100).contains(p));
    share.ok_or_else(|| format!("{text:?} is no share: write a whole number from 1 to 100"))
}

fn metrics_interval(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    let span = text.parse::<Span>().map_err(|e| format!("{e}, or \"off\""))?.get();
    let in_bounds = (METRICS_LEAST..=METRICS_MOST).contains(&span);
    in_bounds.then_some(Some(span)).ok_or_else(|| format!("{text:?} is out of range: write 1s to 1d, or \"off\""))
}

const CLASSES: &str = "scans, events, metrics or logs";

fn class(text: &str) -> Result<Class, String> {
    match text {
        "scans" => Ok(Class::Scans),
        "events" => Ok(Class::Events),
        "metrics" => Ok(Class::Metrics),
        "logs" => Ok(Class::Logs),
        _ => Err(format!("{text:?} is no class: use {CLASSES}")),
    }
}

#[cfg(test)]
mod tests;

//! From a [`Plan`] to the text of a scenario file that is read as the same plan.
//!
//! For plans that were drawn: what the swarm found becomes a file to replay, to send and to keep.

use std::{fmt::Write as _, time::Duration};

use proto::{
    object::UpdatePhase,
    release::Replicas,
    units::{Bytes, Span},
};
use toml::Value;

use super::{Action, Broker, Curve, Entry, Moment, Plan, Producer, Release, Scaling, Site};
use crate::{
    fault::{Fault, Spot},
    net::Profile,
};

/// The text of a scenario file.
#[must_use]
pub fn write(plan: &Plan) -> String {
    let mut file = File { text: String::new(), lines: vec![] };
    file.field("about", &plan.about);
    file.field("duration", &span(plan.duration));
    let mut body = File { text: String::new(), lines: named_by_faults(plan) };
    for site in &plan.sites {
        body.site(site);
    }
    for broker in &plan.brokers {
        body.broker(broker);
    }
    for release in &plan.releases {
        body.release(release);
    }
    for producer in &plan.producers {
        body.producer(producer);
    }
    for entry in &plan.timeline {
        body.entry(entry);
    }
    body.expect(plan);
    for (name, profile) in &body.lines {
        file.line(name, profile);
    }
    file.text + &body.text
}

struct File {
    text: String,
    /// Lines of its own: not those that need no `[[line]]`.
    lines: Vec<(String, Profile)>,
}

/// Lines that faults name and that are none of those that everybody knows.
fn named_by_faults(plan: &Plan) -> Vec<(String, Profile)> {
    let mut lines: Vec<(String, Profile)> = vec![];
    for entry in &plan.timeline {
        if let Action::Break { fault: Fault::Line { name, profile, .. }, .. } = &entry.action
            && Profile::named(name).is_none()
            && !lines.iter().any(|(known, _)| known == name)
        {
            lines.push((name.clone(), profile.clone()));
        }
    }
    lines
}

impl File {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// A text.
    fn field(&mut self, key: &str, text: &str) {
        self.bare(key, &Value::String(text.to_owned()).to_string());
    }

    fn bare(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.text, "{key} = {value}"); // a string takes everything
    }

    fn fields(&mut self, fields: Vec<(&'static str, String)>) {
        fields.iter().for_each(|(key, value)| self.bare(key, value));
    }

    fn line(&mut self, name: &str, profile: &Profile) {
        self.put("\n[[line]]\n");
        self.field("name", name);
        self.field("latency", &span(profile.latency));
        self.field("jitter", &span(profile.jitter));
        self.field("loss", &share(profile.loss_ppm));
        self.field("duplicate", &share(profile.duplicate_ppm));
        self.field("reorder", &share(profile.reorder_ppm));
        self.field("reorder-delay", &span(profile.reorder_delay));
        let (up, down) = (profile.bytes_per_s, profile.down().bytes_per_s);
        for (field, rate) in [("up", up), ("down", down)] {
            if let Some(rate) = rate {
                self.field(field, &format!("{}bit/s", rate * 8));
            }
        }
        self.field("queue", &profile.queue_bytes.to_string());
        self.bare("mtu", &profile.mtu_bytes.to_string());
    }

    /// The name of a line; one that nobody named yet gets one.
    fn name_of(&mut self, profile: &Profile) -> String {
        if let Some(name) = Profile::NAMES.iter().find(|name| Profile::named(name).as_ref() == Some(profile)) {
            return (*name).to_owned();
        }
        if let Some((name, _)) = self.lines.iter().find(|(_, known)| known == profile) {
            return name.clone();
        }
        let name = format!("own-{}", self.lines.len() + 1);
        self.lines.push((name.clone(), profile.clone()));
        name
    }

    fn site(&mut self, site: &Site) {
        let line = self.name_of(&site.line);
        self.put("\n[[site]]\n");
        self.field("name", site.name.as_ref());
        let numbered =
            site.nodes.iter().zip(1..).all(|(node, number)| node.as_ref() == format!("{}-{number}", site.name));
        if numbered {
            self.bare("nodes", &site.nodes.len().to_string());
        } else {
            let names = site.nodes.iter().map(|node| Value::String(node.to_string())).collect();
            self.bare("nodes", &Value::Array(names).to_string());
        }
        self.field("line", &line);
        if !site.labels.is_empty() {
            let labels = site.labels.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
            self.bare("labels", &Value::Table(labels).to_string());
        }
        if site.gpus > 0 {
            self.bare("gpus", &site.gpus.to_string());
        }
        // The section of `agent.toml` is a table itself.
        let settings = site.settings.parse::<toml::Table>().ok();
        if let Some(streams) = settings.and_then(|mut settings| settings.remove("streams")) {
            self.bare("settings", &streams.to_string());
        }
    }

    fn broker(&mut self, broker: &Broker) {
        let (line, manners) = (self.name_of(&broker.line), &broker.manners);
        self.put("\n[[broker]]\n");
        self.field("name", broker.name.as_ref());
        self.field("line", &line);
        if let Some(limit) = manners.packet_limit {
            self.bare("packet-limit", &limit.to_string());
        }
        for (field, ppm) in
            [("drop", manners.drop_ppm), ("duplicate", manners.duplicate_ppm), ("reorder", manners.reorder_ppm)]
        {
            if ppm > 0 {
                self.field(field, &share(ppm));
            }
        }
        if !manners.delay.is_zero() {
            self.field("delay", &span(manners.delay));
        }
    }

    fn release(&mut self, release: &Release) {
        self.put("\n[[release]]\n");
        self.field("app", release.app.as_ref());
        self.field("version", release.version.as_str());
        self.field("size", &Bytes::new(release.bytes).to_string());
        self.bare("files", &release.files.to_string());
        if let Some(arg) = release.args.first() {
            self.field("behaviour", &arg.replacen('=', " ", 1));
        }
        if let Some(gpus) = &release.gpus {
            let memory = gpus.memory.map(|memory| format!("memory = \"{memory}\", ")).unwrap_or_default();
            let text = format!("{{ count = {}, {memory}exclusive = {} }}", gpus.count, gpus.exclusive);
            self.bare("gpus", &text);
        }
        if let Some(uses) = &release.uses {
            self.field("uses", uses.as_ref());
        }
        if let Some(Scaling { replicas, tells }) = &release.scaling {
            let Replicas { min, max, metric, target, stabilization_window: window } = replicas;
            let bounds = format!("min = {min}, max = {max}, metric = \"{metric}\", target = {target}");
            self.bare("replicas", &format!("{{ {bounds}, window = \"{window}\", tells = {tells} }}"));
        }
        self.bare("bad", &release.bad.to_string());
    }

    fn producer(&mut self, producer: &Producer) {
        self.put("\n[[producer]]\n");
        self.field("on", &producer.on.to_string());
        self.field("stream", producer.stream.as_ref());
        self.bare("per-minute", &Value::Float(producer.per_minute).to_string());
        self.field("curve", if producer.curve == Curve::Daily { "daily" } else { "flat" });
        if !producer.peaks.is_empty() {
            let peak = |peak: &super::Peak| {
                let times = Value::Float(peak.times);
                format!("{{ at = \"{}\", for = \"{}\", times = {times} }}", span(peak.at), span(peak.lasts))
            };
            let peaks: Vec<_> = producer.peaks.iter().map(peak).collect();
            self.bare("peaks", &format!("[{}]", peaks.join(", ")));
        }
    }

    fn entry(&mut self, entry: &Entry) {
        self.put("\n[[timeline]]\n");
        match &entry.moment {
            Moment::At(at) => self.field("at", &span(*at)),
            Moment::Downloaded { node, percent } => {
                self.bare("when", &format!("{{ node = \"{node}\", downloaded = \"{percent}%\" }}"));
            }
            Moment::Phase { node, app, phase } => {
                let phase: UpdatePhase = *phase;
                self.bare("when", &format!("{{ node = \"{node}\", app = \"{app}\", phase = \"{phase}\" }}"));
            }
        }
        if !entry.jitter.is_zero() {
            self.field("jitter", &span(entry.jitter));
        }
        if let Some((every, times)) = entry.repeat {
            self.field("every", &span(every));
            self.bare("times", &times.to_string());
        }
        match &entry.action {
            Action::Rollout { app, version, to, how } => {
                self.field("rollout", &format!("{app}@{version}"));
                self.field("to", &to.to_string());
                self.fields(how.fields());
            }
            Action::Steer { app, version, steer } => self.field(steer.word(), &format!("{app}@{version}")),
            Action::See { app, version, look } => {
                self.field("see", &format!("{app}@{version}"));
                self.fields(look.fields());
            }
            Action::Break { fault, lasts } => {
                self.fault(fault);
                if !fault.at_once() {
                    self.field("for", &lasts.map_or_else(|| "end".to_owned(), span));
                }
            }
        }
        if entry.may_miss {
            self.bare("may-miss", "true");
        }
    }

    fn fault(&mut self, fault: &Fault) {
        let target = fault.target().to_string();
        match fault {
            Fault::CrashHub | Fault::SinkDown => self.bare(fault.kind(), "true"),
            Fault::RestoreHub { age } => self.field(fault.kind(), &span(*age)),
            Fault::BrokerDown { broker } => self.field(fault.kind(), broker.as_ref()),
            Fault::Line { name, .. } => {
                self.field("line", name);
                self.field("of", &target);
            }
            Fault::Clock { offset_ms, .. } => {
                self.field("clock", &target);
                let sign = if *offset_ms < 0 { '-' } else { '+' };
                self.field("offset", &format!("{sign}{}", Span::from_millis(offset_ms.unsigned_abs())));
            }
            Fault::Backlog { count, .. } => {
                self.field("backlog", &target);
                self.bare("count", &count.to_string());
            }
            Fault::FlipBit { spot, .. } => {
                self.field("flip-bit", &target);
                self.field(
                    "in",
                    match spot {
                        Spot::Outbox => "outbox",
                        Spot::State => "state",
                        Spot::Artifact => "artifact",
                    },
                );
            }
            _ => self.field(fault.kind(), &target),
        }
    }

    fn expect(&mut self, plan: &Plan) {
        let expect = &plan.expect;
        self.put("\n[expect]\n");
        self.field("converge-within", &span(expect.converge_within));
        if let Some(in_gaps) = expect.in_gaps {
            self.bare("in-gaps", &in_gaps.to_string());
        }
        if let Some(within) = expect.up_without_hub_within {
            self.field("up-without-hub-within", &span(within));
        }
        if !expect.rollouts.is_empty() {
            let phases = expect.rollouts.iter();
            let phases = phases.map(|(key, phase)| (key.clone(), Value::String(phase.to_string()))).collect();
            self.bare("rollouts", &Value::Table(phases).to_string());
        }
        if !expect.touched.is_empty() {
            let most = expect.touched.iter().map(|(key, most)| (key.clone(), Value::Integer(i64::from(*most))));
            self.bare("touched", &Value::Table(most.collect()).to_string());
        }
    }
}

fn span(time: Duration) -> String {
    Span::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).to_string()
}

fn share(ppm: u32) -> String {
    format!("{}%", f64::from(ppm) / 10_000.0)
}

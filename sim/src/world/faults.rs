//! Breaking and mending: what is broken now is one list, and everything else follows from it.
//!
//! ```text
//! begin(fault) --> list grows   --+
//! heal(fault)  --> list shrinks --+--> settle: lines, clocks, disks, boxes, hub become what the list says
//! ```
//!
//! So faults may overlap and come in any order: a box is on when nothing holds it off any more, and what
//! does not run cannot be crashed. What a service manager or a person would try again is tried again.

use rand_chacha::ChaCha12Rng;

use super::{World, edge::EdgeBox};
use crate::{
    disk::Taker,
    fault::{Fault, Target, Way},
    gpu::First,
};

/// The files of the hub's sink begin so.
const SINK_FILES: &str = "streams.db";

/// What is broken now.
#[derive(Default)]
pub(super) struct Broken {
    active: Vec<Active>,
    /// Faults so far: each draws from a stream of its own.
    number: u64,
}

struct Active {
    fault: Fault,
    /// What was counted for it when it began.
    before: u64,
}

impl Broken {
    /// Faults of this shape that strike a box.
    fn on<'a>(&'a self, edge: &'a EdgeBox) -> impl DoubleEndedIterator<Item = &'a Fault> {
        self.active.iter().map(|active| &active.fault).filter(move |fault| strikes(fault.target(), edge))
    }

    /// Whether a box has to be off.
    pub fn holds_power(&self, edge: &EdgeBox) -> bool {
        self.on(edge).any(|fault| matches!(fault, Fault::Reboot { .. } | Fault::PowerCut { .. }))
    }

    /// Whether a box that is turned off now loses what it did not sync.
    pub fn cuts_power(&self, edge: &EdgeBox) -> bool {
        self.on(edge).any(|fault| matches!(fault, Fault::PowerCut { .. }))
    }

    /// As [`Broken::holds_power`] for the hub.
    pub fn holds_hub_power(&self) -> bool {
        self.on_hub().any(|fault| matches!(fault, Fault::PowerCut { .. } | Fault::Reboot { .. }))
    }

    /// As [`Broken::cuts_power`] for the hub.
    pub fn cuts_hub_power(&self) -> bool {
        self.on_hub().any(|fault| matches!(fault, Fault::PowerCut { .. }))
    }

    /// Whether the agent of a box has to be down.
    pub fn holds_agent(&self, edge: &EdgeBox) -> bool {
        self.holds_power(edge) || self.on(edge).any(|fault| matches!(fault, Fault::CrashAgent { .. }))
    }

    /// Whether the hub has to be down.
    pub fn holds_hub(&self) -> bool {
        self.holds_hub_power() || self.on_hub().any(|fault| *fault == Fault::CrashHub)
    }

    fn on_hub(&self) -> impl DoubleEndedIterator<Item = &Fault> {
        self.active.iter().map(|active| &active.fault).filter(|fault| *fault.target() == Target::Hub)
    }
}

fn strikes(target: &Target, edge: &EdgeBox) -> bool {
    target.means(&edge.site, &edge.name)
}

/// As [`strikes`], where the line of the hub is the lines of all boxes.
fn strikes_line(fault: &Fault, edge: &EdgeBox) -> bool {
    *fault.target() == Target::Hub || strikes(fault.target(), edge)
}

impl World {
    /// Breaks something. Returns how often it struck at once: processes that ran, boxes whose clock went wrong.
    /// 0 where that shows only while it lasts, and where there was nothing to break.
    ///
    /// # Errors
    /// When the files of the world itself cannot be read or written; never because of what else is broken.
    pub async fn begin(&mut self, fault: &Fault) -> anyhow::Result<u64> {
        self.trace.line("fault", format_args!("begins: {fault}"));
        self.broken.number += 1;
        let mut choice = self.seed.child("faults").stream(&self.broken.number.to_string());
        if fault.at_once() {
            let struck = self.strike(fault, &mut choice).await?;
            self.settle().await?;
            return Ok(struck);
        }
        let struck = self.would_strike(fault);
        self.broken.active.push(Active { fault: fault.clone(), before: self.counted(fault) });
        self.settle().await?;
        Ok(struck)
    }

    /// Mends what [`World::begin`] broke; once for each time. Returns how often it struck while it lasted, and 0
    /// when it was not broken.
    ///
    /// # Errors
    /// As [`World::begin`].
    pub async fn heal(&mut self, fault: &Fault) -> anyhow::Result<u64> {
        let Some(index) = self.broken.active.iter().position(|active| active.fault == *fault) else { return Ok(0) };
        let struck = self.counted(fault);
        let active = self.broken.active.remove(index);
        self.trace.line("fault", format_args!("is over: {fault}"));
        self.settle().await?;
        Ok(struck.saturating_sub(active.before))
    }

    /// What is broken now.
    #[must_use]
    pub fn broken(&self) -> Vec<Fault> {
        self.broken.active.iter().map(|active| active.fault.clone()).collect()
    }

    /// What service managers and people do by themselves: starts again what did not start, publishes what could
    /// not be published. Once a virtual second is enough.
    ///
    /// # Errors
    /// As [`World::begin`].
    pub async fn tick(&mut self) -> anyhow::Result<()> {
        if self.hub_wanted && self.running_hub().is_none() {
            self.settle_hub().await?;
        }
        self.settle_wanted().await;
        Ok(())
    }

    /// How much there is to break now, of what is broken at once.
    fn would_strike(&self, fault: &Fault) -> u64 {
        let boxes = || self.boxes.values().filter(|edge| strikes(fault.target(), edge));
        let count = match fault {
            Fault::CrashAgent { .. } => boxes().filter(|edge| edge.agent_runs()).count(),
            Fault::Reboot { target: Target::Hub } | Fault::PowerCut { target: Target::Hub } | Fault::CrashHub => {
                usize::from(self.running_hub().is_some())
            }
            Fault::Reboot { .. } | Fault::PowerCut { .. } => boxes().filter(|edge| edge.is_powered()).count(),
            Fault::GpuLost { .. } | Fault::GpuSick { .. } => boxes().filter(|edge| edge.gpus.count() > 0).count(),
            Fault::Backlog { .. } => boxes().filter(|edge| edge.driver.follows_backlog()).count(),
            Fault::Clock { target: Target::Hub, .. } => 1,
            Fault::Clock { .. } => boxes().count(),
            Fault::BrokerDown { broker } => {
                let ip = self.net.broker_ip(broker.as_ref());
                ip.and_then(|ip| self.net.broker_clients(ip)).unwrap_or_default()
            }
            _ => 0,
        };
        count as u64
    }

    /// What has been counted so far of what the fault does while it lasts.
    fn counted(&self, fault: &Fault) -> u64 {
        let hub = self.hub_host.ip;
        let lines = |count: fn(&crate::net::Counters) -> u64, way: Way| -> u64 {
            let boxes = self.boxes.values().filter(|edge| strikes_line(fault, edge));
            let brokers = self.net.broker_ips();
            let ends = || [hub].into_iter().chain(brokers.iter().copied());
            boxes
                .flat_map(|edge| ends().map(|end| (edge.host.ip, end)).collect::<Vec<_>>())
                .map(|(own, end)| {
                    let up = count(&self.net.counters(own, end));
                    let down = count(&self.net.counters(end, own));
                    (if way == Way::Down { 0 } else { up }) + (if way == Way::Up { 0 } else { down })
                })
                .sum()
        };
        match fault {
            Fault::Cut { way, .. } => lines(|c| c.lost_cut, *way),
            Fault::Line { .. } => lines(|c| c.sent, Way::Both),
            Fault::BlockUdp { .. } => lines(|c| c.lost_blocked, Way::Both),
            Fault::SinkDown => self.hub_host.device.refused().1,
            Fault::DiskFull { target: Target::Hub } => self.hub_host.device.refused().0,
            Fault::DiskFull { target } => {
                self.boxes.values().filter(|edge| strikes(target, edge)).map(|edge| edge.host.device.refused().0).sum()
            }
            _ => 0,
        }
    }

    /// Does what is over as soon as it is done.
    async fn strike(&mut self, fault: &Fault, choice: &mut ChaCha12Rng) -> anyhow::Result<u64> {
        let mut struck = 0;
        match fault {
            Fault::Reinstall { target } => {
                for edge in self.boxes.values().filter(|edge| strikes(target, edge)) {
                    self.wipe(edge).await?;
                    struck += 1;
                }
            }
            Fault::FlipBit { target, spot } => {
                let struck_ones = self.boxes.values().filter(|edge| strikes(target, edge));
                for name in struck_ones.map(|edge| edge.name.clone()).collect::<Vec<_>>() {
                    struck += u64::from(self.flip_bit(name.as_ref(), *spot, choice).await?);
                }
            }
            Fault::Rebind { target } => {
                let boxes = self.boxes.values().filter(|edge| strikes(target, edge));
                struck = boxes.filter(|edge| self.net.rebind(edge.host.ip)).count() as u64;
            }
            Fault::RestoreHub { age } => struck = u64::from(self.restore_hub(*age).await?),
            _ => {}
        }
        Ok(struck)
    }

    /// Brings everything to where the list of what is broken says.
    async fn settle(&mut self) -> anyhow::Result<()> {
        self.settle_lines();
        self.settle_brokers();
        self.settle_clocks();
        self.settle_disks();
        self.settle_gpus();
        self.settle_backlogs();
        self.settle_hub().await?;
        for edge in self.boxes.values() {
            self.settle_box(edge).await?;
        }
        self.settle_wanted().await;
        Ok(())
    }

    fn settle_disks(&self) {
        let is_full = |fault: &Fault| matches!(fault, Fault::DiskFull { .. });
        let left = |full: bool| full.then_some(0);
        self.hub_host.device.set_room(Taker::Fault, left(self.broken.on_hub().any(is_full)));
        for edge in self.boxes.values() {
            edge.host.device.set_room(Taker::Fault, left(self.broken.on(edge).any(is_full)));
        }
        // Every commit fails; what is there can be read.
        let sink = self.broken.active.iter().any(|active| active.fault == Fault::SinkDown);
        self.hub_host.device.refuse_writes(sink.then_some(SINK_FILES));
    }

    fn settle_gpus(&self) {
        for edge in self.boxes.values() {
            let lost = self.broken.on(edge).any(|fault| matches!(fault, Fault::GpuLost { .. }));
            let sick = self.broken.on(edge).any(|fault| matches!(fault, Fault::GpuSick { .. }));
            edge.gpus.set(First { lost, sick });
            edge.driver.notice_gpus();
        }
    }

    fn settle_backlogs(&self) {
        let count = |fault: &Fault| if let Fault::Backlog { count, .. } = fault { Some(*count) } else { None };
        for edge in self.boxes.values() {
            edge.driver.set_backlog(self.broken.on(edge).rev().find_map(count));
        }
    }

    fn settle_lines(&self) {
        let hub = self.hub_host.ip;
        for edge in self.boxes.values() {
            let on = || self.broken.active.iter().map(|a| &a.fault).filter(|fault| strikes_line(fault, edge));
            let is_cut = |not: Way| on().any(|fault| matches!(fault, Fault::Cut { way, .. } if *way != not));
            let profile = on().rev().find_map(|fault| match fault {
                Fault::Line { profile, .. } => Some(profile),
                _ => None,
            });
            let profile = profile.unwrap_or(&edge.line);
            let blocked = on().any(|fault| matches!(fault, Fault::BlockUdp { .. }));
            let box_ip = edge.host.ip;
            // A box has one line to the world: what befalls it befalls its way to brokers too.
            for end in [hub].into_iter().chain(self.net.broker_ips()) {
                self.net.settle(box_ip, end, profile.up(), is_cut(Way::Down), blocked);
                self.net.settle(end, box_ip, profile.down(), is_cut(Way::Up), blocked);
            }
        }
    }

    fn settle_brokers(&self) {
        let down = |ip| {
            let mut faults = self.broken.active.iter().map(|active| &active.fault);
            faults.any(|f| matches!(f, Fault::BrokerDown { broker } if self.net.broker_ip(broker.as_ref()) == Some(ip)))
        };
        self.net.broker_ips().into_iter().for_each(|ip| self.net.set_broker_down(ip, down(ip)));
    }

    fn settle_clocks(&mut self) {
        let offset = |fault: &Fault| match fault {
            Fault::Clock { offset_ms, .. } => Some(*offset_ms),
            _ => None,
        };
        let hub = self.broken.on_hub().rev().find_map(offset);
        self.hub_host.clock.set_wrong_ms(hub.unwrap_or(0));
        for edge in self.boxes.values() {
            edge.host.clock.set_wrong_ms(self.broken.on(edge).rev().find_map(offset).unwrap_or(0));
        }
    }

    /// Whether something can pass the line of a box both ways: over UDP, or through a broker that runs.
    pub(super) fn line_is_open(&self, edge: &EdgeBox) -> bool {
        let (own, hub) = (edge.host.ip, self.hub_host.ip);
        let open = |end| !self.net.is_closed(own, end) && !self.net.is_closed(end, own);
        let runs = |ip| self.net.broker_clients(ip).is_some();
        let carries = |ip| runs(ip) && !self.net.is_cut(own, ip) && !self.net.is_cut(ip, own);
        open(hub) || self.net.broker_ips().into_iter().any(carries)
    }
}

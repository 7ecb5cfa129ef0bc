//! Waves: begun one after the other, judged until they have passed or failed.

use jiff::Timestamp;
use proto::{
    object::{
        RolloutNode, UpdatePhase,
        rollout::{Wave, WavePhase, WaveStatus, reason},
    },
    units::Span,
};

use super::{
    gate::{self, Verdict},
    metrics::Tally,
    node::Target,
    pass::{Pass, later},
    waves,
};

impl<'a> Pass<'_, 'a> {
    /// Judges the waves that have begun, and begins the next where the one before passed.
    pub fn advance(&mut self) {
        let waves = waves::of(&self.spec().waves);
        let resumed = self.spec().control.resumed > self.draft.status.resumed;
        for index in 0..waves.len().min(self.draft.status.waves.len()) {
            let Some(wave) = self.draft.status.waves.get(index) else { return };
            let counts = self.draft.status.wave_counts(u32::try_from(index).unwrap_or(u32::MAX));
            let next = match wave.phase {
                WavePhase::Passed => continue,
                // A newer rollout took all of them, so it can prove nothing any more: others take their place.
                _ if counts.all > 0 && counts.all == counts.taken
                    // Or each of them left for another one, which waits for its turn.
                    || counts.all == 0 && self.spec().placement.is_some() =>
                {
                    match self.begin_wave(&waves, index) {
                        Some(begun) => begun,
                        None => return,
                    }
                }
                WavePhase::Pending | WavePhase::AwaitingApproval => match self.begin_wave(&waves, index) {
                    Some(begun) => begun,
                    None => return,
                },
                _ => wave.clone(),
            };
            let next = self.judge(&waves, index, next, resumed);
            let passed = next.phase == WavePhase::Passed;
            self.put_wave(index, next);
            if !passed {
                break;
            }
        }
        if resumed {
            self.draft.status.to_mut().resumed = self.spec().control.resumed;
        }
    }

    fn put_wave(&mut self, index: usize, next: WaveStatus) {
        if self.draft.status.waves.get(index) != Some(&next)
            && let Some(wave) = self.draft.status.to_mut().waves.get_mut(index)
        {
            *wave = next;
        }
    }

    /// The wave as it begins; `None`: it has to wait.
    fn begin_wave(&mut self, waves: &[Wave], index: usize) -> Option<WaveStatus> {
        let (spec, now) = (self.spec(), self.draft.now);
        let mut wave = self.draft.status.waves.get(index)?.clone();
        if waves.get(index)?.approval && !spec.control.approved.contains(&wave.name) {
            let name = self.name();
            wave.message = format!("crossdock rollout approve {name} lets it begin");
            wave.phase = WavePhase::AwaitingApproval;
            self.put_wave(index, wave);
            return None;
        }
        if spec.control.paused {
            return None;
        }
        let drawn = waves::draw(waves, index, self.draft.rollout, &self.draft.status, self.draft.snapshot);
        if !drawn.is_empty() {
            let status = self.draft.status.to_mut();
            let number = u32::try_from(index).ok();
            for name in &drawn {
                if let Some(entry) = status.nodes.get_mut(name) {
                    entry.wave = number;
                }
            }
        }
        (wave.phase, wave.started_at, wave.since) = (WavePhase::Progressing, Some(now), None);
        if drawn.is_empty() {
            (wave.phase, wave.finished_at) = (WavePhase::Passed, Some(now));
            wave.message = "no nodes were left for it".into();
        }
        Some(wave)
    }

    /// What a wave that has begun proves.
    fn judge(&mut self, waves: &[Wave], index: usize, mut wave: WaveStatus, resumed: bool) -> WaveStatus {
        if wave.phase == WavePhase::Passed {
            return wave;
        }
        let (gate, now) = (&self.spec().gate, self.draft.now);
        let counts = self.draft.status.wave_counts(u32::try_from(index).unwrap_or(u32::MAX));
        if resumed && wave.phase == WavePhase::Failed {
            wave.forgiven = u32::try_from(counts.failed).unwrap_or(u32::MAX);
        }
        let by_hand = resumed && wave.phase == WavePhase::Inconclusive;
        let tally = self.tally(index);
        let incomparable = tally.as_ref().and_then(Tally::incomparable).is_some();
        let verdict = gate::judge(gate, counts, wave.forgiven, incomparable);
        wave.message = gate::explain(gate, counts, wave.forgiven);
        wave.message.extend(tally.iter().map(Tally::explain));
        let was = wave.phase;
        (wave.phase, wave.finished_at) = match verdict {
            Verdict::Open => (WavePhase::Progressing, None),
            Verdict::Failed => (WavePhase::Failed, wave.finished_at.or(Some(now))),
            Verdict::Inconclusive if by_hand => {
                wave.message.push_str("; passed by hand");
                (WavePhase::Passed, Some(now))
            }
            Verdict::Inconclusive => {
                let since = *wave.since.get_or_insert(now);
                (self.after(since, gate.inconclusive_after, WavePhase::Inconclusive, WavePhase::Progressing), None)
            }
            Verdict::Passed => {
                let soak = waves.get(index).map_or(Span::default(), |wave| wave.soak);
                let since = wave.since.filter(|_| was == WavePhase::Soaking).unwrap_or(now);
                wave.since = Some(since);
                let phase = self.after(since, soak, WavePhase::Passed, WavePhase::Soaking);
                (phase, (phase == WavePhase::Passed).then_some(now))
            }
        };
        if matches!(verdict, Verdict::Open | Verdict::Failed) {
            wave.since = None;
        }
        wave
    }

    /// What the healthy nodes of a wave tell of themselves, where the gate asks.
    fn tally(&self, index: usize) -> Option<Tally<'a>> {
        let (spec, wave) = (self.spec(), u32::try_from(index).ok());
        let Target::Release(_, digest) = &self.target else { return None };
        let told = |entry: &RolloutNode| {
            entry.wave == wave
                && (entry.phase == UpdatePhase::Succeeded || entry.reason == reason::METRICS)
                && entry.reason != reason::SUPERSEDED
        };
        let nodes = self.draft.members().filter(|(_, _, entry)| told(entry)).map(|(_, node, _)| node);
        (!spec.gate.metrics.is_empty()).then(|| Tally::of(&spec.gate.metrics, nodes, &spec.app, *digest))
    }

    /// One phase until `span` has passed since then, and another one after it.
    fn after(&mut self, since: Timestamp, span: Span, then: WavePhase, until: WavePhase) -> WavePhase {
        let end = later(since, span);
        if self.draft.now >= end {
            return then;
        }
        self.plan.wake_at(end);
        until
    }
}

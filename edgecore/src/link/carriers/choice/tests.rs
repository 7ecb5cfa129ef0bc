use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(10);
/// Between two things that the agent says by itself.
const TALK: Duration = Duration::from_secs(10);
const TRIP: Duration = Duration::from_millis(40);

/// A line whose UDP and whose broker come and go, and an agent that talks, for one machine.
struct Line {
    choice: Choice,
    start: Instant,
    now: Instant,
    answers: Vec<(Instant, Input)>,
    sent: Option<Instant>,
    talk: Instant,
    mqtt: bool,
    changes: Vec<(Duration, Carrier)>,
    probes: usize,
}

impl Line {
    fn new() -> Line {
        let start = Instant::now();
        let choice = Choice::new(start, true);
        let (answers, changes) = (vec![], vec![]);
        Line { choice, start, now: start, answers, sent: None, talk: start, mqtt: false, changes, probes: 0 }
    }

    /// For so long UDP and MQTT are so.
    fn run(&mut self, time: Duration, udp: bool, mqtt: bool) -> &mut Line {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            if self.mqtt != mqtt {
                self.mqtt = mqtt;
                self.choice.handle(self.now, Input::Mqtt(mqtt));
            }
            if self.choice.active() == Some(Carrier::Udp) && self.now >= self.talk {
                self.talk = self.now + TALK;
                self.sent.get_or_insert(self.now);
                if udp {
                    self.answers.push((self.now + TRIP, Input::Heard));
                }
            }
            let now = self.now;
            let due: Vec<_> = self.answers.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, answer) in due {
                self.sent = None;
                self.choice.handle(now, answer);
            }
            if let Some(sent) = self.sent.filter(|_| self.choice.active() == Some(Carrier::Udp)) {
                self.choice.handle(now, Input::Unanswered(sent));
            }
            self.choice.handle(now, Input::Tick);
            while let Some(output) = self.choice.poll() {
                match output {
                    Output::Probe => {
                        self.probes += 1;
                        if udp {
                            self.answers.push((now + TRIP, Input::Answered));
                        }
                    }
                    Output::Use(carrier) => {
                        self.sent = None;
                        self.talk = now;
                        self.changes.push((now - self.start, carrier));
                    }
                    Output::Nudge => {}
                }
            }
        }
        self
    }

    fn active(&self) -> Option<Carrier> {
        self.choice.active()
    }
}

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn udp_is_taken_at_once_and_mqtt_within_seconds_where_it_is_blocked() {
    let mut line = Line::new();
    assert_eq!(line.run(S / 10, true, true).active(), Some(Carrier::Udp));
    assert_eq!(line.probes, 1);
    let mut line = Line::new();
    assert_eq!(line.run(2 * S, false, true).active(), Some(Carrier::Mqtt));
    let mut line = Line::new();
    assert_eq!(line.run(9 * S, false, false).active(), None);
    assert_eq!(line.run(S, false, true).active(), Some(Carrier::Mqtt), "a broker that comes late is taken");
    assert_eq!(line.run(40 * S, true, true).active(), Some(Carrier::Udp), "UDP opened");
}

#[tokio::test(start_paused = true)]
async fn a_dead_path_is_left_within_two_seconds_and_an_idle_one_is_not_asked() {
    let mut line = Line::new();
    line.run(600 * S, true, true);
    assert_eq!((line.active(), line.probes), (Some(Carrier::Udp), 1), "probes of a path that answers");
    line.talk = line.now;
    let before = line.now;
    line.run(2 * S, false, true);
    let (at, carrier) = *line.changes.last().unwrap();
    assert_eq!(carrier, Carrier::Mqtt);
    assert!(at < before - line.start + Duration::from_millis(1200), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_broker_udp_is_waited_for_and_comes_back() {
    let mut line = Line::new();
    line.run(10 * S, true, false);
    line.run(60 * S, false, false);
    assert_eq!(line.active(), Some(Carrier::Udp));
    assert!(line.probes < 90, "{} probes a minute", line.probes);
    line.run(2 * S, false, true);
    assert_eq!(line.active(), Some(Carrier::Mqtt), "a broker came");
    // The broker goes while UDP works: no waiting.
    line.run(S, false, false).run(3 * S, true, false);
    assert_eq!(line.active(), Some(Carrier::Udp));
}

#[tokio::test(start_paused = true)]
async fn a_path_that_comes_and_goes_takes_the_link_with_it_ever_more_seldom() {
    let mut line = Line::new();
    line.run(S, true, true);
    for _ in 0..180 {
        line.run(12 * S, true, true).run(8 * S, false, true);
    }
    assert!(line.changes.len() < 20, "{} changes in an hour: {:?}", line.changes.len(), line.changes);
    // It holds: the link returns, and is forgiving again later.
    line.run(400 * S, true, true);
    assert_eq!(line.active(), Some(Carrier::Udp));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_failed_over_udp_is_tried_over_mqtt() {
    let mut line = Line::new();
    line.run(S, true, true);
    line.choice.handle(line.now, Input::Failed);
    line.choice.again(line.now);
    assert_eq!(line.choice.active(), Some(Carrier::Mqtt));
    let mut only = Choice::new(line.now, false);
    only.handle(line.now, Input::Mqtt(true));
    assert_eq!((only.active(), only.wake_at()), (Some(Carrier::Mqtt), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happened_the_carrier_that_works_is_used(
        phases in prop::collection::vec((1u64..40, any::<bool>(), any::<bool>()), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _inside = runtime.enter();
        let mut line = Line::new();
        for (seconds, udp, mqtt) in phases {
            line.run(S * u32::try_from(seconds).unwrap(), udp, mqtt);
        }
        let minutes = (line.now - line.start).as_secs() / 60 + 1;
        prop_assert!(line.probes as u64 <= 120 * minutes, "{} probes in {minutes} min", line.probes);
        line.run(15 * S, false, true);
        prop_assert_eq!(line.active(), Some(Carrier::Mqtt));
        let changes = line.changes.len();
        line.run(HOLD_MOST + 60 * S, true, true);
        prop_assert_eq!(line.active(), Some(Carrier::Udp));
        prop_assert_eq!(line.changes.len(), changes + 1, "it flaps");
    }
}

#[test]
fn old_silence_that_has_ended_meanwhile_asks_nothing() {
    let mut line = Line::new();
    line.run(Duration::from_secs(1), true, true);
    assert_eq!(line.active(), Some(Carrier::Udp));
    let (then, probes) = (line.now, line.probes);
    line.choice.handle(then, Input::Unanswered(then));
    let now = then + Duration::from_secs(2);
    // As the loop tells it after a while without a look: first what stands, then what was seen.
    for input in [Input::Mqtt(true), Input::RoundTrip(TRIP), Input::Unanswered(now - STEP), Input::Tick] {
        line.choice.handle(now, input);
    }
    assert_eq!(line.choice.poll(), None, "{probes} probes before");
    assert_eq!(line.active(), Some(Carrier::Udp));
}

//! Whatever breaks when: every record is kept once, and what was acknowledged is kept.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    /// A node offers records: from where its mark ends, shifted back by some, so many.
    Offer {
        node: usize,
        back: u64,
        count: u64,
        lane: Lane,
    },
    /// Live records ahead of the backlog.
    Ahead {
        node: usize,
        skip: u64,
        count: u64,
    },
    Gap {
        node: usize,
        count: u64,
    },
    Pause(u64),
    Reconnect(usize),
    Restart,
    Fault(Fault),
}

const NODES: usize = 3;

fn op() -> impl Strategy<Value = Op> {
    let lane = prop_oneof![Just(Lane::Live), Just(Lane::Backlog)];
    let fault = prop_oneof![
        Just(Fault::Unavailable),
        Just(Fault::LostUndone),
        Just(Fault::LostDone),
        Just(Fault::Slow),
        Just(Fault::SlowAnswer)
    ];
    prop_oneof![
        8 => (0..NODES, 0u64..12, 1u64..12, lane).prop_map(|(node, back, count, lane)| Op::Offer { node, back, count, lane }),
        2 => (0..NODES, 1u64..9, 1u64..9).prop_map(|(node, skip, count)| Op::Ahead { node, skip, count }),
        1 => (0..NODES, 1u64..9).prop_map(|(node, count)| Op::Gap { node, count }),
        4 => (1u64..1500).prop_map(Op::Pause),
        2 => (0..NODES).prop_map(Op::Reconnect),
        1 => Just(Op::Restart),
        4 => fault.prop_map(Op::Fault),
    ]
}

/// A node that knows what was acknowledged to it.
struct Node {
    name: String,
    session: u64,
    next: u64,
    acked: Ranges,
    gaps: Ranges,
    lanes: BTreeMap<Lane, Opened>,
}

impl Node {
    async fn connect(&mut self, ingest: &Ingest) {
        self.session += 1;
        for lane in [Lane::Live, Lane::Backlog] {
            let held = [held(7, self.acked.first_missing(0), self.next)];
            let opened = ingest.opened(self.session, &name(&self.name), &name("s1"), lane, &held).await.unwrap();
            for mark in &opened.marks {
                self.acked.extend(&mark.durable);
            }
            self.lanes.insert(lane, opened);
        }
    }

    async fn offer(&mut self, lane: Lane, range: Range) {
        self.next = self.next.max(range.end);
        let opened = self.lanes.get(&lane).unwrap();
        // An honest node gives a gap for what it does not have, never records.
        for part in self.gaps.missing(range) {
            offer(&opened.offers, 7, part).await.unwrap();
        }
    }

    /// Takes the acknowledgements that are there: what they say is kept, or is a gap.
    async fn hear(&mut self, sink: &Memory) {
        for opened in self.lanes.values_mut() {
            while let Ok(marks) = tokio::time::timeout(Duration::ZERO, opened.acks.next()).await {
                for mark in marks.unwrap() {
                    self.acked.extend(&mark.durable);
                }
            }
        }
        for sequence in self.acked.iter().flatten() {
            let lost = self.gaps.contains(&(sequence..sequence + 1));
            assert!(lost || sink.holds(&self.name, 7, sequence), "{sequence} was acknowledged and is not kept");
        }
    }
}

async fn run(ops: Vec<Op>) {
    let sink = Arc::new(Memory::default());
    let limits = Limits { queue_bytes: 32 << 10, ..Limits::default() };
    let (mut ingest, mut writer) = start(&sink, limits);
    let node = |n| Node {
        name: format!("n{n}"),
        session: 0,
        next: 0,
        acked: Ranges::default(),
        gaps: Ranges::default(),
        lanes: BTreeMap::new(),
    };
    let mut nodes: Vec<Node> = (0..NODES).map(node).collect();
    for node in &mut nodes {
        node.connect(&ingest).await;
    }
    for op in ops {
        match op {
            Op::Offer { node, back, count, lane } => {
                let node = &mut nodes[node];
                let first = node.next.saturating_sub(back);
                node.offer(lane, first..first + count).await;
            }
            Op::Ahead { node, skip, count } => {
                let node = &mut nodes[node];
                if node.acked.pieces() < proto::stream::MAX_PIECES / 2 {
                    let first = node.next + skip;
                    node.offer(Lane::Live, first..first + count).await;
                }
            }
            Op::Gap { node, count } => {
                let node = &mut nodes[node];
                let range = node.next..node.next + count;
                node.next = range.end;
                node.gaps.insert(range.clone());
                let gap = Gap { key: key(7), first: range.start, count, reason: GapReason::Shed };
                node.lanes[&Lane::Backlog].offers.gap(gap).await.unwrap();
            }
            Op::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Reconnect(node) => nodes[node].connect(&ingest).await,
            Op::Restart => {
                writer.abort();
                let _ = (&mut writer).await;
                (ingest, writer) = start(&sink, limits);
                for node in &mut nodes {
                    node.lanes.clear();
                    node.connect(&ingest).await;
                }
            }
            Op::Fault(fault) => sink.then(fault),
        }
        for node in &mut nodes {
            node.hear(&sink).await;
        }
    }
    // It heals, and everything arrives.
    sink.heal();
    for node in &mut nodes {
        node.connect(&ingest).await;
        let all = 0..node.next;
        let gaps: Vec<Range> = node.gaps.iter().collect();
        for range in gaps {
            let gap = Gap { key: key(7), first: range.start, count: range.end - range.start, reason: GapReason::Shed };
            node.lanes[&Lane::Backlog].offers.gap(gap).await.unwrap();
        }
        for range in node.acked.missing(all.clone()) {
            node.offer(Lane::Backlog, range).await;
        }
        let arrived = async {
            while !node.acked.contains(&all) {
                node.hear(&sink).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), arrived).await.unwrap();
        let expected: Vec<u64> = node.gaps.missing(all).into_iter().flatten().collect();
        assert_eq!(sink.sequences(&node.name, 7), expected);
        // Every gap is told once.
        let gaps = sink.gaps(None, None, 0).await.unwrap();
        let mine = gaps.iter().filter(|g| g.node.as_str() == node.name);
        let told: u64 = mine.map(|g| g.count).sum();
        assert_eq!(told, node.gaps.count());
    }
    // All room is given back, once the last offer was written.
    let returned = async {
        while ingest.0.room.available_permits() < 32 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), returned).await.unwrap();
    writer.abort();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn exactly_once(ops in prop::collection::vec(op(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(ops));
    }
}

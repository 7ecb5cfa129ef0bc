use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn hub() -> Pipe {
    let pipe = Pipe::new(Role::Hub { fleet: name("hz") });
    pipe.up();
    pipe
}

fn up(node: &str) -> String {
    address::topic(&name("hz"), &name(node), Way::Up)
}

fn cx<T>(with: impl FnOnce(&Context<'_>) -> T) -> T {
    with(&Context::from_waker(Waker::noop()))
}

fn is_blocked(sent: &io::Result<()>) -> bool {
    sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn queues_are_bounded_push_back_and_take_turns() {
    let pipe = hub();
    let (one, two) = (address::hash("box-1"), address::hash("box-2"));
    for node in ["box-1", "box-2"] {
        assert!(pipe.arrived(&up(node), &frame::datagrams(5, b"hello").unwrap()));
    }
    let mut sent = 0;
    while pipe.send(one, 4, b"bulk").is_ok() {
        sent += 1;
    }
    assert_eq!(sent, OUT_PEER);
    assert!(cx(|cx| pipe.poll_room(one, cx)).is_pending());
    assert!(cx(|cx| pipe.poll_room(two, cx)).is_ready(), "one that is full stalled another");
    pipe.send(two, 4, b"scan").unwrap();
    let first = pipe.next().await;
    let second = pipe.next().await;
    assert_eq!(first.topic, "crossdock/v1/hz/box-1/down");
    assert_eq!(
        second,
        Outgoing { topic: "crossdock/v1/hz/box-2/down".into(), payload: frame::datagrams(4, b"scan").unwrap() }
    );
    for _ in 0..OUT_PEER / 2 {
        pipe.next().await;
    }
    assert!(cx(|cx| pipe.poll_room(one, cx)).is_ready());
    // The connection ends: who waited goes on, and what was queued is gone.
    while pipe.send(one, 4, b"bulk").is_ok() {}
    pipe.down();
    assert!(cx(|cx| pipe.poll_room(one, cx)).is_ready());
    assert!(pipe.send(one, 4, b"lost").is_ok());
    assert!(pipe.pop().is_none());
}

#[tokio::test]
async fn a_flood_of_one_node_leaves_room_for_another() {
    let pipe = hub();
    let message = frame::datagrams(3, b"abc").unwrap();
    for _ in 0..10 * IN_PEER {
        assert!(pipe.arrived(&up("loud"), &message));
    }
    assert_eq!(pipe.dropped(), 9 * IN_PEER as u64);
    assert!(pipe.arrived(&up("quiet"), &message));
    let mut seen = vec![];
    while let Poll::Ready(arrival) = cx(|cx| pipe.poll_receive(cx)) {
        seen.push(arrival.peer);
    }
    assert_eq!((seen.len(), seen.last()), (IN_PEER + 1, Some(&address::hash("quiet"))));
    // Many at once: the broker is not read until there is room.
    let nodes: Vec<_> = (0..=IN_ALL).map(|n| up(&format!("box-{n}"))).collect();
    let taken = nodes.iter().take_while(|topic| pipe.arrived(topic, &message)).count();
    assert_eq!(taken, IN_ALL);
    for _ in 0..=IN_ALL / 2 {
        assert!(cx(|cx| pipe.poll_receive(cx)).is_ready());
    }
    pipe.room().await;
    assert!(pipe.arrived(&nodes[IN_ALL], &message));
}

#[tokio::test(start_paused = true)]
async fn nodes_without_number_are_bounded_and_the_silent_make_room() {
    let pipe = hub();
    let message = frame::datagrams(3, b"abc").unwrap();
    for n in 0..MAX_PEERS + 100 {
        assert!(pipe.arrived(&up(&format!("made-up-{n}")), &message));
        let _ = cx(|cx| pipe.poll_receive(cx));
    }
    let known = pipe.lock().peers.len();
    assert_eq!((known, pipe.dropped()), (MAX_PEERS, 100));
    tokio::time::advance(SILENT).await;
    assert!(pipe.arrived(&up("box-1"), &message));
    assert!(cx(|cx| pipe.poll_receive(cx)).is_ready());
    assert_eq!(pipe.name(address::hash("box-1")), Some(name("box-1")));
}

#[tokio::test]
async fn asks_are_answered_in_their_size_and_teach_it() {
    let pipe = hub();
    let peer = address::hash("box-1");
    let ask = |number, segments| Echo { number, bytes: frame::message_bytes(segments) };
    assert!(pipe.arrived(&up("box-1"), &frame::ask(ask(1, 1))));
    assert_eq!(pipe.next().await.payload, frame::answer(ask(1, 1)));
    pipe.send(peer, 2, b"aabbc").unwrap();
    assert_eq!(pipe.lock().queued, 3, "one in a message until more are known to get through");
    for _ in 0..3 {
        pipe.next().await;
    }
    assert!(pipe.arrived(&up("box-1"), &frame::ask(ask(2, 10))));
    assert!(pipe.arrived(&up("box-1"), &frame::ask(Echo { number: 3, bytes: frame::MIN_ASK_BYTES })));
    pipe.next().await;
    pipe.next().await;
    pipe.send(peer, 2, b"aabbc").unwrap();
    assert_eq!(pipe.next().await.payload, frame::datagrams(2, b"aabbc").unwrap());
    // A flood of asks is bounded like everything.
    (0..100).for_each(|n| assert!(pipe.arrived(&up("box-1"), &frame::ask(ask(n, 1)))));
    assert_eq!(pipe.lock().queued, OUT_PEER);
    assert!(is_blocked(&pipe.send(peer, 2, b"aa")));
}

#[tokio::test]
async fn a_hub_to_which_large_messages_are_slow_lets_nodes_send_small_ones() {
    let pipe = hub().of_segments(2);
    let ask = |number, segments| Echo { number, bytes: frame::message_bytes(segments) };
    for (number, segments) in [(1, 10), (2, 5), (3, 2)] {
        assert!(pipe.arrived(&up("box-1"), &frame::ask(ask(number, segments))));
    }
    assert_eq!(pipe.next().await.payload, frame::answer(ask(3, 2)), "a larger ask was answered");
    assert!(pipe.pop().is_none());
}

#[tokio::test]
async fn what_is_malformed_or_anothers_is_dropped() {
    let node = Pipe::new(Role::Node { fleet: name("hz"), node: name("box-1") });
    node.up();
    let message = frame::datagrams(3, b"abc").unwrap();
    for topic in ["crossdock/v1/hz/box-2/down", "crossdock/v1/hz/box-1/up", "x"] {
        assert!(node.arrived(topic, &message));
    }
    assert!(node.arrived("crossdock/v1/hz/box-1/down", &Bytes::from_static(b"\x01\x00\xff\xffabc")));
    assert_eq!(node.dropped(), 4);
    assert!(node.arrived("crossdock/v1/hz/box-1/down", &message));
    assert!(cx(|cx| node.poll_receive(cx)).is_ready());
    let echo = Echo { number: 9, bytes: 20 };
    node.send(address::hash("box-1"), 3, b"abc").unwrap();
    node.ask(echo);
    assert_eq!(node.next().await, Outgoing { topic: "crossdock/v1/hz/box-1/up".into(), payload: frame::ask(echo) });
    assert!(node.arrived("crossdock/v1/hz/box-1/down", &frame::answer(echo)));
    assert_eq!(node.state().borrow().answered, Some(echo));
}

//! One session with the hub: control stream, reports, heartbeats, and what the hub asks for.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    attestation::Attestation,
    link::{
        CloseCode,
        frame::{self, MAX_CONTROL_BYTES, MAX_REQUEST_BYTES},
        message::{
            AgentMessage, Assignment, ExecHeader, ExecRequest, Heartbeat, Hello, HubMessage, HubRequest, LogsHeader,
            LogsRequest, MetadataReply, Report, Welcome,
        },
        priority,
    },
    name::Name,
    object::GpuInventory,
    tuf::SecretKey,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};

use super::{Shared, assignment::AssignmentError, problem::Problem};
use crate::{
    driver::{Driver, side},
    exec::Server,
    gpu::News,
};

/// How long the hub may take to introduce itself, or to take a message.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two reports.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Heartbeats stay in these bounds whatever the hub asks for.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 1_000..=60_000;
/// Messages of the hub that wait to be handled.
const INBOX: usize = 4;

/// Signs what the node says it runs, see [`proto::attestation`].
#[derive(Debug)]
struct Signer {
    key: SecretKey,
    /// Of this session; hubs of before it have none.
    nonce: Option<String>,
    counter: u64,
}

impl Signer {
    /// Whether nothing was signed in this session yet.
    fn owes(&self) -> bool {
        self.counter == 0 && self.nonce.is_some()
    }

    fn sign(&mut self, node: &Name, report: &Report) -> Option<Attestation> {
        let nonce = self.nonce.as_ref()?;
        self.counter += 1;
        Some(Attestation::sign(&self.key, node, nonce, self.counter, report))
    }
}

/// What the hub wants of this node.
#[derive(Debug, Clone)]
enum Order {
    /// Of a hub without a director.
    Unsigned(Assignment),
    /// Signed for this node and session.
    Directive(Box<MetadataReply>),
}

/// A session that began.
pub(super) struct Session {
    shared: Arc<Shared>,
    hub: String,
    connection: Connection,
    send: SendStream,
    inbox: mpsc::Receiver<HubMessage>,
    heartbeat: Duration,
    sent: Report,
    /// The GPUs that the hub knows of.
    gpus: Option<GpuInventory>,
    gpu_news: News,
    /// Signs reports.
    signer: Signer,
    /// What directives of this session must echo.
    nonce: String,
    /// What the hub wants, and could not be taken yet: no room on the disk, or a clock that is wrong.
    waiting: Option<Order>,
    tasks: JoinSet<()>,
}

impl Session {
    /// Opens the control stream, says hello and waits for the welcome.
    pub async fn begin(
        shared: Arc<Shared>,
        hub: &str,
        connection: Connection,
        key: SecretKey,
    ) -> Result<Session, Problem> {
        let begun = timeout(PATIENCE, Session::greet(shared, hub, &connection, key)).await;
        match begun {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(why(&connection, hub, &error.to_string())),
            Err(_) => Err(Problem::unreachable(hub, "it connected and then said nothing")),
        }
    }

    async fn greet(
        shared: Arc<Shared>,
        hub: &str,
        connection: &Connection,
        key: SecretKey,
    ) -> Result<Session, frame::FrameError> {
        let io = |e: quinn::ConnectionError| frame::FrameError::Io(e.into());
        let (mut send, mut receive) = connection.open_bi().await.map_err(io)?;
        // It fails only when the stream is gone, which the write below tells.
        send.set_priority(priority::CONTROL).ok();
        let sent = shared.board.borrow().clone();
        let director = shared.assignments.request();
        let nonce = director.nonce.clone();
        let gpu_news = shared.facts.gpus().news();
        let info = shared.info();
        let gpus = info.nvidia.clone();
        let hello = Hello {
            info,
            report: sent.clone(),
            usage: shared.usage(),
            clock: shared.env.wall.now(),
            tells_events: shared.tells_events,
            director: Some(director),
        };
        frame::write(&mut send, &AgentMessage::Hello(Box::new(hello)), MAX_CONTROL_BYTES).await?;
        let welcome = loop {
            match frame::read(&mut receive, MAX_CONTROL_BYTES).await? {
                HubMessage::Welcome(welcome) => break welcome,
                HubMessage::Unknown => {}
                HubMessage::Assignment(_) | HubMessage::Directive(_) => {
                    return Err(frame::FrameError::Malformed("an assignment came before the welcome".into()));
                }
            }
        };
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end()));
        let (inbound, inbox) = mpsc::channel(INBOX);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(receive, inbound));
        let signer = Signer { key, nonce: welcome.nonce.clone(), counter: 0 };
        let mut session = Session {
            shared,
            hub: hub.to_owned(),
            connection: connection.clone(),
            send,
            inbox,
            heartbeat,
            sent,
            gpus,
            gpu_news,
            signer,
            nonce,
            waiting: None,
            tasks,
        };
        session.welcomed(&welcome);
        Ok(session)
    }

    fn welcomed(&mut self, welcome: &Welcome) {
        self.shared.facts.set_hub_clock(welcome.clock, self.shared.env.wall.now());
        tracing::info!(hub = %self.hub, version = %welcome.hub_version, fleet = %welcome.fleet, "connected");
    }

    /// Until the connection ends; tells why it did.
    pub async fn run(mut self) -> Problem {
        let mut board = self.shared.board.subscribe();
        let mut heartbeat = interval_at(Instant::now() + self.heartbeat, self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report_at = Instant::now() + REPORT_EVERY;
        // The report that came with the greeting could not be signed yet.
        let mut changed = *board.borrow_and_update() != self.sent || self.signer.nonce.is_some();
        let connection = self.connection.clone();
        let mut closed = pin!(connection.closed());
        loop {
            // Writes happen in the arms' bodies, which run to their end; every arm itself is cancel safe.
            let wrote = tokio::select! {
                biased;
                error = &mut closed => return Problem::of(&error, &self.hub, true),
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => Err("the control stream ended".into()),
                },
                Ok((send, receive)) = self.connection.accept_bi() => {
                    self.tasks.spawn(serve(self.shared.clone(), send, receive));
                    Ok(())
                }
                Ok(()) = board.changed(), if !changed => {
                    changed = true;
                    Ok(())
                }
                () = sleep_until(report_at), if changed => {
                    changed = false;
                    report_at = Instant::now() + REPORT_EVERY;
                    let report = board.borrow_and_update().clone();
                    self.report(report).await
                }
                () = self.gpu_news.changed() => self.inform().await,
                _ = heartbeat.tick() => self.beat().await,
            };
            while self.tasks.try_join_next().is_some() {}
            if let Err(error) = wrote {
                let problem = why(&self.connection, &self.hub, &error);
                self.connection.close(CloseCode::ProtocolError.code(), error.as_bytes());
                return problem;
            }
        }
    }

    async fn handle(&mut self, message: HubMessage) -> Result<(), String> {
        match message {
            HubMessage::Assignment(assignment) => {
                self.take(Order::Unsigned(assignment), true).await;
                Ok(())
            }
            HubMessage::Directive(reply) => {
                self.take(Order::Directive(reply), true).await;
                Ok(())
            }
            HubMessage::Welcome(_) => Err("the hub introduced itself twice".into()),
            HubMessage::Unknown => Ok(()),
        }
    }

    /// Verifies, writes and takes what the hub wants. What cannot be written now, or is refused by a clock that may be
    /// wrong, is tried again with each heartbeat: the hub has said it, and will not say it again. What is refused else
    /// stays refused, and the report says why.
    async fn take(&mut self, order: Order, is_new: bool) {
        let (assignments, board) = (&self.shared.assignments, &self.shared.board);
        let taken = match &order {
            Order::Unsigned(assignment) => assignments.accept(assignment.clone(), board).await,
            Order::Directive(reply) => assignments.direct(reply, &self.nonce, board).await,
        };
        let again = match &taken {
            Ok(()) => false,
            Err(AssignmentError::Refused(error)) => {
                if is_new {
                    tracing::error!(reason = error.code(), "what the hub wants is refused: {error}");
                }
                error.may_be_the_clock()
            }
            Err(error @ AssignmentError::NotKept(_)) => {
                tracing::warn!(%error, "an assignment could not be kept, trying again");
                true
            }
        };
        self.waiting = again.then_some(order);
    }

    async fn report(&mut self, report: Report) -> Result<(), String> {
        if report == self.sent && !self.signer.owes() {
            return Ok(());
        }
        let mut signed = report.clone();
        signed.attestation = self.signer.sign(&self.shared.node, &report);
        self.write(&AgentMessage::Report(Box::new(signed))).await?;
        self.sent = report;
        Ok(())
    }

    /// Tells facts that are not what the hub was told: those of the GPUs.
    async fn inform(&mut self) -> Result<(), String> {
        if self.shared.facts.gpus().inventory() == self.gpus {
            return Ok(());
        }
        let info = self.shared.info();
        self.gpus.clone_from(&info.nvidia);
        self.write(&AgentMessage::Info(Box::new(info))).await
    }

    async fn beat(&mut self) -> Result<(), String> {
        if let Some(order) = self.waiting.take() {
            self.take(order, false).await;
        }
        let heartbeat = Heartbeat { usage: self.shared.usage(), clock: self.shared.env.wall.now() };
        self.write(&AgentMessage::Heartbeat(Box::new(heartbeat))).await
    }

    async fn write(&mut self, message: &AgentMessage) -> Result<(), String> {
        match timeout(PATIENCE, frame::write(&mut self.send, message, MAX_CONTROL_BYTES)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the hub takes no messages".into()),
        }
    }
}

/// What ended the connection, or else `error`.
fn why(connection: &Connection, hub: &str, error: &str) -> Problem {
    match connection.close_reason() {
        Some(reason) => Problem::of(&reason, hub, true),
        None => Problem::new("Lost", format!("the session with {hub} broke off ({error}); trying again")),
    }
}

/// Reads the control stream to its end: frames must not be cut, so this has a task of its own.
async fn read(mut receive: RecvStream, inbound: mpsc::Sender<HubMessage>) {
    loop {
        match frame::read(&mut receive, MAX_CONTROL_BYTES).await {
            Ok(message) => {
                if inbound.send(message).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the control stream ended");
                return;
            }
        }
    }
}

/// Answers one request of the hub.
async fn serve(shared: Arc<Shared>, mut send: SendStream, mut receive: RecvStream) {
    let asked = timeout(PATIENCE, frame::read(&mut receive, MAX_REQUEST_BYTES)).await;
    let served = match asked {
        Ok(Ok(HubRequest::Logs(request))) => logs(&*shared.driver, request, &mut send).await,
        Ok(Ok(HubRequest::Exec(request))) => exec(&shared.exec, &request, send, receive).await,
        _ => {
            send.reset(CloseCode::ProtocolError.code()).ok();
            return;
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a request of the hub ended early");
    }
}

async fn logs(driver: &dyn Driver, request: LogsRequest, send: &mut SendStream) -> Result<(), frame::FrameError> {
    send.set_priority(priority::LOGS).ok(); // it fails only when the stream is gone
    let Some(mut lines) = side::logs(driver, &request.app, request.tail, request.follow).await else {
        let message = format!("there is no app {} on this node, or it has not run yet", request.app);
        frame::write(send, &LogsHeader::NotFound { message }, MAX_REQUEST_BYTES).await?;
        send.finish().ok();
        return Ok(());
    };
    frame::write(send, &LogsHeader::Found, MAX_REQUEST_BYTES).await?;
    while let Some(bytes) = next(send, &mut lines).await {
        send.write_chunk(bytes).await.map_err(|e| frame::FrameError::Io(e.into()))?;
    }
    send.finish().ok(); // gone already is as good
    Ok(())
}

/// From here on the stream is the person's: the hub hands it through.
async fn exec(
    server: &Server,
    request: &ExecRequest,
    mut send: SendStream,
    receive: RecvStream,
) -> Result<(), frame::FrameError> {
    send.set_priority(priority::LOGS).ok(); // it fails only when the stream is gone
    match server.desk.open(&request.app) {
        Ok((spec, keys)) => {
            frame::write(&mut send, &ExecHeader::Ready, MAX_REQUEST_BYTES).await?;
            if let Err(error) = server.serve(tokio::io::join(receive, send), spec, &keys).await {
                tracing::warn!(app = %request.app, "a command was not run, or broke off: {error}");
            }
            Ok(())
        }
        Err(error) => {
            let header = ExecHeader::Refused { message: error.to_string() };
            frame::write(&mut send, &header, MAX_REQUEST_BYTES).await?;
            send.finish().ok(); // gone already is as good
            Ok(())
        }
    }
}

/// The next output, or `None` once the hub no longer listens.
async fn next(send: &SendStream, lines: &mut mpsc::Receiver<Bytes>) -> Option<Bytes> {
    // Both arms are cancel safe.
    tokio::select! {
        biased;
        _ = send.stopped() => None,
        bytes = lines.recv() => bytes,
    }
}

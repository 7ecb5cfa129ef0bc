//! `crossdock exec NODE/APP -- COMMAND`: see [`proto::exec`].

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    sync::{
        Arc,
        mpsc::{self as std_mpsc, SyncSender},
    },
};

use anyhow::Context as _;
use bytes::Bytes;
use proto::{
    env::Env,
    exec::{
        Ended, Input, Output, Reply, Size, Start, Terminal,
        tls::{self, Key},
    },
    identity::TlsClock,
    link::frame::{self, MAX_REQUEST_BYTES},
    name::Name,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use rustls::sign::SigningKey;
use rustls_pki_types::ServerName;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_rustls::TlsConnector;

use super::{
    Context,
    exit::{CliError, CommandExit, Exit},
    passphrase::PassphraseArgs,
    release::failed,
};
use crate::release::signer::KeyRef;

/// Most that is read from the terminal at once.
const PIECE_BYTES: usize = 16 << 10;
/// Packets that wait to be sent.
const QUEUE: usize = 4;
/// Added to a signal's number, as shells do it.
const BY_SIGNAL: i32 = 128;
/// The kind of a terminal that does not say its own.
const PLAIN_TERMINAL: &str = "dumb";

/// `crossdock exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// NODE/APP
    workload: String,
    /// Hand it what this command reads.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Run it at a terminal.
    #[arg(short = 't', long)]
    tty: bool,
    /// The key that the release lists in workload.exec.authorizedKeys: FILE, agent:WHICH or pkcs11:WHICH.
    #[arg(long, value_name = "KEY", env = "CROSSDOCK_EXEC_KEY")]
    key: KeyRef,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs a command in a workload and ends as it does.
///
/// # Errors
/// When it was not run; and [`CommandExit`] when it ended with another code than 0.
pub async fn run(args: ExecArgs, context: &Context) -> anyhow::Result<()> {
    let usage = |text: String| CliError::new(Exit::Usage, text);
    let (node, app) = args
        .workload
        .split_once('/')
        .and_then(|(node, app)| Some((node.parse::<Name>().ok()?, app.parse::<Name>().ok()?)))
        .ok_or_else(|| usage(format!("{:?}: write NODE/APP", args.workload)))?;
    if args.tty && !std::io::stdin().is_terminal() {
        return Err(usage("--tty needs a terminal, and standard input is none; leave --tty out".into()).into());
    }
    let key = key(args.key, args.passphrase)?;
    let client = context.client()?;
    let config = tls::client(&node, client.roots(), key, Arc::new(TlsClock(Env::real()?.wall)))?;
    let terminal = args.tty.then(|| Terminal { term: kind_of_terminal(), size: size() });
    let stream = client.exec(node.as_str(), app.as_str()).await?;
    // The name is the verifier's business: nodes have no addresses.
    let name = ServerName::try_from(format!("{node}{}", proto::identity::NODE_DNS_SUFFIX))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut stream = connected.map_err(|e| refused(&node, &e))?;
    let start = Start { node: node.clone(), app, command: args.command, stdin: args.stdin, terminal };
    frame::write(&mut stream, &start, MAX_REQUEST_BYTES).await?;
    // With TLS 1.3 a client learns here that it was not let in.
    let reply = frame::read::<Reply>(&mut stream, MAX_REQUEST_BYTES).await;
    match reply.map_err(|e| refused(&node, &e))? {
        Reply::Started => {}
        Reply::Refused { message } => return Err(CliError::new(Exit::Refused, message).into()),
    }
    let raw = start.terminal.is_some().then(Raw::begin).transpose()?;
    let ended = attend(stream, args.stdin, raw.is_some()).await;
    drop(raw);
    let ended = ended?;
    if !ended.message.is_empty() {
        eprintln!("{}", ended.message);
    }
    match ended.code.or(ended.signal.map(|signal| BY_SIGNAL + signal)) {
        Some(0) => Ok(()),
        code => Err(CommandExit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)).into()),
    }
}

fn refused(node: &Name, error: &dyn std::error::Error) -> CliError {
    let mut causes = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        causes.push_str(&format!(": {source}"));
        cause = source.source();
    }
    let text = format!(
        "node {node} did not let this key in ({causes}); does the release list it in workload.exec.authorizedKeys?"
    );
    CliError::new(Exit::Unauthorized, text)
}

/// What signs stays in a thread of its own: a person may be asked, and TLS wants to call it from anywhere.
fn key(key: KeyRef, passphrase: PassphraseArgs) -> anyhow::Result<Arc<dyn SigningKey>> {
    type Answer = SyncSender<Result<Vec<u8>, String>>;
    let (asks, asked) = std_mpsc::sync_channel::<(Vec<u8>, Answer)>(1);
    let (opened, open) = std_mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let signer = passphrase.source().and_then(|mut ask| key.signer(&mut ask));
        let signer = match signer {
            Ok(signer) => signer,
            Err(error) => return drop(opened.send(Err(error))),
        };
        let _ = opened.send(Ok(signer.public_key())); // whoever asked is waiting
        for (message, answer) in asked {
            let signed = signer.try_sign(&message).map_err(|e| e.to_string());
            let bytes = signed
                .and_then(|hex| data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|e| e.to_string()));
            let _ = answer.send(bytes); // likewise
        }
    });
    let public = open.recv().context("open the key")?.map_err(failed)?;
    let gone = || "the key's keeper is gone".to_owned();
    let sign = move |message: &[u8]| {
        let (answer, answered) = std_mpsc::sync_channel(1);
        asks.send((message.to_vec(), answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    };
    Ok(Key::new(&public, sign)?)
}

/// Hands packets both ways until the command has ended.
async fn attend(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<Ended> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (typed, mut typing) = mpsc::channel(QUEUE);
    if stdin {
        let typed = typed.clone();
        std::thread::spawn(move || read_stdin(&typed)); // its read ends with the program
    }
    if tty {
        let mut resized = signal(SignalKind::window_change())?;
        tokio::spawn(async move {
            while resized.recv().await.is_some() && typed.send(Input::Resize(size())).await.is_ok() {}
        });
    }
    let feed = async {
        while let Some(input) = typing.recv().await {
            input.write(&mut writer).await?;
        }
        std::future::pending::<std::io::Result<Ended>>().await // nothing more is typed: the command goes on
    };
    let show = async {
        while let Some(output) = Output::read(&mut reader).await? {
            match output {
                Output::Out(bytes) => show(&mut std::io::stdout().lock(), &bytes)?,
                Output::Err(bytes) => show(&mut std::io::stderr().lock(), &bytes)?,
                Output::Ended(ended) => return Ok(ended),
            }
        }
        Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    };
    // The end of either is the end of both.
    let ended = tokio::select! {
        biased;
        shown = show => shown,
        fed = feed => fed,
    };
    ended.context("the line to the node broke off; the command was killed")
}

fn show(to: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn read_stdin(typed: &mpsc::Sender<Input>) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let input = match std::io::stdin().lock().read(&mut buffer) {
            Ok(n @ 1..) => Input::Bytes(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(_) | Err(_) => Input::End,
        };
        let ended = input == Input::End;
        if typed.blocking_send(input).is_err() || ended {
            return;
        }
    }
}

fn kind_of_terminal() -> String {
    std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| PLAIN_TERMINAL.to_owned())
}

fn size() -> Size {
    let size = tcgetwinsize(std::io::stdin());
    size.map_or(Size { rows: 24, columns: 80 }, |size| Size { rows: size.ws_row, columns: size.ws_col })
}

/// The terminal hands on every key as it is, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> anyhow::Result<Raw> {
        let before = tcgetattr(std::io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("change the terminal's settings")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0); // nobody is left to tell
        let _ = std::io::stdout().flush();
    }
}

//! One attempt of a probe: HTTP, TCP or a command. The process driver calls it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
};

use proto::release::{ExecProbe, HttpProbe, Probe};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout_at},
};

use super::{ProbeOutcome, records::Folder};

/// Where a process of the box listens.
pub const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Longest status line of an answer that is looked at.
const MAX_STATUS_LINE_BYTES: u64 = 1024;
/// Most of an answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Output of a failed command that is shown.
const SHOWN_BYTES: usize = 300;

/// Makes one attempt within the probe's time-out, at this address or by running its command.
pub async fn attempt<'a, F>(at: IpAddr, probe: &'a Probe, run: impl FnOnce(&'a ExecProbe) -> F) -> ProbeOutcome
where
    F: Future<Output = Result<(), String>>,
{
    let until = Instant::now() + probe.timeout.get();
    let mut answer = None;
    let attempt = async {
        if let Some(http) = &probe.http {
            http_get(at, http, &mut answer).await
        } else if let Some(tcp) = &probe.tcp {
            connect(at, tcp.port).await.map(drop)
        } else if let Some(exec) = &probe.exec {
            run(exec).await
        } else {
            Err("it has neither http, tcp nor exec".into())
        }
    };
    let outcome = match timeout_at(until, attempt).await {
        Ok(Ok(())) => ProbeOutcome::Success,
        Ok(Err(text)) => ProbeOutcome::Failure(text),
        Err(_) => ProbeOutcome::Failure(format!("no answer within {}", probe.timeout)),
    };
    if let Some(answer) = answer {
        // The verdict stands: what does not come in time is not waited for.
        let _ = timeout_at(until, answer.read_on()).await;
    }
    outcome
}

async fn connect(at: IpAddr, port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::from((at, port));
    TcpStream::connect(address).await.map_err(|e| format!("connecting to {address}: {e}"))
}

/// An answer whose status was read. Closing the connection before its end would reset it, and the server
/// would note an error with every probe.
struct Answer {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Answer {
    /// Reads to the end of headers and body.
    async fn read_on(mut self) {
        let mut buffer = [0; 4096];
        while self.bytes.len() < MAX_ANSWER_BYTES && !is_whole(&self.bytes) {
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => self.bytes.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            }
        }
    }
}

/// Whether all is there that `Content-Length` announces. Without it the end of the connection tells.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default());
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(key, _)| key.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, value)| value.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() - end - 4 >= length)
}

/// Leaves the rest of the answer in `rest`.
async fn http_get(at: IpAddr, http: &HttpProbe, rest: &mut Option<Answer>) -> Result<(), String> {
    let mut stream = connect(at, http.port).await?;
    let at = SocketAddr::from((at, http.port));
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: crossdock-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        http.path
    );
    let what = format!("GET http://{at}{}", http.path);
    let answer = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut limited = (&mut stream).take(MAX_STATUS_LINE_BYTES);
        while !answer.contains(&b'\n') && limited.read_buf(&mut answer).await? > 0 {}
        Ok::<_, io::Error>(answer)
    };
    let answer = answer.await.map_err(|e| format!("{what}: {e}"))?;
    let status = status_of(&answer);
    *rest = Some(Answer { stream, bytes: answer });
    match status {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("{what}: status {status}")),
        None => Err(format!("{what}: the answer is not HTTP/1.1")),
    }
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|b| *b == b'\n').next()?).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

/// Runs the command as the workload's user, in its control group, with its environment.
pub(super) async fn run(program: &Path, folder: &Folder, exec: &ExecProbe) -> Result<(), String> {
    let problem = |e: io::Error| format!("its command cannot be run: {e}");
    let launch = folder.launch().map_err(problem)?.ok_or("the workload was never started")?;
    let running = folder.running(&launch).map_err(problem)?.ok_or("the workload does not run")?;
    let mut command = Command::new(program);
    command.arg("exec").arg(folder.path());
    for group in &running.groups {
        command.arg("--group").arg(group);
    }
    command.arg("--").args(&exec.command).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(problem)?;
    // The command leads a session of its own: when the time is over, all of that goes.
    let guard = child.id().and_then(|pid| i32::try_from(pid).ok()).map(KillGroup);
    let shown = match child.stderr.take() {
        Some(stderr) => tail_of(stderr).await.map_err(problem)?,
        None => String::new(),
    };
    let status = child.wait().await.map_err(problem)?;
    drop(guard);
    match status.success() {
        true => Ok(()),
        false if shown.is_empty() => Err(format!("its command ended with {status}")),
        false => Err(format!("its command ended with {status}: {shown}")),
    }
}

/// Reads to the end and keeps the last bytes.
async fn tail_of(mut stream: impl tokio::io::AsyncRead + Unpin) -> io::Result<String> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(String::from_utf8_lossy(kept.trim_ascii()).into_owned()),
            n => kept.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
        kept.drain(..kept.len().saturating_sub(SHOWN_BYTES));
    }
}

/// Kills what is left of a process group.
pub(super) struct KillGroup(pub(super) i32);

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL); // may be gone
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    async fn nothing(_: &ExecProbe) -> Result<(), String> {
        Err("there is none".into())
    }

    async fn against(answer: &'static [u8], close: bool) -> ProbeOutcome {
        within("30s", answer, close).await
    }

    async fn within(limit: &str, answer: &'static [u8], close: bool) -> ProbeOutcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /healthz?x=1 HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).await.unwrap();
            if !close {
                std::future::pending::<()>().await;
            }
        });
        let text = format!(r#"{{"http": {{"path": "/healthz?x=1", "port": {port}}}, "timeout": "{limit}"}}"#);
        let probe: Probe = serde_json::from_str(&text).unwrap();
        let outcome = attempt(LOOPBACK, &probe, nothing).await;
        server.abort();
        outcome
    }

    fn text(outcome: ProbeOutcome) -> String {
        match outcome {
            ProbeOutcome::Success => "success".into(),
            ProbeOutcome::Failure(text) => text,
        }
    }

    #[tokio::test]
    async fn http_statuses_from_200_to_399_are_success() {
        assert_eq!(text(against(b"HTTP/1.1 200 OK\r\n\r\nhello", true).await), "success");
        assert_eq!(text(within("300ms", b"HTTP/1.0 302 Found\r\n", false).await), "success");
        assert_eq!(text(against(b"HTTP/1.1 200 OK\r\ncontent-Length: 2\r\n\r\nok", false).await), "success");
        assert!(text(against(b"HTTP/1.1 404 Not Found\r\n\r\n", true).await).ends_with("status 404"));
        assert!(text(against(b"HTTP/1.1 503 Busy\r\n\r\n", true).await).ends_with("status 503"));
        for nonsense in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 20\r\n", b"\xff\xff\n"] {
            assert!(text(against(nonsense, true).await).ends_with("not HTTP/1.1"));
        }
        assert_eq!(text(within("300ms", b"HTTP/1.1 2", false).await), "no answer within 300ms");
        assert!(text(against(&[b'x'; 100_000], true).await).contains("not HTTP/1.1"));
    }

    #[tokio::test]
    async fn the_connection_is_not_reset() {
        for status in ["200 OK", "404 Not Found"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 1024];
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                // In pieces, as servers send it: the status says nothing about the rest.
                stream.write_all(format!("HTTP/1.1 {status}\r\n").as_bytes()).await.unwrap();
                for _ in 0..30 {
                    tokio::task::yield_now().await;
                    stream.write_all(format!("X: {}\r\n", "x".repeat(1000)).as_bytes()).await?;
                }
                stream.shutdown().await?;
                stream.read(&mut buffer).await
            });
            let probe: Probe = serde_json::from_str(&format!(r#"{{"http": {{"port": {port}}}}}"#)).unwrap();
            attempt(LOOPBACK, &probe, nothing).await;
            assert_eq!(server.await.unwrap().unwrap(), 0, "the probe closes it in order");
        }
    }

    #[tokio::test]
    async fn tcp_succeeds_when_somebody_listens() {
        let probe = |port: u16| serde_json::from_str::<Probe>(&format!(r#"{{"tcp": {{"port": {port}}}}}"#)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(attempt(LOOPBACK, &probe(port), nothing).await, ProbeOutcome::Success);
        // Held and not listening: nobody else can come to listen there.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = silent.local_addr().unwrap().port();
        let refused = text(attempt(LOOPBACK, &probe(port), nothing).await);
        assert!(refused.contains(&format!("127.0.0.1:{port}")), "{refused}");
    }
}

//! A client of NATS, as much as a peer needs of it: the text protocol over TCP
//! (https://docs.nats.io/reference/reference-protocols/nats-protocol).

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, timeout_at},
};

/// Longest line of the protocol that is read.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Largest message that is read; the server's own bound is 1 MiB.
const MAX_MESSAGE_BYTES: usize = 2 << 20;
const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,"lang":"rust","version":"0","name":"crossdock-bench"}"#;

/// A connection.
#[derive(Debug)]
pub struct Nats {
    reader: BufReader<OwnedReadHalf>,
    writer: BufWriter<OwnedWriteHalf>,
}

/// A message for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its subject.
    pub subject: String,
    /// Where to answer; empty: nowhere.
    pub reply: String,
    /// The status line of its headers, such as `NATS/1.0 404 No Messages`; empty in a message of somebody's.
    pub status: String,
    /// What it says.
    pub payload: Bytes,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Nats {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// When nobody is there, or no NATS server.
    pub async fn connect(address: SocketAddr) -> io::Result<Nats> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let mut nats = Nats { reader: BufReader::new(reader), writer: BufWriter::with_capacity(64 << 10, writer) };
        let info = nats.line().await?;
        if !info.starts_with("INFO ") {
            return Err(wrong(format!("this is no NATS server: it says {info:?}")));
        }
        nats.writer.write_all(format!("{CONNECT}\r\nPING\r\n").as_bytes()).await?;
        nats.flush().await?;
        loop {
            match nats.line().await?.as_str() {
                "PONG" => return Ok(nats),
                line if line.starts_with("-ERR") => return Err(wrong(line)),
                _ => {}
            }
        }
    }

    /// Queues a subscription.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn subscribe(&mut self, subject: &str, id: u32) -> io::Result<()> {
        self.writer.write_all(format!("SUB {subject} {id}\r\n").as_bytes()).await
    }

    /// Queues a message; `reply` may be empty.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) -> io::Result<()> {
        self.writer.write_all(format!("PUB {subject} {reply} {}\r\n", payload.len()).as_bytes()).await?;
        self.writer.write_all(payload).await?;
        self.writer.write_all(b"\r\n").await
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }

    /// The next message. Not to be cancelled: a message that was half read is lost.
    ///
    /// # Errors
    /// When the connection is lost, or what comes is not the protocol.
    pub async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.step().await? {
                return Ok(message);
            }
        }
    }

    /// The next message, or `None` when none begins to come for so long.
    ///
    /// # Errors
    /// As [`Nats::next`].
    pub async fn next_within(&mut self, time: Duration) -> io::Result<Option<Message>> {
        let deadline = Instant::now() + time;
        loop {
            // Filling the buffer takes nothing out of it: this may be cancelled.
            match timeout_at(deadline, self.reader.fill_buf()).await {
                Ok(filled) => drop(filled?),
                Err(_) => return Ok(None),
            }
            if let Some(message) = self.step().await? {
                return Ok(Some(message));
            }
        }
    }

    /// One line of the protocol, and the message if it begins one.
    async fn step(&mut self) -> io::Result<Option<Message>> {
        let line = self.line().await?;
        let mut words = line.split_ascii_whitespace();
        match words.next().unwrap_or_default() {
            "PING" => {
                self.writer.write_all(b"PONG\r\n").await?;
                self.flush().await?;
                Ok(None)
            }
            "-ERR" => Err(wrong(line)),
            verb @ ("MSG" | "HMSG") => {
                let words: Vec<&str> = words.collect();
                let has_headers = verb == "HMSG";
                let message = self.message(&words, has_headers).await.map_err(|e| match e.kind() {
                    io::ErrorKind::InvalidData => wrong(format!("{e}: {line:?}")),
                    _ => e,
                });
                message.map(Some)
            }
            _ => Ok(None), // PONG, +OK, INFO
        }
    }

    /// `MSG subject id [reply] bytes`, or `HMSG subject id [reply] header-bytes bytes`, and its content.
    async fn message(&mut self, words: &[&str], has_headers: bool) -> io::Result<Message> {
        let number = |word: &&str| word.parse::<usize>().map_err(|_| wrong("not a number of bytes"));
        let (subject, reply, head, total) = match (words, has_headers) {
            ([subject, _, total], false) => (*subject, "", 0, number(total)?),
            ([subject, _, reply, total], false) => (*subject, *reply, 0, number(total)?),
            ([subject, _, head, total], true) => (*subject, "", number(head)?, number(total)?),
            ([subject, _, reply, head, total], true) => (*subject, *reply, number(head)?, number(total)?),
            _ => return Err(wrong("not the head of a message")),
        };
        if total > MAX_MESSAGE_BYTES || head > total {
            return Err(wrong("not the size of a message"));
        }
        let mut content = vec![0; total + 2];
        self.reader.read_exact(&mut content).await?;
        content.truncate(total);
        let mut headers = Bytes::from(content);
        let payload = headers.split_off(head);
        let status = String::from_utf8_lossy(&headers).lines().next().unwrap_or_default().trim_end().to_owned();
        let is_status = status.strip_prefix("NATS/1.0").is_some_and(|rest| !rest.is_empty());
        let status = if is_status { status } else { String::new() };
        Ok(Message { subject: subject.to_owned(), reply: reply.to_owned(), status, payload })
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = vec![];
        (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that says `script` after the handshake, and closes.
    async fn speaks(script: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"INFO {}\r\n").await.unwrap();
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read).lines();
            while lines.next_line().await.unwrap().is_some_and(|line| line != "PING") {}
            write.write_all(b"PONG\r\n").await.unwrap();
            write.write_all(script).await.unwrap();
            while lines.next_line().await.unwrap_or_default().is_some_and(|line| line != "bye") {}
        });
        address
    }

    #[tokio::test]
    async fn messages_are_read_with_and_without_headers() {
        let script = b"PING\r\nMSG a.b 1 5\r\nhe\r\no\r\n+OK\r\nMSG a 1 back 0\r\n\r\n\
            HMSG a 1 30 30\r\nNATS/1.0 404 No Messages\r\n\r\n  \r\nHMSG a 1 r 22 24\r\nNATS/1.0\r\nKey: abc\r\n\r\nhi\r\n";
        let mut nats = Nats::connect(speaks(script).await).await.unwrap();
        let told = |m: Message| (m.subject, m.reply, m.status, String::from_utf8(m.payload.to_vec()).unwrap());
        let expected = [
            ("a.b", "", "", "he\r\no"),
            ("a", "back", "", ""),
            ("a", "", "NATS/1.0 404 No Messages", ""),
            ("a", "r", "", "hi"),
        ];
        for (subject, reply, status, payload) in expected {
            let expected = (subject.to_owned(), reply.to_owned(), status.to_owned(), payload.to_owned());
            assert_eq!(told(nats.next().await.unwrap()), expected);
        }
        assert_eq!(nats.next_within(Duration::from_millis(1)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_an_error() {
        for script in ["MSG a 1\r\n", "MSG a 1 99999999\r\n", "HMSG a 1 9 5\r\n", "MSG a 1 x\r\n", "-ERR 'no'\r\n"] {
            let mut nats = Nats::connect(speaks(script.as_bytes()).await).await.unwrap();
            assert!(nats.next().await.is_err(), "{script}");
        }
    }
}

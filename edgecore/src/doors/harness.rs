//! A producer's whole conversation as bytes, without sockets, for the fuzzers of `sim/fuzz` alone: a door reads what a
//! stranger wrote until it ends, and answers into memory.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use proto::{
    digest::Digest,
    env::Env,
    name::Name,
    stream::{Class, Epoch, StreamKey, message::Lag, ranges::Range},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Desk, Intake, Refusal, Taken, http, mqtt};
use crate::{metrics::Metrics, settings::Streams};

/// What a door made of a conversation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What it answered.
    pub answer: Vec<u8>,
    /// The records that it handed on, in order.
    pub records: Vec<Bytes>,
}

/// A conversation with the HTTP door.
pub async fn http_door(said: Bytes, env: Env) -> Outcome {
    let (wire, heard) = wire(said);
    let (desk, intake) = desk(env);
    http::serve(Box::new(wire), desk, None).await;
    outcome(&heard, &intake)
}

/// A conversation with the MQTT door.
pub async fn mqtt_door(said: Bytes, env: Env) -> Outcome {
    let (wire, heard) = wire(said);
    let (desk, intake) = desk(env);
    mqtt::serve(Box::new(wire), desk, None).await;
    outcome(&heard, &intake)
}

fn desk(env: Env) -> (Arc<Desk>, Arc<Memory>) {
    let settings = Streams::default();
    let streams = settings.streams.iter().map(|s| (s.name.clone(), s.class)).collect();
    let intake = Arc::new(Memory { streams, records: Mutex::default() });
    let metrics = Metrics::default();
    if let Ok(app) = "web".parse() {
        metrics.begin(&app, Digest::of(b"")); // a stranger may guess it
    }
    (Arc::new(Desk::new(&settings, intake.clone(), metrics, env)), intake)
}

fn outcome(heard: &Mutex<Vec<u8>>, intake: &Memory) -> Outcome {
    let answer = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let records = std::mem::take(&mut *intake.records.lock().unwrap_or_else(PoisonError::into_inner));
    Outcome { answer, records }
}

/// Takes everything.
#[derive(Debug)]
struct Memory {
    streams: Vec<(Name, Class)>,
    records: Mutex<Vec<Bytes>>,
}

impl Intake for Memory {
    fn append<'a>(&'a self, stream: &'a Name, records: Vec<Bytes>) -> BoxFuture<'a, Result<Taken, Refusal>> {
        Box::pin(async move {
            let mut all = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            let start = all.len() as u64;
            all.extend(records);
            let key = StreamKey { stream: stream.clone(), epoch: Epoch(1) };
            Ok(Taken { key, range: Range { start, end: all.len() as u64 } })
        })
    }
    fn streams(&self) -> &[(Name, Class)] {
        &self.streams
    }
    fn lag(&self) -> Vec<Lag> {
        vec![]
    }
}

/// Says what it was given, then ends; keeps what it hears.
struct Wire {
    said: Bytes,
    heard: Arc<Mutex<Vec<u8>>>,
}

fn wire(said: Bytes) -> (Wire, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::default();
    (Wire { said, heard: Arc::clone(&heard) }, heard)
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.said.len().min(buffer.remaining());
        buffer.put_slice(self.said.get(..count).unwrap_or_default());
        self.said.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! Records and tables of streams from the hub.

use std::{borrow::Cow, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::Stream;
use jiff::Timestamp;
use proto::name::Name;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::text::When;
use crate::{
    api::streams::{CONTINUE, MORE},
    cli::{
        client::{Client, lines},
        exit::{CliError, Exit},
    },
};

/// How often a page is asked for again when the hub went away in the middle of a long read.
const TRIES: u32 = 6;
/// The first pause before that; each one is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);

/// What stands after `?`.
pub type Asked = Vec<(&'static str, String)>;

/// Where records come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// Of this node only.
    #[arg(long)]
    pub node: Option<Name>,
    /// Of this site only.
    #[arg(long)]
    pub site: Option<Name>,
}

/// When records were taken, by the nodes' clocks.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Times {
    /// From this time on: RFC 3339, or how long ago, such as -1h.
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    pub from: Option<When>,
    /// Before this time.
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    pub to: Option<When>,
}

/// Which records.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Where from.
    #[command(flatten)]
    pub place: Place,
    /// When.
    #[command(flatten)]
    pub times: Times,
}

impl Place {
    /// As a query.
    #[must_use]
    pub fn asked(&self) -> Asked {
        let node = self.node.iter().map(|node| ("node", node.to_string()));
        node.chain(self.site.iter().map(|site| ("site", site.to_string()))).collect()
    }
}

impl Filter {
    /// As a query; `now` is what relative times count from.
    ///
    /// # Errors
    /// When a time is beyond the calendar.
    pub fn asked(&self, now: Timestamp) -> anyhow::Result<Asked> {
        let mut asked = self.place.asked();
        for (name, when) in [("from", self.times.from), ("to", self.times.to)] {
            if let Some(when) = when {
                asked.push((name, when.at(now)?.to_string()));
            }
        }
        Ok(asked)
    }
}

/// A record as the hub writes it.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    /// The node.
    #[serde(borrow)]
    pub node: Cow<'a, str>,
    /// Its site.
    #[serde(borrow)]
    pub site: Cow<'a, str>,
    /// Name of the stream.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// Epoch.
    pub epoch: u64,
    /// Sequence.
    pub sequence: u64,
    /// When it was taken, RFC 3339.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// The record.
    #[serde(borrow)]
    pub record: &'a RawValue,
    /// How it is written.
    #[serde(default, borrow)]
    encoding: Option<Cow<'a, str>>,
}

impl<'a> Line<'a> {
    /// From a line.
    ///
    /// # Errors
    /// When the hub wrote something else.
    pub fn read(line: &'a [u8]) -> anyhow::Result<Line<'a>> {
        serde_json::from_slice(line).context("read a record of the hub's answer")
    }

    /// Whether the record stands there as base64.
    #[must_use]
    pub fn is_base64(&self) -> bool {
        self.encoding.is_some()
    }

    /// The record's bytes.
    ///
    /// # Errors
    /// When the hub wrote them in no way that is known here.
    pub fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        match self.encoding.as_deref() {
            None => Ok(self.record.get().as_bytes().to_vec()),
            Some("base64") => {
                let text: Cow<'_, str> = serde_json::from_str(self.record.get())?;
                BASE64.decode(text.as_bytes()).context("read a record's base64")
            }
            Some(other) => {
                anyhow::bail!("a record is encoded as {other:.40}, which is not known here; update crossdock")
            }
        }
    }
}

/// The place that a line of a follower's answer names, if it is one that does.
#[must_use]
pub fn bookmark(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Bookmark {
        #[serde(rename = "continue")]
        place: String,
    }
    // Records have many fields; only short lines are worth a look.
    let short = line.len() < 128;
    short.then(|| serde_json::from_slice::<Bookmark>(line).ok()).flatten().map(|bookmark| bookmark.place)
}

/// Whether the same may work later.
#[must_use]
pub fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<CliError>().is_none_or(|e| matches!(e.exit, Exit::Unreachable | Exit::Failed))
}

/// A list of the hub.
#[derive(Debug, Default, Deserialize)]
pub struct Items {
    /// The rows.
    pub items: Vec<Value>,
    /// Counts: where to go on.
    #[serde(default)]
    pub next: Option<Timestamp>,
    /// Gaps: whether there are older ones.
    #[serde(default)]
    pub more: bool,
}

/// A page of records.
#[derive(Debug, Default)]
pub struct RecordPage {
    body: Bytes,
    place: Option<String>,
    more: bool,
}

impl RecordPage {
    /// Its records.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
    }

    /// Its records as they came, each with its line end.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// Page after page.
#[derive(Debug)]
pub struct Pages<'a> {
    client: &'a Client,
    stream: Name,
    asked: Asked,
    place: Option<String>,
    more: bool,
    begun: bool,
}

impl Pages<'_> {
    /// Whether there was more when the last page was read.
    #[must_use]
    pub fn more(&self) -> bool {
        self.more
    }

    /// The next page of at most `limit` records; `None` at the end. A hub that goes away for a while in
    /// the middle is waited for.
    ///
    /// # Errors
    /// When the hub cannot be asked or refuses.
    pub async fn next(&mut self, limit: u64) -> anyhow::Result<Option<RecordPage>> {
        if !self.more {
            return Ok(None);
        }
        let mut asked = self.asked.clone();
        asked.push(("limit", limit.to_string()));
        asked.extend(self.place.clone().map(|place| ("continue", place)));
        let mut tried = 1;
        let page = loop {
            match self.client.page(&self.stream, &asked).await {
                Ok(page) => break page,
                Err(error) if !self.begun || tried == TRIES || !is_passing(&error) => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE * 2_u32.pow(tried - 1)).await,
            }
            tried += 1;
        };
        if page.more && page.place == self.place {
            anyhow::bail!("the hub's pages of {} do not go on; it needs an update", self.stream);
        }
        (self.begun, self.more) = (true, page.more);
        self.place.clone_from(&page.place);
        Ok(Some(page))
    }
}

impl Client {
    /// A list below `path`.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn items(&self, path: &str, attempt: &str, asked: &[(&str, String)]) -> anyhow::Result<Items> {
        let request = self.request(Method::GET, path).query(asked);
        Ok(self.send(attempt, request).await?.json().await?)
    }

    /// One page of records.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn page(&self, stream: &Name, asked: &[(&str, String)]) -> anyhow::Result<RecordPage> {
        let request = self.request(Method::GET, &format!("streams/{stream}/records")).query(asked);
        let response = self.send(&format!("read stream {stream}"), request).await?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (place, more) = (header(CONTINUE), header(MORE).as_deref() == Some("true"));
        let body = response.bytes().await.with_context(|| format!("read a page of stream {stream}"))?;
        Ok(RecordPage { body, place, more })
    }

    /// Page after page.
    #[must_use]
    pub fn pages(&self, stream: &Name, asked: Asked) -> Pages<'_> {
        Pages { client: self, stream: stream.clone(), asked, place: None, more: true, begun: false }
    }

    /// The lines of an answer that goes on, without line ends.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    pub async fn follow(
        &self,
        stream: &Name,
        asked: &[(&str, String)],
    ) -> anyhow::Result<impl Stream<Item = std::io::Result<Vec<u8>>> + use<>> {
        let request = self.request(Method::GET, &format!("streams/{stream}/records")).query(asked);
        let response = self.send(&format!("follow stream {stream}"), request).await?;
        let lines = lines(response);
        Ok(futures_util::StreamExt::map(lines, |line| {
            line.map(|mut line| {
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                line
            })
        }))
    }
}

//! Words that people and programs write: names, selectors, units, addresses; and the agent's settings.

use std::{collections::BTreeMap, fmt, str::FromStr};

use cloudcore::release::signer::KeyRef;
use edgecore::settings::Settings;
use proto::{
    broker::{Broker, BrokerUrl, ProxyUrl},
    digest::Digest,
    name::{Name, ObjectName, ReleaseName, Version},
    selector::{Selector, bad_label},
    units::{Bytes, Span},
};

use super::both_ways;

fn word<T: FromStr + fmt::Display + PartialEq + fmt::Debug>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let printed = value.to_string();
    match printed.parse::<T>() {
        Ok(again) => assert_eq!(again, value, "{text:?} prints as {printed:?}"),
        Err(_) => panic!("{text:?} prints as {printed:?}, which is refused"),
    }
    Some(value)
}

/// Any text as each of them.
pub(super) fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    word::<Name>(text);
    word::<Version>(text);
    word::<ObjectName>(text);
    word::<ReleaseName>(text);
    word::<Span>(text);
    word::<Bytes>(text);
    word::<BrokerUrl>(text);
    word::<ProxyUrl>(text);
    word::<KeyRef>(text);
    if let Ok(digest) = Digest::from_hex(text) {
        assert_eq!(digest.hex(), text);
    }
    both_ways::<Digest>(data);
    both_ways::<Span>(data);
    both_ways::<Bytes>(data);
    if let Some(broker) = both_ways::<Broker>(data) {
        broker.check().ok();
    }
    if let Some(selector) = word::<Selector>(text) {
        // Whatever is selected for has a label that can be given.
        assert!(text.trim() != "all" || selector.matches(&BTreeMap::new()));
        for (key, value) in text.split(',').filter_map(|part| part.split_once('=')) {
            let labels = [(key.trim().to_owned(), value.trim().to_owned())].into();
            let matches = selector.matches(&labels);
            assert!(!matches || selector.values_of(key.trim()).is_none_or(|v| v.contains(value.trim())));
            assert!(!matches || bad_label(&labels).is_none() || key.contains('!') || key.contains("not"));
        }
    }
}

/// `agent.toml`.
pub(super) fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Settings::parse(text) {
        Ok(settings) => assert!(settings.streams.streams.len() <= proto::stream::MAX_STREAMS),
        Err((line, _)) => assert!(line >= 1 && line <= text.lines().count() + 1),
    }
}

//! Addresses of what is reached through a broker, as quinn wants them, and the topics.
//!
//! They are in a unique local IPv6 prefix (RFC 4193) of our own and never leave the process:
//!
//! ```text
//! fd63:7264:6b00:BBBB:HHHH:HHHH:HHHH:HHHH     BBBB: number of the broker; H: hash of the node's name
//! fd63:7264:6b00:ffff::1                      the hub, as an agent sees it, on whichever carrier
//! ```
//!
//! Each node has an IP of its own: on a change of the port alone QUIC would keep what it knows of the path.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sha2::{Digest as _, Sha256};

use crate::name::Name;

const PREFIX: [u16; 3] = [0xfd63, 0x7264, 0x6b00];
const HUB: u16 = 0xffff;
const PORT: u16 = 7443;
/// Most brokers of one hub.
pub const MAX_BROKERS: usize = 16;

/// A node behind a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Behind {
    /// Number of the broker in the hub's list.
    pub broker: u16,
    /// Hash of the node's name.
    pub node: u64,
}

impl Behind {
    /// The address that stands for it.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        let [a, b, c] = PREFIX;
        let part = |shift: u32| u16::try_from(self.node >> shift & 0xffff).unwrap_or_default();
        let ip = Ipv6Addr::new(a, b, c, self.broker, part(48), part(32), part(16), part(0));
        SocketAddr::new(ip.into(), PORT)
    }

    /// Which node behind which broker an address stands for, if any.
    #[must_use]
    pub fn of(address: SocketAddr) -> Option<Behind> {
        let IpAddr::V6(ip) = address.ip() else { return None };
        let [a, b, c, broker, rest @ ..] = ip.segments();
        let node = rest.iter().fold(0, |sum: u64, part| sum << 16 | u64::from(*part));
        ([a, b, c] == PREFIX && usize::from(broker) < MAX_BROKERS).then_some(Behind { broker, node })
    }
}

/// The hub, as an agent with several carriers sees it.
#[must_use]
pub fn hub() -> SocketAddr {
    let [a, b, c] = PREFIX;
    SocketAddr::new(Ipv6Addr::new(a, b, c, HUB, 0, 0, 0, 1).into(), PORT)
}

/// The hash of a node's name in its address.
#[must_use]
pub fn hash(node: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(node).into();
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a node to the hub.
    Up,
    /// From the hub to a node.
    Down,
}

impl Way {
    fn as_str(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

/// Topic of a node's messages.
#[must_use]
pub fn topic(fleet: &Name, node: &Name, way: Way) -> String {
    format!("crossdock/v1/{fleet}/{node}/{}", way.as_str())
}

/// Filter for what all nodes of a fleet send.
#[must_use]
pub fn filter(fleet: &Name) -> String {
    format!("crossdock/v1/{fleet}/+/{}", Way::Up.as_str())
}

/// A topic that no node may read: one that can shows that the broker has no rules.
#[must_use]
pub fn canary(fleet: &Name) -> String {
    format!("crossdock/v1/{fleet}/_canary/{}", Way::Down.as_str())
}

/// Whose a topic is, if it is one of a fleet and goes that way.
#[must_use]
pub fn node_of(topic: &str, fleet: &Name, way: Way) -> Option<Name> {
    let mut levels = topic.strip_prefix("crossdock/v1/")?.split('/');
    let fits = levels.next() == Some(fleet.as_str());
    let node = levels.next()?;
    let fits = fits && levels.next() == Some(way.as_str()) && levels.next().is_none();
    if fits { node.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_both_ways_and_no_other_is_taken_for_one() {
        let behind = Behind { broker: 3, node: hash("box-1") };
        assert_eq!(Behind::of(behind.address()), Some(behind));
        assert_ne!(behind.address().ip(), Behind { node: hash("box-2"), ..behind }.address().ip());
        assert_eq!(behind.address().to_string(), "[fd63:7264:6b00:3:96fb:257c:5fbb:68bc]:7443");
        for other in ["10.0.0.1:7443", "[fd63:7264:6b01::1]:1", "[::1]:7443"] {
            assert_eq!(Behind::of(other.parse().unwrap()), None, "{other}");
        }
        assert_eq!(Behind::of(hub()), None);
    }

    #[test]
    fn a_topic_is_a_nodes_of_one_fleet_and_goes_one_way() {
        let (fleet, node): (Name, Name) = ("hz".parse().unwrap(), "box-1".parse().unwrap());
        assert_eq!(topic(&fleet, &node, Way::Up), "crossdock/v1/hz/box-1/up");
        assert_eq!(filter(&fleet), "crossdock/v1/hz/+/up");
        assert_eq!(node_of("crossdock/v1/hz/box-1/up", &fleet, Way::Up), Some(node));
        for other in [
            "crossdock/v1/hz/box-1/down",
            "crossdock/v1/sh/box-1/up",
            "crossdock/v1/hz/box-1/up/x",
            "crossdock/v1/hz/Box 1/up",
            "crossdock/v1/hz//up",
            "crossdock/v2/hz/box-1/up",
            "",
        ] {
            assert_eq!(node_of(other, &fleet, Way::Up), None, "{other}");
        }
    }
}

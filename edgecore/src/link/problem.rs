//! Why there is no session with the hub, told apart, each with its mend.

use proto::link::CloseCode;
use quinn::{ConnectionError, TransportErrorCode};
use serde::{Deserialize, Serialize};

/// Why the link is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One word for programs: `Unreachable`, `WrongCa`, `WrongProtocol`, `NotAdmitted`, `ClockWrong`,
    /// `Replaced`, `GoingAway`, `Renew`, `Lost`, `Refused`, `Local`.
    pub reason: String,
    /// For people, with what to do.
    pub message: String,
}

/// Reason of a hub that does not know the key.
pub(crate) const NOT_ADMITTED: &str = "NotAdmitted";

/// Reason of a session that ended so that the certificate is renewed.
pub(crate) const RENEW: &str = "Renew";

/// QUIC carries TLS alerts as `0x100 + alert` (RFC 9001, section 4.8).
const CRYPTO: u64 = 0x100;
const ALERT_EXPIRED: u64 = 45;
const ALERT_NO_PROTOCOL: u64 = 120;
/// Alerts about a certificate: bad, unsupported, revoked, expired, unknown; CA unknown, access denied, certificate
/// required (RFC 8446, section 6).
const ALERTS_CERTIFICATE: [u64; 8] = [42, 43, 44, 45, 46, 48, 49, 116];

impl Problem {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Problem {
        Problem { reason: reason.into(), message: message.into() }
    }

    pub(crate) fn unreachable(hub: &str, detail: impl std::fmt::Display) -> Problem {
        let message = format!(
            "hub {hub} does not answer ({detail}): check the address, that UDP goes out to its port, and that the hub runs"
        );
        Problem::new("Unreachable", message)
    }

    /// What ended, or prevented, a connection to `hub`. `established`: it was one.
    pub(crate) fn of(error: &ConnectionError, hub: &str, established: bool) -> Problem {
        if let Some(code) = CloseCode::of(error) {
            return Problem::closed(code, hub);
        }
        match error {
            ConnectionError::VersionMismatch => Problem::protocol(hub),
            ConnectionError::TransportError(e) => Problem::alert(e.code, hub, &e.reason, true),
            ConnectionError::ConnectionClosed(e) => {
                Problem::alert(e.error_code, hub, &String::from_utf8_lossy(&e.reason), false)
            }
            ConnectionError::TimedOut if !established => Problem::unreachable(hub, "no answer in time"),
            other => Problem::new("Lost", format!("the connection to {hub} was lost ({other}); trying again")),
        }
    }

    fn closed(code: CloseCode, hub: &str) -> Problem {
        match code {
            CloseCode::NotAdmitted => Problem::new(
                NOT_ADMITTED,
                format!(
                    "hub {hub} does not admit this node: its key is not, or no longer, on the hub's list, \
                     or waits for approval (crossdock node approve). \
                     If that is unexpected, run `edgecore join HUB --token TOKEN` with a token for this node"
                ),
            ),
            CloseCode::Replaced => Problem::new(
                "Replaced",
                "another connection with this node's key took this one's place; if it goes on, \
                 the data folder was copied to another box: join that one with a token of its own",
            ),
            CloseCode::GoingAway => Problem::new("GoingAway", format!("hub {hub} is shutting down; trying again")),
            CloseCode::Overload => Problem::new("Refused", format!("hub {hub} is overloaded; trying again")),
            CloseCode::ProtocolError => Problem::new(
                "WrongProtocol",
                format!(
                    "hub {hub} did not understand this agent (version {}); upgrade the older of the two",
                    proto::VERSION
                ),
            ),
            CloseCode::Renew => Problem::new(
                RENEW,
                format!("hub {hub} wants this node's certificate to be renewed; it is asked for now"),
            ),
            CloseCode::Done => Problem::new("Lost", format!("hub {hub} ended the session; trying again")),
        }
    }

    fn protocol(hub: &str) -> Problem {
        let message = format!(
            "hub {hub} speaks no protocol version of this agent (version {}): upgrade the older of the two, \
             or check that the address is the hub's link port",
            proto::VERSION
        );
        Problem::new("WrongProtocol", message)
    }

    fn alert(code: TransportErrorCode, hub: &str, reason: &str, ours: bool) -> Problem {
        let code = u64::from(code);
        let alert = code.checked_sub(CRYPTO).filter(|a| *a < 0x100);
        match alert {
            Some(ALERT_NO_PROTOCOL) => Problem::protocol(hub),
            Some(ALERT_EXPIRED) => {
                let whose = if ours { "the hub's certificate is" } else { "the hub found this node's certificate" };
                let message = format!(
                    "{whose} expired or not valid yet: check the clock of this box and of hub {hub}; \
                     if the clocks are right, renew the certificate (`edgecore join` again for this node's)"
                );
                Problem::new("ClockWrong", message)
            }
            // Another CA of the same name shows as a bad signature: no alert of ours tells more than this.
            Some(_) if ours => Problem::new(
                "WrongCa",
                format!(
                    "{hub} is not this fleet's hub: its certificate is signed by another CA ({reason}). Check the \
                     address; if the hub was set up anew, run `edgecore join HUB --token TOKEN` with a new token"
                ),
            ),
            Some(alert) if !ours && ALERTS_CERTIFICATE.contains(&alert) => Problem::closed(CloseCode::NotAdmitted, hub),
            _ => Problem::new("Refused", format!("hub {hub} ended the connection (code {code:#x}: {reason})")),
        }
    }
}

//! How an MQTT broker is reached: address, transport, TLS, login, proxy. One form of it for hub and agent,
//! for the link's carrier and for the records of a house's broker.
//!
//! [`Broker`] is what somebody configured, [`Broker::options`] what rumqttc makes a connection of. Files are
//! read for every connection, so that what was mended is found.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use rumqttc::{MqttOptions, Proxy as HttpProxy, ProxyAuth, ProxyType, TlsConfiguration, Transport};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use crate::{
    carrier::frame::{MAX_SEGMENTS, WEB_SEGMENTS},
    env::WallClock,
    identity::{TlsClock, crypto_provider},
};

/// How bytes go to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TCP.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Scheme::Mqtt => "mqtt",
            Scheme::Mqtts => "mqtts",
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        }
    }

    /// Whether it is TLS.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Mqtts | Scheme::Wss)
    }
}

/// Where a broker listens: `mqtt://HOST:1883`, `mqtts://HOST:8883`, `ws://HOST:80/mqtt`, `wss://HOST:443/mqtt`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    /// How bytes go there.
    pub scheme: Scheme,
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What a WebSocket asks for; otherwise empty.
    pub path: String,
}

/// A text is no broker's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no broker: write it as mqtt://HOST:1883, mqtts://HOST:8883, ws://HOST:80/mqtt or wss://HOST:443/mqtt"
)]
pub struct UrlError(String);

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<BrokerUrl, UrlError> {
        // What stands before an '@' may be a password: it is not repeated.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let wrong = || UrlError(shown.chars().take(200).collect());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (scheme, default_port) = match scheme {
            "mqtt" | "tcp" => (Scheme::Mqtt, 1883),
            "mqtts" | "ssl" => (Scheme::Mqtts, 8883),
            "ws" => (Scheme::Ws, 80),
            "wss" => (Scheme::Wss, 443),
            _ => return Err(wrong()),
        };
        let (place, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = place_of(place, default_port).ok_or_else(wrong)?;
        let web = matches!(scheme, Scheme::Ws | Scheme::Wss);
        let plain_path = path.chars().all(|c| c.is_ascii_graphic());
        if !plain_path || (!web && !matches!(path, "" | "/")) {
            return Err(wrong());
        }
        let path = match (web, path) {
            (false, _) => "",
            (true, "" | "/") => "/mqtt",
            (true, path) => path,
        };
        Ok(BrokerUrl { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// Host and port.
fn place_of(text: &str, default_port: u16) -> Option<(&str, u16)> {
    let (host, port) = match text.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':')?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (!host.is_empty() && port != 0 && host.chars().all(plain)).then_some((host, port))
}

impl TryFrom<String> for BrokerUrl {
    type Error = UrlError;
    fn try_from(text: String) -> Result<BrokerUrl, UrlError> {
        text.parse()
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{}://{host}:{}{}", self.scheme.as_str(), self.port, self.path)
    }
}

impl Serialize for BrokerUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An HTTP proxy that lets connections out (CONNECT, RFC 9110): `http://HOST:3128`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ProxyUrl {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for ProxyUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ProxyUrl, String> {
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let wrong = || {
            let shown: String = shown.chars().take(200).collect();
            format!("{shown:?} is no proxy: write it as http://HOST:3128, and its user and password apart")
        };
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, port) = place_of(rest.strip_suffix('/').unwrap_or(rest), 3128).ok_or_else(wrong)?;
        Ok(ProxyUrl { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for ProxyUrl {
    type Error = String;
    fn try_from(text: String) -> Result<ProxyUrl, String> {
        text.parse()
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "http://{host}:{}", self.port)
    }
}

impl Serialize for ProxyUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A broker and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Broker {
    /// Where it listens.
    pub url: BrokerUrl,
    /// User there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Holds that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Certificates (PEM) of the authority that the broker's is signed by; with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Certificate (PEM) that is shown to the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Proxy that lets the connection out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyUrl>,
    /// User at the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_user: Option<String>,
    /// Holds that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_password_file: Option<PathBuf>,
}

/// Two settings of a broker contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The setting that is wrong, as the agent's file writes it.
    pub key: &'static str,
    /// What is wrong and how to mend it.
    pub problem: &'static str,
}

impl Broker {
    /// A broker that asks for nothing.
    #[must_use]
    pub fn at(url: BrokerUrl) -> Broker {
        Broker {
            url,
            user: None,
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
            proxy: None,
            proxy_user: None,
            proxy_password_file: None,
        }
    }

    /// Datagrams that one message through it should hold at most.
    ///
    /// Over WebSocket few. Mosquitto hands a WebSocket client 4 KiB of a message, and more of it a turn of its main
    /// loop later: 100 ms, while nothing else happens there. Messages of ten datagrams came at 40 to 60 kB/s, of two
    /// at 17 MB/s.
    #[must_use]
    pub fn segments(&self) -> usize {
        match self.url.scheme {
            Scheme::Mqtt | Scheme::Mqtts => MAX_SEGMENTS,
            Scheme::Ws | Scheme::Wss => WEB_SEGMENTS,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), Contradiction> {
        let tls = self.url.scheme.is_tls();
        let found = [
            (
                self.user.is_some() && self.password_file.is_none(),
                "user",
                "a user needs a password: set password-file too",
            ),
            (
                self.user.is_none() && self.password_file.is_some(),
                "password-file",
                "a password needs a user: set user too",
            ),
            (
                tls != self.ca.is_some(),
                "ca",
                "ca and a url with TLS (mqtts://, wss://) belong together: give both, or neither with mqtt:// or \
                 ws://; where a public authority signed, ca is the system's /etc/ssl/certs/ca-certificates.crt",
            ),
            (
                self.certificate.is_some() != self.key.is_some(),
                "certificate",
                "certificate and key belong together: give both, or neither",
            ),
            (
                self.certificate.is_some() && !tls,
                "certificate",
                "a certificate is shown over TLS alone: mqtts:// or wss://",
            ),
            (
                self.proxy.is_none() && (self.proxy_user.is_some() || self.proxy_password_file.is_some()),
                "proxy-user",
                "a proxy's user needs a proxy: set proxy too",
            ),
            (
                self.proxy_user.is_some() != self.proxy_password_file.is_some(),
                "proxy-user",
                "proxy-user and proxy-password-file belong together: give both, or neither",
            ),
        ];
        match found.into_iter().find(|(wrong, ..)| *wrong) {
            Some((_, key, problem)) => Err(Contradiction { key, problem }),
            None => Ok(()),
        }
    }

    /// What a connection is made of. Blocks: it reads files, those with relative paths in `folder`.
    ///
    /// # Errors
    /// Which file cannot be used, why, and how to mend it.
    pub fn options(&self, client_id: &str, folder: &Path, clock: Arc<dyn WallClock>) -> Result<MqttOptions, String> {
        let web = !self.url.path.is_empty();
        let host = if web { self.url.to_string() } else { self.url.host.clone() };
        let mut options = MqttOptions::new(client_id, host, self.url.port);
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            options.set_credentials(user, read_password(&folder.join(file))?);
        }
        let tls = || Ok::<_, String>(TlsConfiguration::Rustls(Arc::new(self.tls(folder, clock)?)));
        options.set_transport(match self.url.scheme {
            Scheme::Mqtt => Transport::Tcp,
            Scheme::Ws => Transport::Ws,
            Scheme::Mqtts => Transport::tls_with_config(tls()?),
            Scheme::Wss => Transport::wss_with_config(tls()?),
        });
        if let Some(proxy) = &self.proxy {
            let auth = match (&self.proxy_user, &self.proxy_password_file) {
                (Some(user), Some(file)) => {
                    ProxyAuth::Basic { username: user.clone(), password: read_password(&folder.join(file))? }
                }
                _ => ProxyAuth::None,
            };
            options.set_proxy(HttpProxy { ty: ProxyType::Http, auth, addr: proxy.host.clone(), port: proxy.port });
        }
        Ok(options)
    }

    fn tls(&self, folder: &Path, clock: Arc<dyn WallClock>) -> Result<rustls::ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            let path = folder.join(ca);
            for certificate in certificates(&path)? {
                roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        let builder = rustls::ClientConfig::builder_with_details(crypto_provider(), Arc::new(TlsClock(clock)))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("could not set TLS up: {e}"))?
            .with_root_certificates(roots);
        let (Some(chain), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(builder.with_no_client_auth());
        };
        let key = folder.join(key);
        let wrong = |e: &dyn fmt::Display| format!("{} holds no usable private key: {e}", key.display());
        let secret = PrivateKeyDer::from_pem_file(&key).map_err(|e| wrong(&e))?;
        builder.with_client_auth_cert(certificates(&folder.join(chain))?, secret).map_err(|e| wrong(&e))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |problem: &dyn fmt::Display| format!("{} holds no certificates: {problem}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(&e))?;
    if found.is_empty() { Err(wrong(&"it is empty")) } else { Ok(found) }
}

/// The password in a file, without the line end after it.
///
/// # Errors
/// When it cannot be read or is empty; with the mend.
pub fn read_password(file: &Path) -> Result<String, String> {
    let mend = "write the password into it, readable for this program's user only";
    let text = fs::read_to_string(file).map_err(|e| format!("could not read {}: {e}; {mend}", file.display()))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(format!("{} is empty: {mend}", file.display()));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;

    #[test]
    fn urls_go_both_ways_and_wrong_ones_are_told_without_their_password() {
        for (given, shown) in [
            ("mqtt://h", "mqtt://h:1883"),
            ("tcp://h:1/", "mqtt://h:1"),
            ("mqtts://h.example", "mqtts://h.example:8883"),
            ("ws://[::1]", "ws://[::1]:80/mqtt"),
            ("wss://h:8443/a/b?c", "wss://h:8443/a/b?c"),
        ] {
            let url: BrokerUrl = given.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse::<BrokerUrl>().unwrap(), url);
        }
        for given in [
            "h:1883",
            "http://h",
            "mqtt://",
            "mqtt://h:0",
            "mqtt://h:x",
            "mqtt://h/topic",
            "ws://h/ b",
            "mqtt://u:secret@h",
        ] {
            let error = given.parse::<BrokerUrl>().unwrap_err().to_string();
            assert!(error.contains("mqtts://HOST:8883") && !error.contains("secret"), "{error}");
        }
        assert_eq!("http://p:8080/".parse::<ProxyUrl>().unwrap().to_string(), "http://p:8080");
        for given in ["p:1", "https://p", "http://u:secret@p"] {
            let error = given.parse::<ProxyUrl>().unwrap_err();
            assert!(error.contains("http://HOST:3128") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_belongs_together_is_given_together() {
        let at = |url: &str| Broker::at(url.parse().unwrap());
        let file = || Some(PathBuf::from("f"));
        assert_eq!(at("mqtt://h").check(), Ok(()));
        let key = |broker: Broker| broker.check().unwrap_err().key;
        assert_eq!(key(at("mqtts://h")), "ca");
        assert_eq!(key(Broker { ca: file(), ..at("ws://h") }), "ca");
        assert_eq!(key(Broker { user: Some("u".into()), ..at("mqtt://h") }), "user");
        assert_eq!(key(Broker { password_file: file(), ..at("mqtt://h") }), "password-file");
        assert_eq!(key(Broker { certificate: file(), ..at("mqtt://h") }), "certificate");
        assert_eq!(key(Broker { certificate: file(), key: file(), ..at("mqtt://h") }), "certificate");
        assert_eq!(key(Broker { proxy_user: Some("u".into()), ..at("mqtt://h") }), "proxy-user");
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("empty"), "\n").unwrap();
        let clock = || Arc::new(SystemClock);
        let options = |b: Broker| b.options("id", folder.path(), clock()).map(drop).unwrap_err();
        let at = |url: &str| Broker::at(url.parse().unwrap());
        let login = Broker { user: Some("u".into()), password_file: Some("empty".into()), ..at("mqtt://h") };
        assert!(options(login).contains("empty is empty: write the password"));
        for file in ["empty", "none"] {
            let error = options(Broker { ca: Some(file.into()), ..at("mqtts://h") });
            assert!(error.contains(file) && error.contains("no certificates"), "{error}");
        }
        assert!(at("ws://h/x").options("id", folder.path(), clock()).is_ok());
    }
}

//! A signed token (JWT, RFC 7519, in the compact form of RFC 7515), as OpenID Connect's ID tokens are: strict, and no
//! more of it than they need. Pure: keys and time are handed in.
//!
//! Verified by `ring`, which is here for TLS already. The libraries for such tokens would bring a second cryptography
//! along, and their RSA (crate `rsa`) leaks by its timing.
//!
//! 1. Three parts, base64url without padding, within bounds.
//! 2. The algorithm is one of three, and what the key is for: never what the token alone says. `none` and keyed hashes
//!    are not among them. Nothing that is declared critical is understood.
//! 3. The signature, by the key that the token names, or by any that fits where it names none.
//! 4. Issuer to the letter, audience, end, beginning, with a minute of leeway for clocks.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::plain;

/// Longest token looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
/// How far clocks may differ.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// Least bits of an RSA key.
const MIN_RSA_BYTES: usize = 2048 / 8;

/// Ways to sign that are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// A key of the provider.
#[derive(Clone)]
pub struct Key {
    /// Its name.
    pub id: Option<String>,
    /// What it is for.
    pub algorithm: Algorithm,
    material: Material,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.algorithm, self.id)
    }
}

#[derive(Clone)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Point(Vec<u8>),
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not such a token.
    #[error("it is no signed token")]
    Form,
    /// Signed in another way.
    #[error("it is signed with {0:?}; RS256, ES256 and EdDSA are believed")]
    Algorithm(String),
    /// Signed with a key that the provider does not show.
    #[error("the provider has no such key")]
    UnknownKey,
    /// Not what was signed.
    #[error("its signature is wrong")]
    Signature,
    /// Of somebody else, for something else, or too late.
    #[error("{0}")]
    Claim(String),
}

/// What a token says, and was verified to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Its end.
    pub until: Timestamp,
    /// All of it.
    pub all: Value,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// Whether a text looks like such a token; tokens of the hub have one dot.
#[must_use]
pub fn is_one(token: &str) -> bool {
    token.split('.').count() == 3
}

fn decode(text: &str) -> Result<Vec<u8>, Refused> {
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Refused::Form)
}

/// Verifies a token of `issuer` for `audience`.
///
/// # Errors
/// Says why it lets nobody in.
pub fn verify(token: &str, keys: &[Key], issuer: &str, audience: &str, now: Timestamp) -> Result<Claims, Refused> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refused::Form);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Form)?;
    let (header, payload) = signed.split_once('.').ok_or(Refused::Form)?;
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Refused::Form)?;
    let (payload, signature) = (decode(payload)?, decode(signature)?);
    if header.crit.is_some() {
        return Err(Refused::Form);
    }
    let algorithm = match header.alg.as_str() {
        "RS256" => Algorithm::Rs256,
        "ES256" => Algorithm::Es256,
        "EdDSA" => Algorithm::EdDsa,
        other => return Err(Refused::Algorithm(other.chars().take(20).collect())),
    };
    let fits = |key: &&Key| key.algorithm == algorithm && (header.kid.is_none() || key.id == header.kid);
    let mut keys = keys.iter().filter(fits).peekable();
    if keys.peek().is_none() {
        return Err(Refused::UnknownKey);
    }
    if !keys.any(|key| key.verifies(signed.as_bytes(), &signature)) {
        return Err(Refused::Signature);
    }
    let all: Value = plain::read(&payload).map_err(|_| Refused::Form)?;
    let until = check(&all, issuer, audience, now)?;
    Ok(Claims { until, all })
}

fn check(all: &Value, issuer: &str, audience: &str, now: Timestamp) -> Result<Timestamp, Refused> {
    let claim = |text: String| Err(Refused::Claim(text));
    if all.get("iss").and_then(Value::as_str) != Some(issuer) {
        return claim("another provider made it".into());
    }
    let is_for_us = match all.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(many)) => many.iter().any(|one| one == audience),
        _ => false,
    };
    // Where it is for several, it must have been made for us.
    let party = all.get("azp").map(|party| party == audience);
    let several = all.get("aud").and_then(Value::as_array).is_some_and(|many| many.len() > 1);
    if !is_for_us || party == Some(false) || (several && party.is_none()) {
        return claim(format!("it is not for {audience}; see clientId of oidc in hub.yaml"));
    }
    let time = |name: &str| all.get(name).map(|value| value.as_f64().and_then(moment).ok_or(Refused::Form)).transpose();
    let Some(until) = time("exp")? else { return claim("it has no end".into()) };
    if until.saturating_add(LEEWAY).unwrap_or(until) <= now {
        return claim(format!("it ended at {until}; log in again: crossdock login --oidc"));
    }
    for begin in ["nbf", "iat"] {
        if time(begin)?.is_some_and(|from| from > now.saturating_add(LEEWAY).unwrap_or(now)) {
            return claim("it is not valid yet; compare the clocks of the hub and of the provider".into());
        }
    }
    Ok(until)
}

#[allow(clippy::cast_possible_truncation)] // a float becomes the nearest number that there is
fn moment(seconds: f64) -> Option<Timestamp> {
    seconds.is_finite().then(|| Timestamp::from_second(seconds as i64).ok())?
}

impl Key {
    /// Reads a key of a set (RFC 7517); `None`: not one that signs in a way that is believed.
    #[must_use]
    pub fn read(jwk: &Value) -> Option<Key> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |name: &str| BASE64URL_NOPAD.decode(text(name)?.as_bytes()).ok();
        let (algorithm, name, material) = match (text("kty")?, text("crv")) {
            ("RSA", _) => (Algorithm::Rs256, "RS256", Material::Rsa { n: bytes("n")?, e: bytes("e")? }),
            ("EC", Some("P-256")) => {
                let point = [vec![4], bytes("x")?, bytes("y")?].concat();
                (Algorithm::Es256, "ES256", Material::Point(point))
            }
            ("OKP", Some("Ed25519")) => (Algorithm::EdDsa, "EdDSA", Material::Point(bytes("x")?)),
            _ => return None,
        };
        let is_weak = matches!(&material, Material::Rsa { n, .. } if n.len() < MIN_RSA_BYTES);
        if is_weak || text("alg").is_some_and(|alg| alg != name && alg != "Ed25519") {
            return None;
        }
        Some(Key { id: text("kid").map(str::to_owned), algorithm, material })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, self.algorithm) {
            (Material::Rsa { n, e }, _) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            (Material::Point(point), Algorithm::Es256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            (Material::Point(point), _) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature).is_ok()
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    /// A provider's own key, and what it shows of it.
    pub(crate) fn ed25519(seed: u8, id: &str) -> (Ed25519KeyPair, Value) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let x = BASE64URL_NOPAD.encode(pair.public_key().as_ref());
        (pair, json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": x, "use": "sig", "alg": "EdDSA"}))
    }

    pub(crate) fn sign(header: &Value, claims: &Value, with: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = BASE64URL_NOPAD.encode(&with(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn claims() -> Value {
        json!({"iss": "https://id", "aud": "me", "sub": "a", "exp": 1_800_000_100, "iat": 1_800_000_000})
    }

    fn judge(token: &str, keys: &[Value]) -> Result<Claims, Refused> {
        let keys: Vec<Key> = keys.iter().filter_map(Key::read).collect();
        verify(token, &keys, "https://id", "me", now())
    }

    #[test]
    fn a_token_is_believed_for_its_signature_alone() {
        let (pair, shown) = ed25519(1, "k1");
        let (other, _) = ed25519(2, "k1");
        let header = json!({"alg": "EdDSA", "kid": "k1"});
        let good = sign(&header, &claims(), |m| pair.sign(m).as_ref().to_vec());
        assert_eq!(judge(&good, std::slice::from_ref(&shown)).unwrap().all["sub"], "a");
        let no_kid = sign(&json!({"alg": "EdDSA"}), &claims(), |m| pair.sign(m).as_ref().to_vec());
        assert!(judge(&no_kid, &[ed25519(2, "k2").1, shown.clone()]).is_ok());
        let forged = sign(&header, &claims(), |m| other.sign(m).as_ref().to_vec());
        assert_eq!(judge(&forged, std::slice::from_ref(&shown)), Err(Refused::Signature));
        assert_eq!(judge(&good, &[]), Err(Refused::UnknownKey));
        assert_eq!(judge(&good, &[ed25519(1, "k2").1]), Err(Refused::UnknownKey));
        for at in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            if changed != good.as_bytes() {
                let token = String::from_utf8(changed).unwrap();
                assert!(judge(&token, std::slice::from_ref(&shown)).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn the_ways_that_such_tokens_are_forged_do_not_work() {
        let (pair, shown) = ed25519(1, "k1");
        let public = pair.public_key().as_ref().to_vec();
        let none = sign(&json!({"alg": "none"}), &claims(), |_| vec![]);
        assert_eq!(judge(&none, std::slice::from_ref(&shown)), Err(Refused::Algorithm("none".into())));
        // The public key as the secret of a keyed hash.
        let keyed = sign(&json!({"alg": "HS256", "kid": "k1"}), &claims(), |m| {
            ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public), m).as_ref().to_vec()
        });
        assert_eq!(judge(&keyed, std::slice::from_ref(&shown)), Err(Refused::Algorithm("HS256".into())));
        // A key is for its own algorithm, whatever the token says; keys in the header are not looked at.
        let confused = sign(&json!({"alg": "ES256", "kid": "k1"}), &claims(), |m| pair.sign(m).as_ref().to_vec());
        assert_eq!(judge(&confused, std::slice::from_ref(&shown)), Err(Refused::UnknownKey));
        let (mine, own) = ed25519(9, "k9");
        let own = sign(&json!({"alg": "EdDSA", "jwk": own}), &claims(), |m| mine.sign(m).as_ref().to_vec());
        assert_eq!(judge(&own, std::slice::from_ref(&shown)), Err(Refused::Signature));
        let critical = json!({"alg": "EdDSA", "crit": ["b64"], "b64": false});
        let critical = sign(&critical, &claims(), |m| pair.sign(m).as_ref().to_vec());
        assert_eq!(judge(&critical, std::slice::from_ref(&shown)), Err(Refused::Form));
        for bad in ["", "..", "a.b.c", "e30.e30.", &"x".repeat(MAX_TOKEN_BYTES + 1), "e30.e30.e30.e30"] {
            assert!(judge(bad, std::slice::from_ref(&shown)).is_err(), "{bad}");
        }
        let key = |change: &dyn Fn(&mut Value)| {
            let mut key = shown.clone();
            change(&mut key);
            Key::read(&key).is_some()
        };
        assert!(!key(&|k| k["use"] = json!("enc")) && !key(&|k| k["alg"] = json!("RS256")));
        let weak = json!({"kty": "RSA", "n": BASE64URL_NOPAD.encode(&[255; 128]), "e": "AQAB"});
        assert!(Key::read(&weak).is_none() && Key::read(&json!({"kty": "oct", "k": "AAAA"})).is_none());
    }

    #[test]
    fn claims_are_for_us_and_for_now() {
        let (pair, shown) = ed25519(1, "k1");
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            let token = sign(&json!({"alg": "EdDSA"}), &claims, |m| pair.sign(m).as_ref().to_vec());
            judge(&token, std::slice::from_ref(&shown)).is_ok()
        };
        for (name, value, good) in [
            ("iss", json!("https://id/"), false),
            ("iss", json!(null), false),
            ("aud", json!(["me"]), true),
            ("aud", json!(["me", "you"]), false),
            ("aud", json!("you"), false),
            ("aud", json!(null), false),
            ("azp", json!("me"), true),
            ("azp", json!("you"), false),
            ("exp", json!(1_799_999_941), true),
            ("exp", json!(1_799_999_940), false),
            ("exp", json!("1800000100"), false),
            ("exp", json!(null), false),
            ("exp", json!(1e300), false),
            ("nbf", json!(1_800_000_060), true),
            ("nbf", json!(1_800_000_061), false),
            ("iat", json!(1_800_000_061), false),
        ] {
            assert_eq!(with(name, value.clone()), good, "{name} {value}");
        }
    }

    #[test]
    fn ecdsa_is_verified() {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| BASE64URL_NOPAD.encode(half));
        let shown = json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": x, "y": y});
        let header = json!({"alg": "ES256", "kid": "e"});
        let token = sign(&header, &claims(), |m| pair.sign(&random, m).unwrap().as_ref().to_vec());
        assert!(judge(&token, std::slice::from_ref(&shown)).is_ok());
        let zero = sign(&header, &claims(), |_| vec![0; 64]);
        assert_eq!(judge(&zero, std::slice::from_ref(&shown)), Err(Refused::Signature));
    }
}

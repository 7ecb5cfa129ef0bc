//! Keys on a token (a smart card, an HSM) through PKCS#11: `pkcs11:token=NAME;object=LABEL`.
//!
//! The module is a library of the token's maker, loaded when a key is asked for and not before: the URI's
//! `module-path`, else `CROSSDOCK_PKCS11_MODULE`. It runs in this process, so it is trusted as this program is. The PIN
//! comes from where passphrases come from. Ed25519 keys alone (`CKM_EDDSA`).

use std::{fmt, path::PathBuf};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use data_encoding::HEXLOWER;
use proto::tuf::{PublicKey, Signer, SignerError, key::short};

use crate::release::{ReleaseError, keys::AskPassphrase};

/// Variable that names the module.
const MODULE: &str = "CROSSDOCK_PKCS11_MODULE";

/// Which key on which token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRef {
    /// As it was written.
    text: String,
    token: Option<String>,
    object: Option<String>,
    module: Option<PathBuf>,
}

impl TokenRef {
    /// Reads what stands after `pkcs11:` (RFC 7512); of its attributes `token`, `object` and `module-path` count.
    ///
    /// # Errors
    /// When it names no object, or another attribute, or is no such URI.
    pub fn parse(rest: &str) -> Result<TokenRef, String> {
        let mut found = TokenRef { text: format!("pkcs11:{rest}"), ..TokenRef::default() };
        for part in rest.split([';', '?', '&']).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no '='"))?;
            let value = unescape(value)?;
            match name {
                "token" => found.token = Some(value),
                "object" => found.object = Some(value),
                "module-path" => found.module = Some(value.into()),
                other => {
                    let problem =
                        "is not understood; write pkcs11:token=NAME;object=LABEL, and module-path for the library";
                    return Err(format!("its attribute {other:?} {problem}"));
                }
            }
        }
        if found.object.is_none() {
            return Err("it names no object; write pkcs11:token=NAME;object=LABEL".into());
        }
        Ok(found)
    }

    fn refuse(&self, problem: impl fmt::Display) -> ReleaseError {
        ReleaseError::Token { key: self.text.clone(), problem: problem.to_string() }
    }

    /// A session with the token, not logged in yet.
    fn session(&self) -> Result<Session, ReleaseError> {
        let from_env = || std::env::var_os(MODULE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let module = self.module.clone().or_else(from_env);
        let module = module.ok_or_else(|| {
            self.refuse(format!(
                "which library speaks to it is not known; set {MODULE}, such as to /usr/lib/softhsm/libsofthsm2.so"
            ))
        })?;
        let failed = |e: Error| self.refuse(format!("{}: {e}", module.display()));
        let library = Pkcs11::new(&module).map_err(failed)?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failed(error)),
        }
        let mut labels = vec![];
        for slot in library.get_slots_with_initialized_token().map_err(failed)? {
            let label = library.get_token_info(slot).map_err(failed)?.label().trim_end().to_owned();
            if self.token.as_ref().is_none_or(|token| *token == label) {
                return library.open_ro_session(slot).map_err(failed);
            }
            labels.push(format!("{label:?}"));
        }
        let there = if labels.is_empty() { "no token at all".into() } else { labels.join(", ") };
        Err(self.refuse(format!("no such token is there (there is {there}); plug it in, or correct its name")))
    }

    fn find(&self, session: &Session, class: ObjectClass) -> Result<ObjectHandle, ReleaseError> {
        let label = self.object.clone().unwrap_or_default();
        let wanted = [Attribute::Class(class), Attribute::KeyType(KeyType::EC_EDWARDS), Attribute::Label(label.into())];
        match session.find_objects(&wanted).map_err(|e| self.refuse(e))?.as_slice() {
            [one] => Ok(*one),
            [] => Err(self.refuse(format!("it holds no ed25519 {class} of that label"))),
            _ => Err(self.refuse(format!("it holds several of that label as {class}; give each a label of its own"))),
        }
    }

    fn public_of(&self, session: &Session) -> Result<PublicKey, ReleaseError> {
        let object = self.find(session, ObjectClass::PUBLIC_KEY)?;
        let attributes = session.get_attributes(object, &[AttributeType::EcPoint]).map_err(|e| self.refuse(e))?;
        let point = attributes.iter().find_map(|attribute| match attribute {
            // Some write the point bare, some as DER's OCTET STRING.
            Attribute::EcPoint(bytes) => bytes.strip_prefix(&[4, 32]).unwrap_or(bytes).try_into().ok(),
            _ => None,
        });
        let point: [u8; 32] = point.ok_or_else(|| self.refuse("its public half is not that of an ed25519 key"))?;
        let key = PublicKey::from_bytes(&point).map_err(|e| self.refuse(e))?;
        Ok(key.named(self.object.as_deref().unwrap_or_default()))
    }

    /// The public half. Needs no PIN.
    ///
    /// # Errors
    /// When library, token or key are not there.
    pub fn public(&self) -> Result<PublicKey, ReleaseError> {
        self.public_of(&self.session()?)
    }

    /// The key, ready to sign.
    ///
    /// # Errors
    /// As [`TokenRef::public`], and when its PIN is not to be had or wrong.
    pub fn signer(&self, ask: &mut dyn AskPassphrase) -> Result<TokenKey, ReleaseError> {
        let session = self.session()?;
        let public = self.public_of(&session)?;
        // Once and no more: a token locks itself for good after a few wrong ones.
        let pin = AuthPin::new(ask.ask(self.text.as_ref(), false)?.as_str().into());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Error::Pkcs11(RvError::PinIncorrect, _)) => {
                return Err(
                    self.refuse("the PIN is wrong; tokens lock themselves after a few tries, so it was tried once")
                );
            }
            Err(error) => return Err(self.refuse(error)),
        }
        let key = self.find(&session, ObjectClass::PRIVATE_KEY)?;
        Ok(TokenKey { session, key, public })
    }
}

impl fmt::Display for TokenRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A key on a token, logged in.
#[derive(Debug)]
pub struct TokenKey {
    session: Session,
    key: ObjectHandle,
    public: PublicKey,
}

impl Signer for TokenKey {
    fn public_key(&self) -> PublicKey {
        self.public.clone()
    }

    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
        let signature = self.session.sign(&mechanism, self.key, message);
        let problem =
            |e: Error| SignerError { key: short(&self.public.id()), problem: format!("its token refuses: {e}") };
        Ok(HEXLOWER.encode(&signature.map_err(problem)?))
    }
}

/// `%20` and the like.
fn unescape(text: &str) -> Result<String, String> {
    let (mut bytes, mut rest) = (vec![], text.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.next().zip(rest.next()).map(|(a, b)| [a.to_ascii_lowercase(), b.to_ascii_lowercase()]);
        let decoded = digits.and_then(|digits| HEXLOWER.decode(&digits).ok());
        bytes.extend(decoded.ok_or_else(|| format!("{text:?} holds a '%' without two hex digits after it"))?);
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_token_object_and_module() {
        let read = TokenRef::parse("token=cross%20dock;object=ann?module-path=/lib/x.so").unwrap();
        assert_eq!((read.token.as_deref(), read.object.as_deref()), (Some("cross dock"), Some("ann")));
        assert_eq!((read.module.as_deref(), read.to_string()), (Some("/lib/x.so".as_ref()), read.text.clone()));
        for (bad, why) in [
            ("", "no object"),
            ("token=a", "no object"),
            ("object", "no '='"),
            ("object=a;pin-value=1", "not understood"),
            ("object=%4", "two hex digits"),
            ("object=%zz", "two hex digits"),
            ("object=%ff", "no text"),
        ] {
            assert!(TokenRef::parse(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn a_module_that_is_none_is_named() {
        let key = TokenRef::parse("object=ann?module-path=/nonexistent.so").unwrap();
        let error = key.public().unwrap_err().to_string();
        assert!(error.contains("/nonexistent.so") && error.contains("pkcs11:object=ann"), "{error}");
    }
}

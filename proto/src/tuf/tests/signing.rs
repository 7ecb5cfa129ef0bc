//! Documents as signers make them: nothing that no reader takes, one signature a key, and names for people.

use super::*;

/// Shows one key and signs with another, as a mixed-up token would.
struct Liar;

impl Signer for Liar {
    fn public_key(&self) -> PublicKey {
        key(4).public()
    }
    fn try_sign(&self, message: &[u8]) -> Result<String, SignerError> {
        Ok(key(5).sign(message))
    }
}

#[test]
fn what_a_signer_returns_is_verified_before_it_is_taken() {
    let mut document = Document::new(&Repo::new().targets).unwrap();
    let error = document.sign_with(&Liar).unwrap_err().to_string();
    assert!(error.contains("does not verify"), "{error}");
    assert!(document.signatures().is_empty());
}

#[test]
fn a_key_signs_once_and_the_same_signatures_give_the_same_bytes() {
    let repo = Repo::new();
    let made = |keys: &[u8]| {
        let mut document = Document::new(&repo.targets).unwrap();
        keys.iter().for_each(|n| document.sign(&key(*n)));
        document
    };
    assert_eq!(made(&[4, 5, 6, 4]).signatures().len(), 3);
    assert_eq!(made(&[4, 5, 6]).text(), made(&[6, 4, 5, 4]).text());
    assert_eq!(made(&[4, 5]).unsigned(), made(&[]));
}

#[test]
fn what_no_reader_would_take_is_not_made() {
    let mut repo = Repo::new();
    repo.targets.version = 0;
    assert!(matches!(Document::new(&repo.targets), Err(TufError::Malformed { role: RoleName::Targets, .. })));
}

#[test]
fn names_of_keys_are_short_and_plain() {
    let bare = key(4).public();
    assert_eq!(bare.clone().named("An\u{7}n\u{1b}[2J").name(), Some("Ann[2J"), "nothing that moves a cursor");
    let listed = |name: &str| {
        let mut json = serde_json::to_value(&bare).unwrap();
        json["x-crossdock-name"] = name.into();
        serde_json::from_value::<PublicKey>(json).unwrap().name().map(str::len)
    };
    assert_eq!((listed(&"x".repeat(256)), listed(&"x".repeat(257))), (Some(256), None));
}

#[test]
fn every_document_says_when_it_ends() {
    let mut repo = Repo::new();
    let ends = |year: u32| at(&format!("{year}-01-01T00:00:00Z"));
    (repo.root.expires, repo.timestamp.expires) = (ends(2031), ends(2032));
    (repo.snapshot.expires, repo.targets.expires) = (ends(2033), ends(2034));
    let expected = RoleName::ALL.into_iter().zip([2031, 2032, 2033, 2034].map(ends)).collect();
    assert_eq!(repo.trusted().expiries(), expected);
}

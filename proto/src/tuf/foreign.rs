//! Signatures of ECDSA (P-256) and RSA keys, for the public conformance suite, which signs with them. Behind the
//! feature `conformance`: keys of hub, agent and release engineers are ed25519, and others never count.

use data_encoding::HEXLOWER_PERMISSIVE;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use x509_parser::{prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use super::key::PublicKey;

/// Whether `signature` (hex) is this key's over `message`.
pub(super) fn verifies(key: &PublicKey, message: &[u8], signature: &str) -> bool {
    let check = || {
        let algorithm: &'static dyn VerificationAlgorithm = match (key.keytype.as_str(), key.scheme.as_str()) {
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => &ECDSA_P256_SHA256_ASN1,
            ("rsa", "rsassa-pss-sha256") => &RSA_PSS_2048_8192_SHA256,
            ("rsa", "rsa-pkcs1v15-sha256") => &RSA_PKCS1_2048_8192_SHA256,
            _ => return None,
        };
        let (_, pem) = x509_parser::pem::parse_x509_pem(key.keyval.public.as_bytes()).ok()?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).ok()?;
        let signature = HEXLOWER_PERMISSIVE.decode(signature.as_bytes()).ok()?;
        UnparsedPublicKey::new(algorithm, &info.subject_public_key.data).verify(message, &signature).ok()
    };
    check().is_some()
}

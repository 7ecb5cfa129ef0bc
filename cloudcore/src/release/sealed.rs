//! Encrypted key files: PKCS#8 with PBES2 in PEM, which OpenSSL and others open too. Called by [`super::keys`].
//!
//! The key comes from the passphrase by scrypt with N = 2^14, r = 8, p = 5: what OWASP asks for at 16 MiB of
//! memory, and below the 32 MiB at which OpenSSL refuses. A passphrase takes about a quarter of a second to try.

use pkcs8::{
    EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument,
    der::{Decode as _, pem::LineEnding},
    pkcs5::{pbes2, scrypt},
};
use proto::{
    env::Seed,
    tuf::{SecretKey, key::KeyError},
};
use zeroize::Zeroizing;

const LABEL: &str = "ENCRYPTED PRIVATE KEY";
const LOG_N: u8 = 14;
const BLOCK: u32 = 8;
const LANES: u32 = 5;
/// Most work that a file may ask for before it is opened, as scrypt's N * r * p: a quarter of a minute.
const MAX_SCRYPT_WORK: u64 = 1 << 26;
/// Most memory, as scrypt's (N + p) * r: 128 bytes each, so 512 MiB.
const MAX_SCRYPT_BLOCKS: u64 = 1 << 22;
/// Most rounds of PBKDF2 that a file may ask for.
const MAX_PBKDF2_ROUNDS: u32 = 10_000_000;

/// Secret text, cleared from memory when dropped.
pub type Secret = Zeroizing<String>;

/// Why an encrypted key is not opened or made.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The passphrase is another one. A damaged file looks the same.
    #[error("the passphrase is wrong, or the file is damaged")]
    Passphrase,
    /// Not in a form that is understood here.
    #[error(
        "its encryption is not understood ({0}); write it anew with `openssl pkcs8 -topk8 -scrypt -in FILE -out NEW` where it can be opened"
    )]
    Form(String),
    /// Opening it would cost more than any honest file does.
    #[error(
        "opening it asks for more work or memory than allowed here ({0}); write it anew with `openssl pkcs8 -topk8 -scrypt`"
    )]
    TooCostly(String),
    /// What was inside is no key of ours.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The operating system gave no randomness.
    #[error("no randomness for the encryption: {0}")]
    Randomness(String),
}

/// Whether a text is an encrypted key in PEM.
#[must_use]
pub fn is_sealed(pem: &str) -> bool {
    pem.trim_start().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// Encrypts a key.
///
/// # Errors
/// When there is no randomness; nothing else is known.
pub fn seal(key: &SecretKey, passphrase: &str) -> Result<Secret, SealError> {
    let form = |e: pkcs8::Error| SealError::Form(e.to_string());
    let seed = Seed::from_os().map_err(|e| SealError::Randomness(e.to_string()))?;
    let (salt, iv) = (seed.bytes("key file salt"), seed.bytes("key file iv"));
    let (salt, iv) = (first_16(&salt), first_16(&iv));
    let cost = scrypt::Params::new(LOG_N, BLOCK, LANES).map_err(|e| SealError::Form(e.to_string()))?;
    let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|e| form(e.into()))?;
    let pem = Zeroizing::new(key.to_pem()?);
    let (_, plain) = SecretDocument::from_pem(&pem).map_err(|e| SealError::Form(e.to_string()))?;
    let info = PrivateKeyInfoRef::from_der(plain.as_bytes()).map_err(|e| SealError::Form(e.to_string()))?;
    let sealed = info.encrypt_with_params(parameters, passphrase).map_err(form)?;
    sealed.to_pem(LABEL, LineEnding::LF).map_err(|e| SealError::Form(e.to_string()))
}

/// Opens an encrypted key, whoever wrote it: scrypt, or PBKDF2 with SHA-2; AES.
///
/// # Errors
/// When the passphrase is wrong, or the file is of another form, or asks for absurd work.
pub fn open(pem: &str, passphrase: &str) -> Result<SecretKey, SealError> {
    let form = |e: &dyn std::fmt::Display| SealError::Form(e.to_string());
    let (_, document) = SecretDocument::from_pem(pem.trim_start()).map_err(|e| form(&e))?;
    let info = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|e| form(&e))?;
    let parameters = info.encryption_algorithm.pbes2().ok_or_else(|| form(&"it is older than PBES2"))?;
    check_cost(&parameters.kdf)?;
    let plain = info.decrypt(passphrase).map_err(|e| match e {
        // Whatever falls out of the wrong passphrase: bad padding mostly, seldom something that is no key.
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_) => {
            SealError::Passphrase
        }
        other => form(&other),
    })?;
    let pem = plain.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|e| form(&e))?;
    SecretKey::from_pem(&pem).map_err(|e| match PrivateKeyInfoRef::from_der(plain.as_bytes()) {
        Ok(_) => e.into(),
        Err(_) => SealError::Passphrase,
    })
}

/// A file comes from somebody else's disk: it must not take this machine's memory.
fn check_cost(kdf: &pbes2::Kdf) -> Result<(), SealError> {
    if let Some(scrypt) = kdf.scrypt() {
        if scrypt.cost_parameter == 0 {
            return Err(SealError::Form("scrypt N=0".into())); // the reader below takes its logarithm
        }
        let (size, lanes) = (u64::from(scrypt.block_size), u64::from(scrypt.parallelization));
        let work = scrypt.cost_parameter.saturating_mul(size).saturating_mul(lanes);
        // The mixed blocks, and the first and last state of every lane.
        let blocks = scrypt.cost_parameter.saturating_add(lanes).saturating_mul(size);
        if blocks > MAX_SCRYPT_BLOCKS || work > MAX_SCRYPT_WORK {
            let (n, r, p) = (scrypt.cost_parameter, scrypt.block_size, scrypt.parallelization);
            return Err(SealError::TooCostly(format!("scrypt N={n} r={r} p={p}")));
        }
    }
    if let Some(pbkdf2) = kdf.pbkdf2().filter(|p| p.iteration_count > MAX_PBKDF2_ROUNDS) {
        return Err(SealError::TooCostly(format!("{} rounds of PBKDF2", pbkdf2.iteration_count)));
    }
    Ok(())
}

fn first_16(bytes: &[u8; 32]) -> [u8; 16] {
    let mut first = [0; 16];
    first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    first
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn openssl(args: &[&str]) -> Result<String, String> {
        let output = Command::new("openssl").args(args).stdin(Stdio::null()).output().expect("openssl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[test]
    fn openssl_opens_what_we_encrypt_and_we_what_it_encrypts() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let key = SecretKey::from_seed(&[7; 32]);
        std::fs::write(path("ours"), seal(&key, "schlüssel \"1\"").unwrap().as_bytes()).unwrap();
        let pass = "pass:schlüssel \"1\"";
        let public = openssl(&["pkey", "-in", &path("ours"), "-passin", pass, "-pubout"]).unwrap();
        assert_eq!(proto::tuf::PublicKey::from_pem(&public).unwrap(), key.public());
        assert!(openssl(&["pkey", "-in", &path("ours"), "-passin", "pass:other", "-pubout"]).is_err());

        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &path("plain")]).unwrap();
        let theirs = SecretKey::from_pem(&std::fs::read_to_string(path("plain")).unwrap()).unwrap();
        for more in [&["-scrypt"][..], &["-v2", "aes-128-cbc"], &["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512"]] {
            let args = [&["pkcs8", "-topk8", "-in", &path("plain"), "-out", &path("sealed"), "-passout", pass], more];
            openssl(&args.concat()).unwrap();
            let text = std::fs::read_to_string(path("sealed")).unwrap();
            assert!(is_sealed(&text));
            assert_eq!(open(&text, "schlüssel \"1\"").unwrap().id(), theirs.id(), "{more:?}");
        }
        let rsa = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", pass];
        let other_kind = openssl(&rsa).unwrap();
        assert!(matches!(open(&other_kind, "schlüssel \"1\""), Err(SealError::Key(_))));
    }

    #[test]
    fn a_wrong_passphrase_damage_and_absurd_costs_are_told_apart() {
        let key = SecretKey::from_seed(&[7; 32]);
        let sealed = seal(&key, "right").unwrap();
        assert_eq!(open(&sealed, "right").unwrap().id(), key.id());
        for wrong in ["", "Right", "right "] {
            assert!(matches!(open(&sealed, wrong), Err(SealError::Passphrase)), "{wrong:?}");
        }
        assert!(matches!(open("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA", "x"), Err(SealError::Form(_))));
        let costs = |log_n, r, p| {
            let params = scrypt::Params::new(log_n, r, p).unwrap();
            check_cost(&pbes2::ScryptParams::from_params_and_salt(params, &[0; 16]).unwrap().into())
        };
        let cost = |log_n, p| costs(log_n, 8, p);
        assert!(cost(17, 1).is_ok() && cost(14, 5).is_ok());
        assert!(matches!(cost(22, 1), Err(SealError::TooCostly(_))));
        assert!(matches!(cost(14, 65_535), Err(SealError::TooCostly(_))));
        let mut none =
            pbes2::ScryptParams::from_params_and_salt(scrypt::Params::new(14, 8, 1).unwrap(), &[0; 16]).unwrap();
        none.cost_parameter = 0;
        assert!(matches!(check_cost(&none.into()), Err(SealError::Form(_))));
        // Little work, and four gigabytes of lanes.
        assert!(matches!(costs(1, 512, 65_535), Err(SealError::TooCostly(_))));
    }
}

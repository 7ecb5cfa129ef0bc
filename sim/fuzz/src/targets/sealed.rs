//! What is sealed and what is packed: age files of secrets, archives of images.

use cloudcore::release::image;
use proto::{
    release::container::is_of_image,
    secret::{self, MAX_SECRET_BYTES, SealingKey},
};

/// A sealed secret: what it says of itself is read without a key, and what opens is bounded.
pub(super) fn secret(data: &[u8]) {
    let said = secret::inspect(data);
    let key = SealingKey::from_bytes(&[7; 32]).expect("32 bytes are a key");
    match secret::open_any(data, &key) {
        Ok((content, found)) => {
            assert!(content.len() <= MAX_SECRET_BYTES);
            assert_eq!(said.expect("what opens can be read").of, found.of);
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (text.parse::<SealingKey>().is_ok(), text.parse::<secret::Recipient>().is_ok());
    }
}

/// An image: nothing of it leaves its folder, and each file is what its name says.
pub(super) fn image(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("image.tar");
    std::fs::write(&path, data).expect("a file can be written");
    let Ok(unpacked) = image::unpack(&path) else { return };
    for (entry, at) in &unpacked.files {
        assert!(is_of_image(entry.path.as_str()) && at.starts_with(unpacked.spool.path()));
        assert_eq!(proto::digest::Digest::of(&std::fs::read(at).expect("it was written")), entry.digest);
    }
}

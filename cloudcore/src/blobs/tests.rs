//! What goes in comes out, whole or not at all.

use proto::env::Blocking;

use super::*;

fn store() -> (tempfile::TempDir, Blobs) {
    let folder = tempfile::tempdir().unwrap();
    let env = Env { blocking: Blocking::Inline, ..Env::real().unwrap() };
    let blobs = Blobs::open_with_limit(folder.path(), &env, 3 << 20).unwrap();
    (folder, blobs)
}

fn noise(length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    rand::Rng::fill_bytes(&mut proto::env::Seed::from_u64(length as u64).stream("noise"), &mut content);
    content
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test]
async fn contents_of_every_shape_come_back() {
    let (_folder, blobs) = store();
    for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 1_000_000] {
        for content in [noise(length), vec![7; length]] {
            let digest = Digest::of(&content);
            assert_eq!(blobs.put(digest, content.as_slice()).await.unwrap(), length as u64);
            assert_eq!(blobs.size(digest).await.unwrap(), Some(length as u64));
            assert_eq!(blobs.read(digest, u64::MAX).await.unwrap(), content);
            // From any chunk on.
            let reader = blobs.reader(digest).await.unwrap();
            for number in 0..reader.chunks() {
                let from = number as usize * CHUNK_BYTES;
                let to = (from + CHUNK_BYTES).min(length);
                assert_eq!(reader.plain(number).await.unwrap(), &content[from..to]);
            }
            assert!(matches!(reader.chunk(reader.chunks()).await, Err(BlobError::NotFound(_))));
        }
    }
    let zeros = Digest::of(&vec![7; 1_000_000]);
    assert!(blobs.reader(zeros).await.unwrap().chunk(0).await.unwrap().content.len() < 1000);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let (folder, blobs) = store();
    let content = noise(CHUNK_BYTES + 5);
    let other = Digest::of(b"other");
    assert!(matches!(blobs.put(other, content.as_slice()).await, Err(BlobError::WrongDigest { .. })));
    let large = vec![1; (3 << 20) + 1];
    assert!(matches!(blobs.put(Digest::of(&large), large.as_slice()).await, Err(BlobError::TooLarge { .. })));
    let broken = tokio_util::io::StreamReader::new(futures_util::stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ]));
    assert!(matches!(blobs.put(other, broken).await, Err(BlobError::Receive(_))));
    assert!(!blobs.has(other).await.unwrap());
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    // What a crash left is cleared away at the next start.
    fs::write(folder.path().join("tmp/x"), "half").unwrap();
    let env = Env::real().unwrap();
    Blobs::open(folder.path(), &env).unwrap();
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn damage_at_rest_is_noticed_and_mended_by_sending_again() {
    let content = noise(2 * CHUNK_BYTES);
    let digest = Digest::of(&content);
    let length = {
        let (folder, blobs) = store();
        blobs.put(digest, content.as_slice()).await.unwrap();
        fs::metadata(&files(folder.path())[0]).unwrap().len()
    };
    let step = 10_007; // a prime: all parts of the file are hit
    for at in (0..length).step_by(step).chain(length - 150..length) {
        let (folder, blobs) = store();
        blobs.put(digest, content.as_slice()).await.unwrap();
        let path = files(folder.path()).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at as usize] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let found = blobs.read(digest, u64::MAX).await;
        assert!(matches!(found, Err(BlobError::Damaged { .. })), "byte {at}: {found:?}");
        assert!(!blobs.has(digest).await.unwrap());
        blobs.put(digest, content.as_slice()).await.unwrap();
        assert_eq!(blobs.read(digest, u64::MAX).await.unwrap(), content);
    }
    let (folder, blobs) = store();
    blobs.put(digest, content.as_slice()).await.unwrap();
    let path = files(folder.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    for cut in [0, 1, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(!blobs.has(digest).await.unwrap(), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_reader_of_the_damaged_file_leaves_the_sound_one_that_replaced_it() {
    let (folder, blobs) = store();
    let content = noise(CHUNK_BYTES);
    let digest = Digest::of(&content);
    blobs.put(digest, content.as_slice()).await.unwrap();
    let path = files(folder.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let old = blobs.reader(digest).await.unwrap();
    // Another reader finds the damage first, and the content is sent again.
    assert!(matches!(blobs.read(digest, u64::MAX).await, Err(BlobError::Damaged { .. })));
    blobs.put(digest, content.as_slice()).await.unwrap();
    assert!(matches!(old.chunk(0).await, Err(BlobError::Damaged { .. })));
    assert_eq!(blobs.read(digest, u64::MAX).await.unwrap(), content);
}

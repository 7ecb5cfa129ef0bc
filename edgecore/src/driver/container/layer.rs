//! A layer, looked through before any engine gets it: what leads out of an image, and what is larger than it looks.
//!
//! Engines unpack layers as root. They guard themselves against paths that lead out, each in its own way; a sparse file
//! they write out until the disk is full. No tool that makes images needs either. Symbolic links and devices are left
//! alone: a container follows them within its own root, and its control group keeps devices from it.

use std::{
    cell::Cell,
    io::{self, Read, Seek, SeekFrom},
};

use tar::{Archive, EntryType};

use crate::fetch::space::people;

/// Most that is read for one entry: its header, and the records before it, such as a long name. They are held in memory.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Reads no more than is left.
struct Bounded<'a, R> {
    inner: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| {
            io::Error::other(format!("what stands before one of its files is over {MAX_HEADER_BYTES} bytes"))
        })?);
        Ok(read)
    }
}

impl<R: Seek> Seek for Bounded<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Looks through the headers of a layer.
///
/// # Errors
/// What is wrong with it, as the end of a sentence about the layer.
pub fn check(layer: impl Read + Seek) -> Result<(), String> {
    let broken = |e: std::io::Error| format!("is no tar archive: {e}");
    let left = Cell::new(MAX_HEADER_BYTES);
    let mut archive = Archive::new(Bounded { inner: layer, left: &left });
    for entry in archive.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        left.set(MAX_HEADER_BYTES);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        let mut sparse =
            entry.header().as_gnu().filter(|_| kind == EntryType::GNUSparse).map(|gnu| gnu.real_size().ok());
        for record in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
            let record = record.map_err(broken)?;
            if record.key_bytes().starts_with(b"GNU.sparse.") {
                let size = sparse.take().flatten();
                let of_size = [&b"GNU.sparse.size"[..], b"GNU.sparse.realsize"].contains(&record.key_bytes());
                sparse = Some(record.value().ok().filter(|_| of_size).and_then(|value| value.parse().ok()).or(size));
            }
        }
        if let Some(size) = sparse {
            let size = size.map_or_else(|| "more than it looks".into(), people);
            return Err(format!("holds a sparse file, {name}, which the engine would make {size} of; write it out"));
        }
        if leads_out(&name) {
            return Err(format!("holds a path that leads out of it: {name}"));
        }
        let target = entry.link_name_bytes().filter(|_| kind == EntryType::Link);
        if let Some(target) =
            target.map(|target| String::from_utf8_lossy(&target).into_owned()).filter(|t| leads_out(t))
        {
            return Err(format!("holds a hard link that leads out of it: {name} to {target}"));
        }
    }
    Ok(())
}

fn leads_out(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tar::{Builder, Header};

    use super::*;

    fn header(kind: EntryType, name: &str, target: &str) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        header
    }

    fn checked(headers: &[Header]) -> Result<(), String> {
        let mut archive = Builder::new(vec![]);
        headers.iter().for_each(|header| archive.append(header, &b""[..]).unwrap());
        check(Cursor::new(archive.into_inner().unwrap()))
    }

    #[test]
    fn what_leads_out_is_refused_and_what_only_looks_odd_is_not() {
        let one = |kind, name, target| checked(&[header(EntryType::Regular, "a", ""), header(kind, name, target)]);
        for (kind, name, target) in [
            (EntryType::Regular, "b/..c/...", ""),
            (EntryType::Regular, "/etc/passwd", ""),
            (EntryType::Symlink, "b", "../../../x"),
            (EntryType::Link, "b", "a"),
            (EntryType::Char, "null", ""),
        ] {
            assert_eq!(one(kind, name, target), Ok(()), "{name}");
        }
        assert!(one(EntryType::Regular, "b/../../x", "").unwrap_err().contains("leads out of it: b/../../x"));
        assert!(one(EntryType::Directory, "..", "").is_err());
        assert!(one(EntryType::Link, "b", "../x").unwrap_err().contains("b to ../x"));
    }

    #[test]
    fn a_file_that_is_larger_than_it_looks_is_refused() {
        let mut archive = Builder::new(vec![]);
        let records = [("GNU.sparse.size", &b"1099511627776"[..]), ("GNU.sparse.map", b"0,0")];
        archive.append_pax_extensions(records).unwrap();
        archive.append(&header(EntryType::Regular, "bomb", ""), &b""[..]).unwrap();
        let problem = check(Cursor::new(archive.into_inner().unwrap())).unwrap_err();
        assert!(problem.contains("bomb") && problem.contains("1024.0 GiB"), "{problem}");
        let mut old = header(EntryType::GNUSparse, "old", "");
        let gnu = old.as_gnu_mut().unwrap();
        gnu.realsize = *b"00000002000\0";
        gnu.sparse[0].offset = *b"00000002000\0"; // all before it is a hole
        gnu.sparse[0].numbytes = *b"00000000000\0";
        old.set_cksum();
        assert!(checked(&[old]).unwrap_err().contains("1.0 KiB"));
    }

    #[test]
    fn records_before_a_file_are_bounded_and_files_are_not() {
        let with_record = |bytes: usize| {
            let mut archive = Builder::new(vec![]);
            archive.append_pax_extensions([("comment", &vec![b'x'; bytes][..])]).unwrap();
            archive.append(&header(EntryType::Regular, "a", ""), &b""[..]).unwrap();
            check(Cursor::new(archive.into_inner().unwrap()))
        };
        assert_eq!(with_record(1 << 16), Ok(()));
        assert!(with_record(2 << 20).unwrap_err().contains("over 1048576 bytes"));
        let mut archive = Builder::new(vec![]);
        for number in 0..5000 {
            let mut header = header(EntryType::Regular, &format!("file-{number}"), "");
            header.set_size(700);
            header.set_cksum();
            archive.append(&header, &[7; 700][..]).unwrap();
        }
        assert_eq!(check(Cursor::new(archive.into_inner().unwrap())), Ok(()));
    }

    #[test]
    fn what_is_no_archive_is_said_to_be_none() {
        assert!(check(Cursor::new(vec![7; 2048])).unwrap_err().contains("is no tar archive"));
        assert_eq!(check(Cursor::new(vec![0; 1024])), Ok(()), "an empty layer");
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_through(bytes in proptest::collection::vec(any::<u8>(), 0..2000), name in "[a-z./]{0,60}") {
            let mut archive = Builder::new(vec![]);
            archive.append(&header(EntryType::Regular, &name, ""), &b""[..]).unwrap();
            let mut layer = archive.into_inner().unwrap();
            let at = bytes.len() % 512;
            layer.splice(at..at, bytes.iter().copied());
            let _ = check(Cursor::new(bytes));
            let _ = check(Cursor::new(layer)); // no panic, no endless loop
        }
    }
}

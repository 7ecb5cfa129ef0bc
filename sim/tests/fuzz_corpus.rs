//! The fuzz targets of `sim/fuzz`, for some seconds of every test run: golden files, seeds and all that was ever found,
//! then mutations of them from a fixed seed. libFuzzer, which looks where this cannot, is run by `sim/fuzz/run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests, too, may end a test

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::env::Seed;
use sim::containers::image;
use targets::TARGETS;
use tokio::time::Instant;

/// Of each target, whatever machine it runs on.
const MOST: Duration = Duration::from_millis(700);
const MOST_RUNS: usize = 4_000;
const MOST_BYTES: usize = 16 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(folder: &Path, into: &mut Vec<Vec<u8>>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files(&path, into);
        } else {
            into.push(fs::read(path).unwrap());
        }
    }
}

/// Golden files where they fit, and what is kept beside the targets.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let golden = root().join("proto/tests/golden");
    let mut seeds = vec![];
    files(&root().join("sim/fuzz/seeds").join(target), &mut seeds);
    match target {
        "tuf_metadata" => {
            files(&golden.join("tuf/metadata"), &mut seeds);
            files(&golden.join("python-tuf"), &mut seeds);
        }
        "link_frames" => {
            let mut messages = vec![];
            files(&golden.join("link"), &mut messages);
            files(&golden.join("stream"), &mut messages);
            for kind in 0..16 {
                seeds.extend(messages.iter().map(|message| [&[kind], &message[..]].concat()));
            }
        }
        "stream_batch" => {
            let mut texts = vec![];
            files(&golden.join("stream"), &mut texts);
            let hex = |text: &Vec<u8>| data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim_ascii()).ok();
            let raw: Vec<Vec<u8>> = texts.iter().filter_map(hex).collect();
            seeds.extend(raw.iter().map(|raw| [&[1], &raw[..]].concat()));
            seeds.extend(raw);
        }
        "director" => {
            let mut reports = vec![];
            files(&golden.join("link"), &mut reports);
            let report = |text: &Vec<u8>| [&[2], &text[..]].concat();
            seeds.extend(reports.iter().map(report));
        }
        "manifest" => files(&golden.join("tuf/targets"), &mut seeds),
        "release_yaml" => seeds.push(fs::read(root().join("cloudcore/src/cli/sample_release.yaml")).unwrap()),
        "sealed_secret" => {
            let key = proto::secret::SealingKey::from_bytes(&[7; 32]).unwrap().public().to_string();
            let to = [proto::secret::SealedTo { node: Some("box-1".into()), key }];
            seeds.push(proto::secret::seal(b"of the shop", &"shop".parse().unwrap(), "db", &to).unwrap());
        }
        "image_archive" => {
            let folder = tempfile::tempdir().unwrap();
            let layers = [image::layer(&[image::LayerFile::new("app/run", "echo", true)]).unwrap()];
            let path = folder.path().join("image.tar");
            image::save(&path, &layers, &image::config(&layers, &["/app/run"])).unwrap();
            seeds.push(fs::read(path).unwrap());
        }
        "key_files" => seeds.push(fs::read(golden.join("tuf/key-1.pem")).unwrap()),
        _ => {}
    }
    seeds.push(vec![]);
    seeds
}

/// A small generator of its own: the same mutations on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound.max(1)
    }

    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        const WORDS: [&[u8]; 12] = [
            b"\"",
            b"{",
            b"[",
            b",",
            b"0",
            b"-1",
            b"18446744073709551615",
            b"1e308",
            b"\\u0000",
            b"\xff",
            b"../",
            b"null",
        ];
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 => {
                    let end = bytes.len().min(at + self.below(16));
                    bytes.drain(at..end);
                }
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let part = &other[from..other.len().min(from + self.below(64))];
                    bytes.splice(at..at, part.iter().copied());
                }
                _ => drop(bytes.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
            }
        }
        bytes.truncate(MOST_BYTES);
        bytes
    }
}

fn write_corpus(target: &str, seeds: &[Vec<u8>]) {
    let folder = root().join("sim/fuzz/corpus").join(target);
    fs::create_dir_all(&folder).unwrap();
    for (n, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{n}")), seed).unwrap();
    }
}

#[test]
fn no_input_of_the_corpus_or_near_it_does_harm() {
    for (name, target, _) in TARGETS {
        let seeds = seeds(name);
        let number = Seed::from_u64(1).child(name).bytes::<8>("mutations");
        let mut dice = Dice(u64::from_le_bytes(number) | 1);
        let tried = |input: &[u8]| {
            let held = panic::catch_unwind(|| target(input));
            assert!(held.is_ok(), "{name} fails with {:?} ({input:02x?})", String::from_utf8_lossy(input));
        };
        seeds.iter().for_each(|seed| tried(seed));
        if std::env::var_os("CROSSDOCK_WRITE_CORPUS").is_some() {
            write_corpus(name, &seeds); // where libFuzzer looks for them, for `sim/fuzz/run`
        }
        let (start, mut runs) = (Instant::now(), 0);
        while runs < MOST_RUNS && start.elapsed() < MOST {
            tried(&dice.mutated(&seeds));
            runs += 1;
        }
        println!("{name}: {} seeds, {runs} mutations", seeds.len());
    }
}

/// JSON in texts in JSON: each text began the bound of depth anew, and 135 KB ended the stack of a hub's thread.
#[test]
fn json_in_texts_does_not_end_the_stack() {
    let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(120), "]".repeat(120));
    let raw = |text: String| deep(&serde_json::json!({"$serde_json::private::RawValue": text}).to_string());
    let spec = (0..15).fold(deep(""), |text, _| raw(text));
    let body = format!(
        r#"{{"apiVersion":"{}","kind":"Node","metadata":{{"name":"a"}},"spec":{{"x":{spec}}}}}"#,
        proto::API_VERSION
    );
    for target in ["hub_bodies", "provenance"] {
        let input = if target == "hub_bodies" { format!("\0{body}") } else { body.clone() };
        let run = TARGETS.iter().find(|(name, ..)| *name == target).unwrap().1;
        // As large as a worker's of tokio.
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || run(input.as_bytes()));
        thread.unwrap().join().unwrap();
    }
}

//! Scans in the shape of a parcel scanner's: barcode, time, line, weight, direction.
//!
//! ```json
//! {"id":"dock-1-000000000042","barcode":"00340123400000000425","time":"2026-03-01T05:00:00Z","line":"L2","weightG":4310,"direction":"in"}
//! ```
//!
//! `id` is the producer's name and a running number: whoever reads the sink can tell what is missing
//! and what is there twice.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use proto::env::Seed;
use rand::{Rng as _, RngExt as _};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

/// Largest size that scans can be filled up to, in bytes.
pub const MAX_BYTES: usize = proto::stream::MAX_RECORD_BYTES;
/// Digits of the running number in an `id`.
const DIGITS: usize = 12;

/// One scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scan {
    /// Producer and running number.
    pub id: String,
    /// SSCC with its application identifier: `00`, 17 digits, check digit (GS1 General Specifications).
    pub barcode: String,
    /// When the scanner saw it.
    pub time: Timestamp,
    /// The sorting line.
    pub line: String,
    /// In grams.
    pub weight_g: u32,
    /// Into the depot or out of it.
    pub direction: Direction,
    /// Fills the record up to the size that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pad: String,
}

/// Which way a parcel went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Into the depot.
    In,
    /// Out of it.
    Out,
}

/// Makes scans. The same seed and producer make the same ones, times apart.
#[derive(Debug)]
pub struct Scans {
    /// As it stands between the quotes of a JSON string.
    producer: String,
    lines: u32,
    bytes: usize,
    random: ChaCha12Rng,
    /// The scans of an offer share their time.
    time: (Timestamp, String),
    noise: Vec<u8>,
}

impl Scans {
    /// Of a producer with so many sorting lines, filled up to `bytes` each.
    #[must_use]
    pub fn new(seed: &Seed, producer: &str, lines: u32, bytes: usize) -> Scans {
        let random = seed.child(producer).stream("scans");
        let quoted = serde_json::Value::from(producer).to_string();
        Scans {
            producer: quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned(),
            lines: lines.max(1),
            bytes: bytes.min(MAX_BYTES),
            random,
            time: (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH.to_string()),
            noise: vec![],
        }
    }

    /// The scan with this running number, as one line of JSON: a [`Scan`], written by hand because a bench
    /// makes hundreds of thousands a second beside what it measures.
    pub fn next(&mut self, number: u64, time: Timestamp) -> Bytes {
        let company = self.random.random_range(0..100_000);
        let (line, weight_g) = (self.random.random_range(1..=self.lines), self.weight());
        let direction = if self.random.random_bool(0.5) { "in" } else { "out" };
        if self.time.0 != time {
            self.time = (time, time.to_string());
        }
        let mut text = String::with_capacity(self.bytes.max(200));
        let (producer, time) = (self.producer.as_str(), self.time.1.as_str());
        text.extend([r#"{"id":""#, producer, "-"]);
        digits(&mut text, number, DIGITS);
        text.push_str(r#"","barcode":""#);
        barcode(&mut text, company, number);
        text.extend([r#"","time":""#, time, r#"","line":"L"#]);
        digits(&mut text, line.into(), 1);
        text.push_str(r#"","weightG":"#);
        digits(&mut text, weight_g.into(), 1);
        text.extend([r#","direction":""#, direction, r#"""#]);
        const PAD: &str = r#","pad":""#;
        if let Some(pad) = self.bytes.checked_sub(text.len() + PAD.len() + r#""}"#.len()) {
            text.push_str(PAD);
            // Parcels differ: what fills up must not compress to nothing.
            self.noise.resize(pad.div_ceil(2), 0);
            self.random.fill_bytes(&mut self.noise);
            let filled = text.len() + pad;
            HEXLOWER.encode_append(&self.noise, &mut text);
            text.truncate(filled);
            text.push('"');
        }
        text.push('}');
        text.into()
    }

    /// Most parcels are light: the smallest of two draws.
    fn weight(&mut self) -> u32 {
        let draws = [self.random.random_range(50..31_500), self.random.random_range(50..31_500)];
        draws.into_iter().min().unwrap_or(50)
    }
}

/// A number with at least so many digits.
fn digits(text: &mut String, mut number: u64, least: usize) {
    let (mut buffer, mut first) = ([b'0'; 20], 20);
    while number > 0 {
        first -= 1;
        if let Some(digit) = buffer.get_mut(first) {
            *digit += (number % 10) as u8;
        }
        number /= 10;
    }
    let shown = buffer.get(first.min(20 - least)..).unwrap_or_default();
    text.push_str(std::str::from_utf8(shown).unwrap_or_default());
}

/// `00`, company and serial number with their check digit (weights 3 and 1 from the right).
fn barcode(text: &mut String, company: u32, number: u64) {
    text.push_str("00");
    let begin = text.len();
    text.push_str("34");
    digits(text, company.into(), 5);
    digits(text, number % 10_000_000_000, 10);
    let weighted = text.bytes().skip(begin).rev().enumerate().map(|(at, digit)| {
        let digit = u32::from(digit.wrapping_sub(b'0'));
        if at % 2 == 0 { digit * 3 } else { digit }
    });
    let check = (10 - weighted.sum::<u32>() % 10) % 10;
    digits(text, check.into(), 1);
}

/// The running number of the first scan of `producer` in a text, whatever is around it.
#[must_use]
pub fn number_in(text: &[u8], producer: &str) -> Option<u64> {
    let mark = format!("{producer}-");
    let mark = mark.as_bytes();
    text.windows(mark.len() + DIGITS).find_map(|window| {
        let digits = window.strip_prefix(mark)?;
        std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scans(seed: u64, bytes: usize) -> Vec<Bytes> {
        let mut scans = Scans::new(&Seed::from_u64(seed), "dock-1", 4, bytes);
        (0..50).map(|number| scans.next(number, Timestamp::UNIX_EPOCH)).collect()
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        assert_eq!(scans(1, 0), scans(1, 0));
        assert_ne!(scans(1, 0), scans(2, 0));
    }

    #[test]
    fn scans_are_json_of_the_size_that_was_asked_for_and_know_their_number() {
        for (number, text) in scans(1, 300).iter().enumerate() {
            assert_eq!(text.len(), 300);
            let scan: Scan = serde_json::from_slice(text).unwrap();
            assert_eq!(serde_json::to_vec(&scan).unwrap(), text.to_vec(), "as serde would write it");
            assert_eq!(scan.barcode.len(), 20);
            assert!(!text.contains(&b'\n'));
            assert_eq!(number_in(text, "dock-1"), Some(number as u64));
            let quoted = serde_json::to_vec(std::str::from_utf8(text).unwrap()).unwrap();
            assert_eq!(number_in(&quoted, "dock-1"), Some(number as u64));
            assert_eq!(number_in(text, "dock-2"), None);
        }
    }

    #[test]
    fn check_digits_are_those_of_gs1() {
        assert_eq!(check_of("00106141412345678908"), 0); // of the EPC Tag Data Standard
        for text in scans(3, 0) {
            let scan: Scan = serde_json::from_slice(&text).unwrap();
            assert_eq!(check_of(&scan.barcode), 0, "{}", scan.barcode);
        }
    }

    /// Sum over the whole SSCC, check digit included, modulo 10: zero when it is right.
    fn check_of(barcode: &str) -> u32 {
        let digits = barcode[2..].bytes().rev().map(|d| u32::from(d - b'0'));
        digits.enumerate().map(|(at, d)| if at % 2 == 0 { d } else { 3 * d }).sum::<u32>() % 10
    }
}

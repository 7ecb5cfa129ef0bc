//! How a line behaves, and the kinds of lines that a fleet has, by name.

use std::time::Duration;

/// How a line behaves. Chances are in parts per million of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Time from end to end, of an empty line.
    pub latency: Duration,
    /// Most that is added to it by chance.
    pub jitter: Duration,
    /// Chance that a datagram is lost.
    pub loss_ppm: u32,
    /// Chance that it arrives twice.
    pub duplicate_ppm: u32,
    /// Chance that it is held back and later ones overtake it.
    pub reorder_ppm: u32,
    /// How long it is held back.
    pub reorder_delay: Duration,
    /// Bytes a second; absent is unlimited.
    pub bytes_per_s: Option<u64>,
    /// Bytes that wait in front of a full line; what comes beyond is dropped.
    pub queue_bytes: u64,
    /// Largest datagram in bytes; a larger one is dropped.
    pub mtu_bytes: usize,
    /// Chance, a datagram, that a time begins in which many are lost.
    pub burst_ppm: u32,
    /// How long it lasts.
    pub burst: Duration,
    /// How long the line is up and down by turns, on average; it changes at the same times in both directions.
    pub flaps: Option<(Duration, Duration)>,
    /// How the other direction is, from the hub to the box, where it is not the same.
    pub back: Option<Box<Profile>>,
}

impl Profile {
    /// A line inside a building: 1 ms and nothing wrong.
    #[must_use]
    pub fn local() -> Profile {
        Profile {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            reorder_delay: Duration::ZERO,
            bytes_per_s: None,
            queue_bytes: 1 << 20,
            mtu_bytes: 1472,
            burst_ppm: 0,
            burst: Duration::ZERO,
            flaps: None,
            back: None,
        }
    }

    /// A line to a transfer center: 20 Mbit/s, 25 ms each way, and a little of everything that goes wrong.
    #[must_use]
    pub fn edge() -> Profile {
        Profile {
            latency: Duration::from_millis(25),
            jitter: Duration::from_millis(5),
            loss_ppm: 2_000,
            duplicate_ppm: 500,
            reorder_ppm: 1_000,
            reorder_delay: Duration::from_millis(20),
            bytes_per_s: Some(2_500_000),
            queue_bytes: 256 << 10,
            mtu_bytes: 1472,
            burst_ppm: 0,
            burst: Duration::ZERO,
            flaps: None,
            back: None,
        }
    }
}

impl Profile {
    /// Names of [`Profile::named`].
    pub const NAMES: [&str; 5] = ["fiber", "4g", "256k-lossy", "flapping", "double-eleven"];

    /// A line of a kind that a fleet has.
    ///
    /// | name | what it is |
    /// |---|---|
    /// | `fiber` | 100 Mbit/s, 8 ms each way |
    /// | `4g` | 10 Mbit/s up, 30 down, 40 ms each way and much jitter, half a second of queue |
    /// | `256k-lossy` | 256 kbit/s up, 1 Mbit/s down, 5 % loss, 300 ms each way |
    /// | `flapping` | `4g` that is up for two minutes and down for twenty seconds, on average |
    /// | `double-eleven` | a congested evening: 2 Mbit/s up, two seconds of queue, losses in bursts |
    #[must_use]
    pub fn named(name: &str) -> Option<Profile> {
        let ms = Duration::from_millis;
        let kbit = |rate: u64| Some(rate * 125);
        let both = |up: Profile, down: Option<u64>, queue_bytes: u64| {
            let down = Profile { bytes_per_s: down, queue_bytes, ..up.clone() };
            Profile { back: Some(Box::new(down)), ..up }
        };
        let mobile = Profile {
            latency: ms(40),
            jitter: ms(20),
            bytes_per_s: kbit(10_000),
            queue_bytes: 640 << 10,
            ..Profile::edge()
        };
        Some(match name {
            "fiber" => Profile {
                latency: ms(8),
                jitter: ms(1),
                loss_ppm: 50,
                duplicate_ppm: 0,
                reorder_ppm: 0,
                bytes_per_s: kbit(100_000),
                queue_bytes: 1 << 20,
                ..Profile::edge()
            },
            "4g" => both(mobile, kbit(30_000), 1 << 20),
            "256k-lossy" => {
                let up = Profile {
                    latency: ms(300),
                    jitter: ms(40),
                    loss_ppm: 50_000,
                    bytes_per_s: kbit(256),
                    queue_bytes: 32 << 10,
                    ..Profile::edge()
                };
                both(up, kbit(1_000), 64 << 10)
            }
            "flapping" => {
                let flaps = Some((Duration::from_secs(120), Duration::from_secs(20)));
                both(Profile { flaps, ..mobile }, kbit(30_000), 1 << 20)
            }
            "double-eleven" => {
                let up = Profile {
                    latency: ms(60),
                    jitter: ms(80),
                    loss_ppm: 10_000,
                    burst_ppm: 1_000,
                    burst: ms(1_500),
                    bytes_per_s: kbit(2_000),
                    queue_bytes: 512 << 10,
                    ..Profile::edge()
                };
                both(up, kbit(4_000), 1 << 20)
            }
            _ => return None,
        })
    }

    /// The direction from a box to the hub alone.
    #[must_use]
    pub fn up(&self) -> Profile {
        Profile { back: None, ..self.clone() }
    }

    /// The direction from the hub to a box alone.
    #[must_use]
    pub fn down(&self) -> Profile {
        self.back.as_ref().map_or_else(|| self.up(), |back| back.up())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_line_of_two_directions() {
        for name in Profile::NAMES {
            let line = Profile::named(name).unwrap();
            assert!(line.up().bytes_per_s <= line.down().bytes_per_s, "{name}");
        }
        assert_eq!(Profile::named("isdn"), None);
    }
}

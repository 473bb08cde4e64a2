//! Which Kafka a broker is. The protocol has no version string: a broker tells the highest `metadata.version` that it
//! supports in its answer to `ApiVersions`, and each release has raised it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest that the question may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The first `metadata.version` of each release. Source: `MetadataVersion` of Kafka's server-common.
const RELEASES: [(i16, &str); 10] = [
    (1, "3.0"),
    (4, "3.3"),
    (8, "3.4"),
    (9, "3.5"),
    (12, "3.6"),
    (15, "3.7"),
    (20, "3.8"),
    (21, "3.9"),
    (22, "4.0"),
    (26, "4.1"),
];

/// Product and version of the first broker that answers; without a version where none tells it.
pub(super) async fn ask(brokers: &str) -> String {
    for broker in brokers.split(',') {
        if let Ok(Some(level)) = tokio::time::timeout(TIMEOUT, level(broker)).await {
            return describe(level);
        }
    }
    "Kafka".to_owned()
}

fn describe(level: i16) -> String {
    let newest = RELEASES[RELEASES.len() - 1];
    match RELEASES.iter().rev().find(|(first, _)| *first <= level) {
        Some(release) if *release == newest => format!("Kafka {} or newer (metadata.version {level})", release.1),
        Some((_, release)) => format!("Kafka {release}"),
        None => "Kafka older than 3.0".to_owned(),
    }
}

async fn level(broker: &str) -> Option<i16> {
    let mut stream = TcpStream::connect(broker).await.ok()?;
    stream.write_all(&request()).await.ok()?;
    let length = stream.read_u32().await.ok()? as usize;
    if length > ANSWER_BYTES_MAX {
        return None;
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.ok()?;
    parse(&answer)
}

/// `ApiVersions` version 3. Source: Kafka protocol guide.
fn request() -> Vec<u8> {
    let compact = |text: &str| [&[text.len() as u8 + 1], text.as_bytes()].concat();
    let body = [
        &18_i16.to_be_bytes()[..],
        &3_i16.to_be_bytes(),
        &1_i32.to_be_bytes(),
        &7_i16.to_be_bytes(),
        b"chatctl",
        &[0],
        &compact("chatctl"),
        &compact(env!("CARGO_PKG_VERSION")),
        &[0],
    ]
    .concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

/// The highest `metadata.version` that an answer names as supported.
fn parse(answer: &[u8]) -> Option<i16> {
    let mut rest = Reader(answer);
    let (_correlation, error) = (rest.take(4)?, rest.int16()?);
    if error != 0 {
        return None;
    }
    for _ in 1..rest.varint()? {
        rest.take(6)?;
        rest.skip_tags()?;
    }
    let _throttle = rest.take(4)?;
    for _ in 0..rest.varint()? {
        let (tag, size) = (rest.varint()?, rest.varint()?);
        let mut field = Reader(rest.take(size)?);
        // 0: supported features, each with its name, lowest and highest level.
        if tag == 0 {
            for _ in 1..field.varint()? {
                let length = field.varint()?.checked_sub(1)?;
                let name = field.take(length)?;
                let (_lowest, highest) = (field.int16()?, field.int16()?);
                field.skip_tags()?;
                if name == b"metadata.version" {
                    return Some(highest);
                }
            }
        }
    }
    None
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn int16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn skip_tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            let (_tag, size) = (self.varint()?, self.varint()?);
            self.take(size)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_the_release_and_rubbish_tells_nothing() {
        let feature = [&[17_u8][..], b"metadata.version", &7_i16.to_be_bytes(), &24_i16.to_be_bytes(), &[0]].concat();
        let features = [&[2_u8][..], &feature].concat();
        let answer = [
            &[0, 0, 0, 1, 0, 0][..],
            &[2, 0, 18, 0, 0, 0, 4, 0],
            &[0, 0, 0, 0],
            &[1, 0, features.len() as u8],
            &features,
        ]
        .concat();
        assert_eq!(parse(&answer), Some(24));
        assert_eq!(describe(24), "Kafka 4.0");
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None);
        }
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn a_real_broker_tells_its_release() {
        let brokers = std::env::var("CHATCTL_TEST_KAFKA").expect("CHATCTL_TEST_KAFKA is set");
        let version = ask(&brokers).await;
        assert!(version.starts_with("Kafka 4"), "{version}");
    }
}

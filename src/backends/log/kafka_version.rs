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

/// The error of a broker that does not know this version of the question: one older than 2.4. Source: Kafka protocol guide.
const UNSUPPORTED_VERSION: i16 = 35;

/// What a broker tells of itself.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The highest `metadata.version` that it supports.
    Level(i16),
    /// No `metadata.version`: 2.4 or newer, older than 3.0.
    NoLevel,
    /// Older than 2.4.
    TooOld,
}

/// Product and version of the first broker that answers; without a version where none tells it.
///
/// # Errors
/// Names a broker that is too old, and the fix.
pub(super) async fn ask(brokers: &str) -> Result<String, String> {
    for broker in brokers.split(',') {
        match tokio::time::timeout(TIMEOUT, tell(broker)).await {
            Ok(Some(Told::Level(level))) => return Ok(describe(level)),
            Ok(Some(Told::NoLevel)) => return Ok("Kafka older than 3.0".to_owned()),
            Ok(Some(Told::TooOld)) => {
                return Err(format!("{broker} is Kafka older than 2.4: at least 2.4 is needed, upgrade it"));
            }
            Ok(None) | Err(_) => {}
        }
    }
    Ok("Kafka".to_owned())
}

fn describe(level: i16) -> String {
    let newest = RELEASES[RELEASES.len() - 1];
    match RELEASES.iter().rev().find(|(first, _)| *first <= level) {
        Some(release) if *release == newest => format!("Kafka {} or newer (metadata.version {level})", release.1),
        Some((_, release)) => format!("Kafka {release}"),
        None => "Kafka older than 3.0".to_owned(),
    }
}

async fn tell(broker: &str) -> Option<Told> {
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

/// What an answer says; `None` for what is no answer.
fn parse(answer: &[u8]) -> Option<Told> {
    let mut rest = Reader(answer);
    let (_correlation, error) = (rest.take(4)?, rest.int16()?);
    match error {
        0 => {}
        UNSUPPORTED_VERSION => return Some(Told::TooOld),
        _ => return None,
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
                    return Some(Told::Level(highest));
                }
            }
        }
    }
    Some(Told::NoLevel)
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
        assert_eq!(parse(&answer), Some(Told::Level(24)));
        assert_eq!(describe(24), "Kafka 4.0");
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None);
        }
        let without_features = [&answer[..18], &[0]].concat();
        assert_eq!(parse(&without_features), Some(Told::NoLevel));
    }

    #[tokio::test]
    async fn a_broker_that_does_not_know_the_question_is_refused_by_name() {
        let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = broker.local_addr().expect("bound").to_string();
        let serving = async {
            let (mut stream, _) = broker.accept().await.expect("a question");
            // Version 0 of an answer: correlation id, the error, no versions.
            let answer = [&[0, 0, 0, 1][..], &UNSUPPORTED_VERSION.to_be_bytes(), &[0, 0, 0, 0]].concat();
            stream.write_all(&(answer.len() as u32).to_be_bytes()).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        };
        let ((), answer) = tokio::join!(serving, ask(&address));
        let error = answer.expect_err("too old");
        assert!(error.contains(&address) && error.contains("2.4"), "{error}");
    }

    #[tokio::test]
    #[ignore = "needs CHATCTL_TEST_KAFKA"]
    async fn a_real_broker_tells_its_release() {
        let brokers = std::env::var("CHATCTL_TEST_KAFKA").expect("CHATCTL_TEST_KAFKA is set");
        let version = ask(&brokers).await.expect("new enough");
        assert!(version.starts_with("Kafka 4"), "{version}");
    }
}

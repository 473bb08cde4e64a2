//! What one read of a Kafka consumer returns.

use super::Delivered;

/// Records that one read returns at most.
const RECORDS_MAX: usize = 512;

/// Messages and errors that one read looks at, at most.
const LOOKS_MAX: usize = 4_096;

/// Takes the first result of a consumer and whatever else is there already.
///
/// The client library queues an error for each try to reach a broker that is away, hundreds in an outage. They are taken
/// together: a caller that waits after each error must not wait once for each of them, with the messages behind.
///
/// # Errors
/// The first error, where nothing but errors was there.
pub(super) fn gather<M, E>(
    first: Result<M, E>,
    mut ready: impl FnMut() -> Option<Result<M, E>>,
    mut take: impl FnMut(M) -> Option<Delivered>,
) -> Result<Vec<Delivered>, E> {
    let (mut records, mut failure, mut messages) = (Vec::new(), None, 0);
    let mut next = first;
    for looks in 1.. {
        match next {
            Ok(message) => {
                messages += 1;
                records.extend(take(message));
            }
            Err(error) => failure = failure.or(Some(error)),
        }
        // Nothing is taken from the queue that is not looked at.
        if records.len() >= RECORDS_MAX || looks >= LOOKS_MAX {
            break;
        }
        let Some(result) = ready() else { break };
        next = result;
    }
    match failure {
        Some(error) if messages == 0 => Err(error),
        _ => Ok(records),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::*;
    use crate::backends::log::{Record, Topic};

    fn delivered(offset: u64) -> Delivered {
        let record = Arc::new(Record { keys: vec![1], payload: bytes::Bytes::new() });
        Delivered { topic: Topic::Inbox, partition: 0, offset, at_ms: 0, record }
    }

    fn read(queue: Vec<Result<u64, &'static str>>) -> (Result<Vec<u64>, &'static str>, usize) {
        let mut queue = VecDeque::from(queue);
        let first = queue.pop_front().expect("something");
        let read = gather(first, || queue.pop_front(), |n| (n > 0).then(|| delivered(n)));
        (read.map(|records| records.iter().map(|r| r.offset).collect()), queue.len())
    }

    #[test]
    fn errors_that_queued_up_do_not_stand_before_the_messages() {
        let outage = (0..300).map(|_| Err("all brokers are down"));
        assert_eq!(read(outage.clone().chain([Ok(7), Ok(8)]).collect()), (Ok(vec![7, 8]), 0));
        assert_eq!(read(outage.collect()), (Err("all brokers are down"), 0));
    }

    #[test]
    fn messages_for_others_are_no_records_and_no_error() {
        assert_eq!(read(vec![Ok(0), Err("one broker is down"), Ok(0)]), (Ok(vec![]), 0));
    }

    #[test]
    fn a_read_has_an_end() {
        let (records, left) = read((1..=2_000).map(Ok).collect());
        assert_eq!((records.map(|r| r.len()), left), (Ok(RECORDS_MAX), 2_000 - RECORDS_MAX));
        let (_, left) = read(vec![Err("down"); 10_000]);
        assert_eq!(left, 10_000 - LOOKS_MAX);
    }
}

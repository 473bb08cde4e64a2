//! How far readers of Kafka are behind: where partitions begin and end, and since when something of them is unread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::{Offset, TopicPartitionList};

use super::Topic;
use super::kafka::{ANSWER_TIMEOUT, Inner, blocking};

/// Ends of a partition that are remembered, to tell how old the oldest unread record is.
const SAMPLES_MAX: usize = 600;

/// When (ms) a partition was how long, oldest first: while the position is behind one, that one is unread.
#[derive(Default)]
pub(super) struct Ends(VecDeque<(u64, u64)>);

impl Ends {
    /// Notes where the partition ends, `None` without an answer; returns how many records behind the position are unread, and
    /// since how many ms.
    pub(super) fn lag(&mut self, now_ms: u64, end: Option<u64>, position: u64) -> (u64, u64) {
        // Without an answer the last known end counts, and its age grows.
        let end = end.or(self.0.back().map(|(_, end)| *end)).unwrap_or(position);
        if self.0.back().is_none_or(|(_, last)| *last < end) {
            self.0.push_back((now_ms, end));
        }
        if self.0.len() > SAMPLES_MAX {
            self.0.pop_front();
        }
        while self.0.front().is_some_and(|(_, end)| *end <= position) {
            self.0.pop_front();
        }
        let age_ms = self.0.front().map_or(0, |(seen_ms, _)| now_ms.saturating_sub(*seen_ms));
        (end.saturating_sub(position), age_ms)
    }

    /// Forgets all, for a partition that was made anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where many partitions begin or end now, in one request to each broker. Those without an answer are left out.
pub(super) async fn offsets<C: ConsumerContext + 'static>(
    log: &Inner,
    consumer: Arc<StreamConsumer<C>>,
    partitions: &[(Topic, u32)],
    which: Offset,
) -> HashMap<(Topic, u32), u64> {
    if partitions.is_empty() {
        return HashMap::new();
    }
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        // The "times" -2 and -1 ask for the beginning and the end. Source: the protocol's `ListOffsets`, `EARLIEST_TIMESTAMP` and
        // `LATEST_TIMESTAMP`.
        let added = list.add_partition_offset(&log.topic(*topic), *partition as i32, which);
        debug_assert!(added.is_ok(), "beginning and end are offsets");
    }
    let answer = blocking(move || consumer.offsets_for_times(list, ANSWER_TIMEOUT)).await;
    let Ok(answer) = answer else { return HashMap::new() };
    let names: HashMap<String, Topic> = partitions.iter().map(|(topic, _)| (log.topic(*topic), *topic)).collect();
    let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        element.error().ok()?;
        let Offset::Offset(offset) = element.offset() else { return None };
        Some(((*names.get(element.topic())?, element.partition() as u32), u64::try_from(offset).ok()?))
    };
    answer.elements().iter().filter_map(offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unread_is_counted_and_has_the_age_of_the_first_look_that_saw_it() {
        let mut ends = Ends::default();
        assert_eq!(ends.lag(1_000, Some(5), 5), (0, 0));
        assert_eq!(ends.lag(2_000, Some(9), 5), (4, 0));
        assert_eq!(ends.lag(3_000, Some(12), 6), (6, 1_000));
        assert_eq!(ends.lag(4_000, Some(12), 10), (2, 1_000), "what was there at 2 s is read");
        assert_eq!(ends.lag(6_000, None, 10), (2, 3_000), "without an answer the last one counts");
        assert_eq!(ends.lag(7_000, None, 12), (0, 0));
    }
}

//! The promises of the keyed log, as tests.

/// One test per promise of [`super::KeyedLog`], for an implementation given as a `Place`.
macro_rules! log_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::log::contract::promises;
            a_record_reaches_a_reader_that_holds_its_key,
            a_probe_is_taken_again_and_again,
            a_record_for_other_keys_is_not_seen,
            a_position_is_fixed_when_subscribe_returns,
            order_within_a_partition_is_kept,
            a_key_held_twice_is_let_go_by_the_second_unsubscribe,
            two_readers_of_one_key_both_get_the_record,
            another_handle_on_the_same_place_sees_the_record,
            a_group_sees_each_record_once_and_resumes_after_its_commit,
            what_a_group_did_not_commit_comes_again_after_a_restart,
            what_a_group_read_behind_its_commit_comes_again_after_a_restart,
            lag_counts_what_was_not_read,
            a_group_tells_how_far_it_is_behind,
            a_record_for_keys_of_several_partitions_reaches_each_of_them_in_order,
        }
    };
}

pub(crate) use log_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use std::time::Duration;

    use bytes::Bytes;

    use crate::backends::contract::Place;
    use crate::backends::log::{Delivered, GroupReader, KeyedLog, LogReader, Record, Topic};

    const LIMIT: Duration = Duration::from_secs(20);
    type Log = dyn KeyedLog;

    async fn publish(log: &Log, topic: Topic, key: u64, text: &str) {
        let record = Record { keys: vec![key], payload: Bytes::copy_from_slice(text.as_bytes()) };
        log.publish(topic, record).await.expect("publishes");
    }

    async fn next(reader: &dyn LogReader) -> Vec<String> {
        let records = tokio::time::timeout(LIMIT, reader.next()).await.expect("in time").expect("reads");
        texts(&records)
    }

    fn texts(records: &[Delivered]) -> Vec<String> {
        records.iter().map(|d| String::from_utf8_lossy(&d.record.payload).into_owned()).collect()
    }

    /// Reads until `count` records came.
    async fn gather(reader: &dyn LogReader, count: usize) -> Vec<String> {
        let mut out = Vec::new();
        while out.len() < count {
            out.extend(next(reader).await);
        }
        out
    }

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Log>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn a_record_reaches_a_reader_that_holds_its_key(place: impl Place<Log>) {
        let log = place.open().await;
        let reader = log.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        publish(&*log, Topic::Inbox, 7, "hello").await;
        assert_eq!(next(&*reader).await, ["hello"]);
    }

    pub(crate) async fn a_record_for_other_keys_is_not_seen(place: impl Place<Log>) {
        let log = place.open().await;
        let reader = log.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        let same_partition = (8..10_000).find(|k| log.partition_of(*k) == log.partition_of(7)).expect("there is one");
        publish(&*log, Topic::Inbox, same_partition, "not mine").await;
        publish(&*log, Topic::Channel, 7, "not my topic").await;
        publish(&*log, Topic::Inbox, 7, "mine").await;
        assert_eq!(next(&*reader).await, ["mine"]);
    }

    pub(crate) async fn a_position_is_fixed_when_subscribe_returns(place: impl Place<Log>) {
        let log = place.open().await;
        publish(&*log, Topic::Inbox, 7, "before").await;
        let reader = log.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        publish(&*log, Topic::Inbox, 7, "after").await;
        assert_eq!(next(&*reader).await, ["after"]);
    }

    pub(crate) async fn order_within_a_partition_is_kept(place: impl Place<Log>) {
        let log = place.open().await;
        let reader = log.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        let wanted: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
        for text in &wanted {
            publish(&*log, Topic::Inbox, 7, text).await;
        }
        assert_eq!(gather(&*reader, wanted.len()).await, wanted);
    }

    pub(crate) async fn a_key_held_twice_is_let_go_by_the_second_unsubscribe(place: impl Place<Log>) {
        let log = place.open().await;
        let reader = log.reader("r").await.expect("opens");
        let other = (8..10_000).find(|k| log.partition_of(*k) == log.partition_of(7)).expect("there is one");
        for key in [7, 7, other] {
            reader.subscribe(Topic::Inbox, key).await.expect("subscribes");
        }
        reader.unsubscribe(Topic::Inbox, 7).await.expect("lets go");
        publish(&*log, Topic::Inbox, 7, "still held").await;
        assert_eq!(next(&*reader).await, ["still held"]);
        reader.unsubscribe(Topic::Inbox, 7).await.expect("lets go");
        publish(&*log, Topic::Inbox, 7, "not held").await;
        publish(&*log, Topic::Inbox, other, "other").await;
        assert_eq!(next(&*reader).await, ["other"]);
    }

    pub(crate) async fn two_readers_of_one_key_both_get_the_record(place: impl Place<Log>) {
        let log = place.open().await;
        let (a, b) = (log.reader("a").await.expect("opens"), log.reader("b").await.expect("opens"));
        a.subscribe(Topic::Channel, 1).await.expect("subscribes");
        b.subscribe(Topic::Channel, 1).await.expect("subscribes");
        publish(&*log, Topic::Channel, 1, "news").await;
        assert_eq!((next(&*a).await, next(&*b).await), (vec!["news".to_owned()], vec!["news".to_owned()]));
    }

    pub(crate) async fn another_handle_on_the_same_place_sees_the_record(place: impl Place<Log>) {
        let (here, there) = (place.open().await, place.open().await);
        let reader = there.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 3).await.expect("subscribes");
        publish(&*here, Topic::Inbox, 3, "across").await;
        assert_eq!(next(&*reader).await, ["across"]);
    }

    pub(crate) async fn a_group_sees_each_record_once_and_resumes_after_its_commit(place: impl Place<Log>) {
        {
            let log = place.open().await;
            let group = log.group(Topic::Inbox, "g1").await.expect("joins");
            publish(&*log, Topic::Inbox, 1, "one").await;
            let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
            assert_eq!(texts(&got), ["one"]);
            group.commit(&group.position()).await.expect("commits");
        }
        place.restart().await;
        let log = place.open().await;
        let group = log.group(Topic::Inbox, "g1").await.expect("joins");
        publish(&*log, Topic::Inbox, 1, "two").await;
        let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
        assert_eq!(texts(&got), ["two"]);
    }

    pub(crate) async fn what_a_group_did_not_commit_comes_again_after_a_restart(place: impl Place<Log>) {
        {
            let log = place.open().await;
            let group = log.group(Topic::Inbox, "g2").await.expect("joins");
            publish(&*log, Topic::Inbox, 1, "again").await;
            let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
            assert_eq!(texts(&got), ["again"]);
        }
        place.restart().await;
        let log = place.open().await;
        let group = log.group(Topic::Inbox, "g2").await.expect("joins");
        let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
        assert_eq!(texts(&got), ["again"]);
    }

    pub(crate) async fn what_a_group_read_behind_its_commit_comes_again_after_a_restart(place: impl Place<Log>) {
        {
            let log = place.open().await;
            let group = log.group(Topic::Inbox, "g3").await.expect("joins");
            let mut positions = Vec::new();
            for text in ["dealt with", "read"] {
                publish(&*log, Topic::Inbox, 1, text).await;
                let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
                assert_eq!(texts(&got), [text]);
                positions.push(group.position());
            }
            group.commit(&positions[0]).await.expect("commits");
        }
        place.restart().await;
        let log = place.open().await;
        let group = log.group(Topic::Inbox, "g3").await.expect("joins");
        let got = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads");
        assert_eq!(texts(&got), ["read"]);
    }

    pub(crate) async fn a_record_for_keys_of_several_partitions_reaches_each_of_them_in_order(place: impl Place<Log>) {
        let log = place.open().await;
        let partitions = log.partitions().min(4);
        let key_of = |partition| (0..10_000).find(|key| log.partition_of(*key) == partition).expect("there is one");
        let keys: Vec<u64> = (0..partitions).map(key_of).collect();
        let (one, rest) = (log.reader("one").await.expect("opens"), log.reader("rest").await.expect("opens"));
        let group = log.group(Topic::Inbox, "several").await.expect("joins");
        for (n, key) in keys.iter().enumerate() {
            let reader = if n == 0 { &one } else { &rest };
            reader.subscribe(Topic::Inbox, *key).await.expect("subscribes");
        }
        for text in ["first", "second"] {
            let record = Record { keys: keys.clone(), payload: Bytes::from_static(text.as_bytes()) };
            let records = log.publish(Topic::Inbox, record).await.expect("publishes");
            assert!((1..=u64::from(partitions)).contains(&records), "{records}");
        }
        assert_eq!(log.publish(Topic::Inbox, Record { keys: vec![], payload: Bytes::new() }).await.ok(), Some(0));
        assert_eq!(gather(&*one, 2).await, ["first", "second"]);
        // Each key is named once, whether in one record or in several.
        let named = |records: &[Delivered], text: &str| {
            let of_text = records.iter().filter(|delivered| delivered.record.payload == text.as_bytes());
            let mut named: Vec<u64> = of_text.flat_map(|delivered| delivered.record.keys.iter().copied()).collect();
            named.sort_unstable();
            named
        };
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        let mut all = Vec::new();
        while named(&all, "second") != sorted {
            all.extend(tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads"));
        }
        assert_eq!(named(&all, "first"), sorted);
        let mut all = Vec::new();
        while keys[1..].iter().any(|key| !named(&all, "second").contains(key)) {
            all.extend(tokio::time::timeout(LIMIT, rest.next()).await.expect("in time").expect("reads"));
        }
        assert!(keys[1..].iter().all(|key| named(&all, "first").contains(key)));
    }

    pub(crate) async fn lag_counts_what_was_not_read(place: impl Place<Log>) {
        let log = place.open().await;
        let reader = log.reader("r").await.expect("opens");
        reader.subscribe(Topic::Inbox, 7).await.expect("subscribes");
        for _ in 0..3 {
            publish(&*log, Topic::Inbox, 7, "x").await;
        }
        let records: u64 = reader.lag().await.iter().map(|l| l.records).sum();
        assert_eq!(records, 3);
        gather(&*reader, 3).await;
        assert!(reader.lag().await.iter().all(|l| l.records == 0 && l.age_ms == 0));
    }

    /// Waits until a group's lag is so many records; returns whether something has an age then.
    async fn lags(group: &dyn GroupReader, wanted: u64) -> bool {
        let waiting = async {
            loop {
                let lag = group.lag().await;
                if lag.iter().map(|l| l.records).sum::<u64>() == wanted {
                    return lag.iter().any(|l| l.age_ms > 0);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("in time")
    }

    pub(crate) async fn a_group_tells_how_far_it_is_behind(place: impl Place<Log>) {
        let log = place.open().await;
        let group = log.group(Topic::Inbox, "behind").await.expect("joins");
        publish(&*log, Topic::Inbox, 1, "x").await;
        let mut read = tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads").len();
        lags(&*group, 0).await;
        for _ in 0..3 {
            publish(&*log, Topic::Inbox, 1, "x").await;
        }
        lags(&*group, 3).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(lags(&*group, 3).await, "what is unread has an age");
        while read < 4 {
            read += tokio::time::timeout(LIMIT, group.next()).await.expect("in time").expect("reads").len();
        }
        assert!(!lags(&*group, 0).await, "what is read has none");
    }
}

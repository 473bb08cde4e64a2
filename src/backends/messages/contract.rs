//! The promises of the message store, as tests.

/// One test per promise of [`super::Messages`], for an implementation given as a `Place`.
macro_rules! messages_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::messages::contract::promises;
            what_was_appended_is_read_in_id_order,
            a_probe_is_taken_again_and_again,
            a_range_has_its_ends_and_its_limit,
            reading_back_starts_at_the_newest,
            conversations_do_not_mix,
            the_newest_of_many_conversations_is_told,
            appending_the_same_again_changes_nothing,
            a_void_row_is_gone_and_a_late_one_is_shadowed,
            a_void_survives_a_restart,
            an_append_survives_a_restart_and_another_handle_sees_it,
            a_head_is_raised_by_one_of_many,
            a_head_survives_a_restart,
            the_first_mark_of_a_name_stays,
        }
    };
}
pub(crate) use messages_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::messages::{ConversationHead, Messages, StoredMessage};
    use crate::protocol::{ConversationId, MessageId, UserId};

    type Port = dyn Messages;
    const EVERYTHING: MessageId = MessageId(u64::MAX);
    const START: MessageId = MessageId(0);

    fn message(conversation: ConversationId, id: u64) -> StoredMessage {
        StoredMessage {
            conversation,
            id: MessageId(id),
            uuid: Uuid::from_u64_pair(conversation.0, id),
            sender: UserId(1),
            kind: "text".to_owned(),
            body: format!("message {id} – ünïcode"),
            reply_to: None,
            at: 1_000 + id,
        }
    }

    /// Conversations that no other test of this run uses: real engines keep their data between tests.
    fn fresh() -> ConversationId {
        ConversationId(Uuid::new_v4().as_u64_pair().0 >> 2)
    }

    async fn ids(port: &Port, conversation: ConversationId, after: u64, upto: u64, limit: usize) -> Vec<u64> {
        let rows = port.read(conversation, MessageId(after), MessageId(upto), limit).await.expect("reads");
        rows.iter().map(|m| m.id.0).collect()
    }

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn what_was_appended_is_read_in_id_order(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        for id in [3, 1, 300, 2] {
            port.append(&message(c, id)).await.expect("appends");
        }
        let rows = port.read(c, START, EVERYTHING, 100).await.expect("reads");
        assert_eq!(rows, [1, 2, 3, 300].map(|id| message(c, id)));
    }

    pub(crate) async fn a_range_has_its_ends_and_its_limit(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        for id in 1..=9 {
            port.append(&message(c, id)).await.expect("appends");
        }
        assert_eq!(ids(&*port, c, 2, 5, 100).await, [3, 4, 5]);
        assert_eq!(ids(&*port, c, 2, 9, 2).await, [3, 4]);
        assert_eq!(ids(&*port, c, 9, u64::MAX, 2).await, [0_u64; 0]);
        assert_eq!(ids(&*port, c, 5, 5, 2).await, [0_u64; 0]);
    }

    pub(crate) async fn reading_back_starts_at_the_newest(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        for id in 1..=5 {
            port.append(&message(c, id)).await.expect("appends");
        }
        let rows = port.read_back(c, MessageId(5), 3).await.expect("reads");
        assert_eq!(rows.iter().map(|m| m.id.0).collect::<Vec<_>>(), [4, 3, 2]);
        let newest = port.read_back(c, EVERYTHING, 1).await.expect("reads");
        assert_eq!(newest, [message(c, 5)]);
    }

    pub(crate) async fn the_newest_of_many_conversations_is_told(place: impl Place<Port>) {
        let port = place.open().await;
        let (used, unused, jumped) = (fresh(), fresh(), fresh());
        for (c, id) in [(used, 1), (used, 2), (jumped, 3), (jumped, 30_001)] {
            port.append(&message(c, id)).await.expect("appends");
        }
        let newest = port.newest(&[jumped, unused, used]).await.expect("reads");
        assert_eq!(newest, [Some(message(jumped, 30_001).into()), None, Some(message(used, 2).into())]);
        assert_eq!(port.newest(&[]).await.expect("reads"), []);
        port.void(jumped, MessageId(10_000), MessageId(40_000)).await.expect("voids");
        assert_eq!(port.newest(&[jumped]).await.expect("reads"), [Some(message(jumped, 3).into())]);
    }

    pub(crate) async fn conversations_do_not_mix(place: impl Place<Port>) {
        let port = place.open().await;
        let (a, b) = (fresh(), fresh());
        port.append(&message(a, 1)).await.expect("appends");
        port.append(&message(b, 2)).await.expect("appends");
        assert_eq!(ids(&*port, a, 0, u64::MAX, 10).await, [1]);
        assert_eq!(ids(&*port, b, 0, u64::MAX, 10).await, [2]);
    }

    pub(crate) async fn appending_the_same_again_changes_nothing(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        port.append(&message(c, 1)).await.expect("appends");
        port.append(&message(c, 1)).await.expect("appends");
        assert_eq!(ids(&*port, c, 0, u64::MAX, 10).await, [1]);
    }

    pub(crate) async fn a_void_row_is_gone_and_a_late_one_is_shadowed(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        for id in 1..=3 {
            port.append(&message(c, id)).await.expect("appends");
        }
        port.void(c, MessageId(1), MessageId(2)).await.expect("voids");
        port.void(c, MessageId(3), MessageId(10_000)).await.expect("voids");
        port.void(c, MessageId(3), MessageId(10_000)).await.expect("voids again");
        for late in [2, 4, 10_000, 10_001] {
            port.append(&message(c, late)).await.expect("says ok");
        }
        assert_eq!(ids(&*port, c, 0, u64::MAX, 10).await, [1, 3, 10_001]);
    }

    pub(crate) async fn a_void_survives_a_restart(place: impl Place<Port>) {
        let c = fresh();
        {
            let port = place.open().await;
            port.void(c, START, MessageId(5)).await.expect("voids");
        }
        place.restart().await;
        let port = place.open().await;
        port.append(&message(c, 5)).await.expect("says ok");
        port.append(&message(c, 6)).await.expect("appends");
        assert_eq!(ids(&*port, c, 0, u64::MAX, 10).await, [6]);
    }

    pub(crate) async fn an_append_survives_a_restart_and_another_handle_sees_it(place: impl Place<Port>) {
        let c = fresh();
        {
            let (here, there) = (place.open().await, place.open().await);
            here.append(&message(c, 1)).await.expect("appends");
            assert_eq!(ids(&*there, c, 0, u64::MAX, 10).await, [1]);
        }
        place.restart().await;
        let port = place.open().await;
        assert_eq!(port.read(c, START, EVERYTHING, 10).await.expect("reads"), [message(c, 1)]);
    }

    pub(crate) async fn a_head_is_raised_by_one_of_many(place: impl Place<Port>) {
        let c = fresh();
        let first = ConversationHead { epoch: 1, block_end: 10_000 };
        let tries = (0..8).map(|_| async {
            let port = place.open().await;
            port.raise_head(c, ConversationHead::default(), first).await.expect("answers")
        });
        let won = futures_util::future::join_all(tries).await.into_iter().filter(|won| *won).count();
        assert_eq!(won, 1);
        let port = place.open().await;
        assert_eq!(port.head(c).await.expect("reads"), first);
        let second = ConversationHead { epoch: 2, block_end: 20_000 };
        assert!(!port.raise_head(c, ConversationHead::default(), second).await.expect("answers"));
        assert!(port.raise_head(c, first, second).await.expect("answers"));
    }

    pub(crate) async fn a_head_survives_a_restart(place: impl Place<Port>) {
        let c = fresh();
        let head = ConversationHead { epoch: 1, block_end: 10_000 };
        {
            let port = place.open().await;
            assert_eq!(port.head(c).await.expect("reads"), ConversationHead::default());
            assert!(port.raise_head(c, ConversationHead::default(), head).await.expect("answers"));
        }
        place.restart().await;
        assert_eq!(place.open().await.head(c).await.expect("reads"), head);
    }

    pub(crate) async fn the_first_mark_of_a_name_stays(place: impl Place<Port>) {
        let (name, another) = (format!("test-{}", Uuid::new_v4().simple()), place.open().await);
        let port = place.open().await;
        let marks = (0..8).map(|n| {
            let (port, name) = (if n % 2 == 0 { &port } else { &another }, &name);
            async move { port.mark(name, &format!("value {n}")).await.expect("marks") }
        });
        let marks = futures_util::future::join_all(marks).await;
        assert!(marks.iter().all(|mark| *mark == marks[0] && mark.starts_with("value ")), "{marks:?}");
        drop((port, another));
        place.restart().await;
        assert_eq!(place.open().await.mark(&name, "late").await.expect("reads"), marks[0]);
    }
}

//! The promises of the counters, as tests.

/// One test per promise of [`super::Sequence`], for an implementation given as a `Place`.
macro_rules! sequence_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::sequence::contract::promises;
            an_unknown_conversation_is_unseeded,
            a_probe_is_taken_again_and_again,
            ids_rise_by_one_from_the_seed,
            many_servers_never_get_the_same_id,
            a_uuid_keeps_its_id_and_another_body_is_a_conflict_while_it_is_pending,
            thousands_of_committed_uuids_are_each_found_and_never_another,
            one_uuid_of_two_senders_is_two_messages,
            stable_stops_below_the_lowest_pending_id,
            a_voided_id_is_never_committed_and_its_uuid_gets_a_fresh_one,
            a_commit_can_be_repeated,
            the_newest_is_the_greatest_committed_id,
            too_many_pending_ids_are_refused,
            a_used_up_block_is_told_and_can_be_raised,
            only_the_highest_claim_can_seed,
            only_its_owner_ends_a_turn,
            a_seed_remembers_uuids_as_committed,
            a_restart_never_gives_an_id_out_again,
        }
    };
}
pub(crate) use sequence_contract;

/// One conversation, for tests of an engine of their own.
pub(crate) mod talk {
    use uuid::Uuid;

    use crate::backends::sequence::{Request, Seed, Sequence};
    use crate::protocol::{ConversationId, MessageId, UserId};

    pub(crate) const TALK: ConversationId = ConversationId(1);

    pub(crate) fn request() -> Request {
        Request { conversation: TALK, sender: UserId(1), uuid: Uuid::new_v4(), digest: 5, not_upto: MessageId(0) }
    }

    pub(crate) async fn seeded(port: &dyn Sequence) {
        assert!(port.begin_seed(TALK, 1).await.expect("claims"));
        let seed = Seed { epoch: 1, settled: MessageId(0), block_end: 100 };
        assert!(port.seed(TALK, &seed).await.expect("seeds"));
    }
}

/// The bodies of the tests.
pub(crate) mod promises {
    use std::collections::HashSet;

    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::messages::ConversationHead;
    use crate::backends::sequence::{PENDING_IDS_MAX, Remembered, Request, Reservation, Seed, Sequence};
    use crate::protocol::{ConversationId, MessageId, UserId};
    use crate::runtime::clock;

    type Port = dyn Sequence;

    fn fresh() -> ConversationId {
        ConversationId(Uuid::new_v4().as_u64_pair().0 >> 2)
    }

    fn request(conversation: ConversationId) -> Request {
        Request { conversation, sender: UserId(1), uuid: Uuid::new_v4(), digest: 9, not_upto: MessageId(0) }
    }

    async fn seeded(port: &Port, settled: u64, block_end: u64) -> ConversationId {
        let c = fresh();
        assert!(port.begin_seed(c, 1).await.expect("answers"));
        let seed = Seed { epoch: 1, settled: MessageId(settled), block_end };
        assert!(port.seed(c, &seed).await.expect("answers"));
        c
    }

    async fn reserve(port: &Port, request: &Request) -> u64 {
        match port.reserve(request).await.expect("answers") {
            Reservation::Fresh(slot, _) => slot.id.0,
            other => panic!("expected a fresh id, got {other:?}"),
        }
    }

    async fn commit(port: &Port, r: &Request, id: u64) -> bool {
        port.commit(r.conversation, r.sender, r.uuid, MessageId(id)).await.expect("answers")
    }

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn an_unknown_conversation_is_unseeded(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        assert_eq!(port.reserve(&request(c)).await.expect("answers"), Reservation::Unseeded);
        assert_eq!(port.progress(c).await.expect("answers"), None);
        assert!(!commit(&*port, &request(c), 1).await);
    }

    pub(crate) async fn ids_rise_by_one_from_the_seed(place: impl Place<Port>) {
        let port = place.open().await;
        let c = seeded(&*port, 41, 100).await;
        assert_eq!(reserve(&*port, &request(c)).await, 42);
        assert_eq!(reserve(&*port, &request(c)).await, 43);
    }

    pub(crate) async fn many_servers_never_get_the_same_id(place: impl Place<Port>) {
        let c = seeded(&*place.open().await, 0, 10_000).await;
        let tries = (0..200).map(|_| async {
            let port = place.open().await;
            reserve(&*port, &request(c)).await
        });
        let ids: HashSet<u64> = futures_util::future::join_all(tries).await.into_iter().collect();
        assert_eq!(ids, (1..=200).collect());
    }

    pub(crate) async fn a_uuid_keeps_its_id_and_another_body_is_a_conflict_while_it_is_pending(
        place: impl Place<Port>,
    ) {
        let port = place.open().await;
        let r = request(seeded(&*port, 0, 100).await);
        let Reservation::Fresh(slot, 1) = port.reserve(&r).await.expect("answers") else { panic!("not fresh") };
        // A retry keeps the time of the first try.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(port.reserve(&r).await.expect("answers"), Reservation::Pending(slot, 1));
        let other = Request { digest: 10, ..r };
        assert_eq!(port.reserve(&other).await.expect("answers"), Reservation::Conflict);
        assert!(commit(&*port, &r, slot.id.0).await);
        for request in [r, other] {
            assert_eq!(port.reserve(&request).await.expect("answers"), Reservation::Committed(slot.id));
        }
        let another = Request { not_upto: slot.id, ..r };
        assert_eq!(reserve(&*port, &another).await, 2, "whoever looked says that it is another message");
        assert_eq!(port.reserve(&another).await.expect("answers"), port.reserve(&r).await.expect("answers"));
    }

    pub(crate) async fn thousands_of_committed_uuids_are_each_found_and_never_another(place: impl Place<Port>) {
        const MESSAGES: u64 = 3_000;
        let port = place.open().await;
        let c = seeded(&*port, 0, 2 * MESSAGES).await;
        let mut sent = Vec::new();
        for id in 1..=MESSAGES {
            let r = request(c);
            assert_eq!(reserve(&*port, &r).await, id);
            assert!(commit(&*port, &r, id).await);
            sent.push(r);
        }
        for (r, id) in sent.iter().zip(1..) {
            assert_eq!(port.reserve(r).await.expect("answers"), Reservation::Committed(MessageId(id)));
            assert!(commit(&*port, r, id).await && !commit(&*port, r, id + 1).await);
        }
        assert_eq!(reserve(&*port, &request(c)).await, MESSAGES + 1);
    }

    pub(crate) async fn one_uuid_of_two_senders_is_two_messages(place: impl Place<Port>) {
        let port = place.open().await;
        let r = request(seeded(&*port, 0, 100).await);
        assert_eq!(reserve(&*port, &r).await, 1);
        assert_eq!(reserve(&*port, &Request { sender: UserId(2), ..r }).await, 2);
    }

    pub(crate) async fn stable_stops_below_the_lowest_pending_id(place: impl Place<Port>) {
        let port = place.open().await;
        let c = seeded(&*port, 10, 100).await;
        let (a, b) = (request(c), request(c));
        assert_eq!((reserve(&*port, &a).await, reserve(&*port, &b).await), (11, 12));
        assert!(commit(&*port, &b, 12).await);
        let progress = port.progress(c).await.expect("answers").expect("seeded");
        assert_eq!((progress.stable.0, progress.head.0), (10, 12));
        assert_eq!(progress.pending.iter().map(|slot| slot.id.0).collect::<Vec<_>>(), [11]);
        let age_ms = progress.now_ms - progress.pending[0].at_ms;
        assert!(
            age_ms < 60_000 && clock::unix_ms().abs_diff(progress.now_ms) < 60_000,
            "one clock dates both: {age_ms}"
        );
        assert!(commit(&*port, &a, 11).await);
        let progress = port.progress(c).await.expect("answers").expect("seeded");
        assert_eq!((progress.stable.0, progress.pending.len()), (12, 0));
    }

    pub(crate) async fn a_voided_id_is_never_committed_and_its_uuid_gets_a_fresh_one(place: impl Place<Port>) {
        let port = place.open().await;
        let c = seeded(&*port, 0, 100).await;
        let r = request(c);
        assert_eq!(reserve(&*port, &r).await, 1);
        assert!(port.begin_void(c, MessageId(1)).await.expect("answers"));
        assert!(!commit(&*port, &r, 1).await, "a marked id can't be committed");
        assert_eq!(port.progress(c).await.expect("answers").expect("seeded").stable.0, 0, "not settled yet");
        port.end_void(c, MessageId(1)).await.expect("answers");
        assert!(!commit(&*port, &r, 1).await);
        assert_eq!(reserve(&*port, &r).await, 2);
        assert!(commit(&*port, &r, 2).await);
        assert!(!port.begin_void(c, MessageId(2)).await.expect("answers"), "a committed id can't be voided");
        assert_eq!(port.progress(c).await.expect("answers").expect("seeded").stable.0, 2);
    }

    pub(crate) async fn a_commit_can_be_repeated(place: impl Place<Port>) {
        let port = place.open().await;
        let r = request(seeded(&*port, 0, 100).await);
        let id = reserve(&*port, &r).await;
        assert!(commit(&*port, &r, id).await && commit(&*port, &r, id).await);
        assert!(!commit(&*port, &r, id + 1).await);
    }

    pub(crate) async fn the_newest_is_the_greatest_committed_id(place: impl Place<Port>) {
        let port = place.open().await;
        let (used, unused, unseeded) = (seeded(&*port, 7, 100).await, seeded(&*port, 7, 100).await, fresh());
        let (a, b) = (request(used), request(used));
        assert_eq!((reserve(&*port, &a).await, reserve(&*port, &b).await), (8, 9));
        assert_eq!(port.newest(&[used]).await.expect("answers"), [None], "both are pending");
        assert!(commit(&*port, &a, 8).await);
        let newest = port.newest(&[unused, used, unseeded]).await.expect("answers");
        assert_eq!(newest.iter().map(|slot| slot.map(|slot| slot.id.0)).collect::<Vec<_>>(), [None, Some(8), None]);
        assert!(commit(&*port, &b, 9).await);
        assert_eq!(port.newest(&[used]).await.expect("answers")[0].map(|slot| slot.id.0), Some(9));
        assert_eq!(port.newest(&[]).await.expect("answers"), []);
    }

    pub(crate) async fn too_many_pending_ids_are_refused(place: impl Place<Port>) {
        let port = place.open().await;
        let c = seeded(&*port, 0, 10_000).await;
        let first = request(c);
        reserve(&*port, &first).await;
        for _ in 1..PENDING_IDS_MAX {
            reserve(&*port, &request(c)).await;
        }
        assert_eq!(port.reserve(&request(c)).await.expect("answers"), Reservation::Overloaded);
        assert!(commit(&*port, &first, 1).await);
        reserve(&*port, &request(c)).await;
    }

    pub(crate) async fn a_used_up_block_is_told_and_can_be_raised(place: impl Place<Port>) {
        let port = place.open().await;
        let c = seeded(&*port, 0, 2).await;
        for _ in 0..2 {
            reserve(&*port, &request(c)).await;
        }
        let used_up = Reservation::BlockUsedUp { epoch: 1, block_end: 2 };
        assert_eq!(port.reserve(&request(c)).await.expect("answers"), used_up);
        let head = |epoch, block_end| ConversationHead { epoch, block_end };
        port.extend(c, 7, head(7, 50)).await.expect("ignores another epoch");
        assert_eq!(port.reserve(&request(c)).await.expect("answers"), used_up);
        port.extend(c, 1, head(1, 4)).await.expect("raises");
        assert_eq!(reserve(&*port, &request(c)).await, 3);
        port.extend(c, 1, head(2, 6)).await.expect("raises");
        let fresh = port.reserve(&request(c)).await.expect("answers");
        assert!(matches!(fresh, Reservation::Fresh(slot, 2) if slot.id.0 == 4), "{fresh:?}");
    }

    pub(crate) async fn only_the_highest_claim_can_seed(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        let seed = |epoch| Seed { epoch, settled: MessageId(0), block_end: 10 };
        assert!(!port.seed(c, &seed(1)).await.expect("answers"), "nothing is claimed");
        assert!(port.begin_seed(c, 1).await.expect("answers"));
        assert!(port.begin_seed(c, 2).await.expect("answers"));
        assert!(!port.begin_seed(c, 1).await.expect("answers"));
        assert!(!port.seed(c, &seed(1)).await.expect("answers"), "overtaken");
        assert!(port.seed(c, &seed(2)).await.expect("answers"));
        assert!(!port.begin_seed(c, 3).await.expect("answers"), "there is a counter");
        port.forget(c, 1).await.expect("ignores a younger counter");
        assert!(port.progress(c).await.expect("answers").is_some());
        port.forget(c, 2).await.expect("forgets");
        assert_eq!(port.progress(c).await.expect("answers"), None);
    }

    pub(crate) async fn only_its_owner_ends_a_turn(place: impl Place<Port>) {
        const LIFE: std::time::Duration = std::time::Duration::from_secs(30);
        let port = place.open().await;
        let c = fresh();
        assert!(port.take_turn(c, 1, LIFE).await.expect("answers"));
        if !port.can_split() {
            return;
        }
        assert!(!port.take_turn(c, 2, LIFE).await.expect("answers"));
        port.end_turn(c, 2).await.expect("changes nothing");
        assert!(!port.take_turn(c, 2, LIFE).await.expect("answers"));
        port.end_turn(c, 1).await.expect("ends it");
        assert!(port.take_turn(c, 2, LIFE).await.expect("answers"));
    }

    pub(crate) async fn a_seed_remembers_uuids_as_committed(place: impl Place<Port>) {
        let port = place.open().await;
        let c = fresh();
        let r = request(c);
        let remembered = vec![Remembered { sender: r.sender, uuid: r.uuid, id: MessageId(5) }];
        assert!(port.begin_seed(c, 1).await.expect("answers"));
        assert!(!port.remember(c, 2, &remembered).await.expect("answers"), "that epoch has no claim");
        for _ in 0..2 {
            assert!(port.remember(c, 1, &remembered).await.expect("answers"));
        }
        let seed = Seed { epoch: 1, settled: MessageId(5), block_end: 10 };
        assert!(port.seed(c, &seed).await.expect("answers"));
        assert!(!port.remember(c, 1, &remembered).await.expect("answers"), "the counter is there");
        assert_eq!(port.reserve(&r).await.expect("answers"), Reservation::Committed(MessageId(5)));
        assert_eq!(reserve(&*port, &request(c)).await, 6);
    }

    pub(crate) async fn a_restart_never_gives_an_id_out_again(place: impl Place<Port>) {
        let c = {
            let port = place.open().await;
            let c = seeded(&*port, 0, 100).await;
            reserve(&*port, &request(c)).await;
            c
        };
        place.restart().await;
        match place.open().await.reserve(&request(c)).await.expect("answers") {
            Reservation::Unseeded => {}
            Reservation::Fresh(slot, _) => assert!(slot.id.0 > 1),
            other => panic!("unexpected {other:?}"),
        }
    }
}

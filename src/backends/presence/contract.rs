//! The promises of the presence store, as tests.

/// One test per promise of [`super::Presence`], for an implementation given as a `Place`.
macro_rules! presence_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::presence::contract::promises;
            the_first_beat_brings_online_and_the_next_does_not,
            coming_online_is_told_to_one_of_many,
            an_older_beat_changes_nothing,
            overdue_are_the_online_with_an_old_beat,
            a_beat_between_look_and_expire_keeps_online,
            a_user_is_declared_offline_once,
            a_beat_from_before_does_not_bring_back,
            a_batch_tells_apart_who_was_online,
        }
    };
}
pub(crate) use presence_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::presence::{Beat, Presence, PresenceRecord};
    use crate::protocol::UserId;
    use crate::runtime::clock;

    type Port = dyn Presence;

    fn beat(at_ms: u64) -> Beat {
        Beat { user: UserId(Uuid::new_v4().as_u64_pair().0 >> 2), at_ms }
    }

    fn later(beat: Beat, ms: u64) -> Beat {
        Beat { at_ms: beat.at_ms + ms, ..beat }
    }

    pub(crate) async fn the_first_beat_brings_online_and_the_next_does_not(place: impl Place<Port>) {
        let port = place.open().await;
        let b = beat(clock::unix_ms());
        assert_eq!(port.get(&[b.user]).await.expect("answers"), [PresenceRecord { online: false, last_beat_ms: 0 }]);
        assert_eq!(port.beat(&[b]).await.expect("takes"), [b]);
        assert_eq!(port.beat(&[later(b, 5)]).await.expect("takes"), []);
        let known = PresenceRecord { online: true, last_beat_ms: b.at_ms + 5 };
        assert_eq!(place.open().await.get(&[b.user]).await.expect("answers"), [known]);
    }

    pub(crate) async fn coming_online_is_told_to_one_of_many(place: impl Place<Port>) {
        let b = beat(clock::unix_ms());
        let tries = (0..16).map(|n| {
            let place = &place;
            async move { place.open().await.beat(&[later(b, n)]).await.expect("takes").len() }
        });
        assert_eq!(futures_util::future::join_all(tries).await.into_iter().sum::<usize>(), 1);
    }

    pub(crate) async fn an_older_beat_changes_nothing(place: impl Place<Port>) {
        let port = place.open().await;
        let b = beat(clock::unix_ms());
        port.beat(&[b]).await.expect("takes");
        port.beat(&[Beat { at_ms: b.at_ms - 100, ..b }]).await.expect("takes");
        assert_eq!(port.get(&[b.user]).await.expect("answers")[0].last_beat_ms, b.at_ms);
    }

    pub(crate) async fn overdue_are_the_online_with_an_old_beat(place: impl Place<Port>) {
        let port = place.open().await;
        let now = clock::unix_ms();
        let (old, young) = (beat(now - 31_000), beat(now));
        port.beat(&[old, young]).await.expect("takes");
        let overdue = port.overdue(now - 30_000, 100_000).await.expect("answers");
        assert!(overdue.contains(&old) && !overdue.contains(&young));
        assert!(port.expire(&old).await.expect("answers"));
        assert!(!port.overdue(now - 30_000, 100_000).await.expect("answers").contains(&old));
    }

    pub(crate) async fn a_beat_between_look_and_expire_keeps_online(place: impl Place<Port>) {
        let port = place.open().await;
        let old = beat(clock::unix_ms() - 31_000);
        port.beat(&[old]).await.expect("takes");
        port.beat(&[later(old, 31_000)]).await.expect("takes");
        assert!(!port.expire(&old).await.expect("answers"));
        assert!(port.get(&[old.user]).await.expect("answers")[0].online);
    }

    pub(crate) async fn a_user_is_declared_offline_once(place: impl Place<Port>) {
        let old = beat(clock::unix_ms() - 31_000);
        place.open().await.beat(&[old]).await.expect("takes");
        let tries = (0..8).map(|_| async { place.open().await.expire(&old).await.expect("answers") });
        let told = futures_util::future::join_all(tries).await.into_iter().filter(|told| *told).count();
        assert_eq!(told, 1);
        let port = place.open().await;
        assert!(!port.get(&[old.user]).await.expect("answers")[0].online);
        assert_eq!(port.beat(&[later(old, 40_000)]).await.expect("takes").len(), 1, "online again");
    }

    pub(crate) async fn a_beat_from_before_does_not_bring_back(place: impl Place<Port>) {
        let port = place.open().await;
        let old = beat(clock::unix_ms() - 31_000);
        port.beat(&[old]).await.expect("takes");
        assert!(port.expire(&old).await.expect("answers"));
        assert_eq!(port.beat(&[Beat { at_ms: old.at_ms - 100, ..old }]).await.expect("takes"), []);
        assert_eq!(port.beat(&[old]).await.expect("takes"), []);
        let known = PresenceRecord { online: false, last_beat_ms: old.at_ms };
        assert_eq!(place.open().await.get(&[old.user]).await.expect("answers"), [known]);
    }

    pub(crate) async fn a_batch_tells_apart_who_was_online(place: impl Place<Port>) {
        let port = place.open().await;
        let now = clock::unix_ms();
        let known: Vec<Beat> = (0..1_200).map(|_| beat(now)).collect();
        assert_eq!(port.beat(&known).await.expect("takes"), known);
        let news = [beat(now), beat(now)];
        let mut batch: Vec<Beat> = known.iter().map(|b| later(*b, 10)).collect();
        batch.insert(700, news[1]);
        batch.insert(3, news[0]);
        // Older than what is known, and the same user twice.
        batch.extend([Beat { at_ms: now - 5, ..known[0] }, later(news[0], 1)]);
        assert_eq!(port.beat(&batch).await.expect("takes"), news);
        let users: Vec<UserId> = [known[0].user, known[1_199].user, news[0].user, news[1].user].into();
        let beats = port.get(&users).await.expect("answers").into_iter().map(|record| record.last_beat_ms - now);
        let beats: Vec<u64> = beats.collect();
        assert_eq!(beats, [10, 10, 1, 0]);
    }
}

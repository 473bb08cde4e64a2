//! The promises of the presence store, as tests.

/// One test per promise of [`super::Presence`], for an implementation given as a `Place`.
macro_rules! presence_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::presence::contract::promises;
            the_first_beat_brings_online_and_the_next_does_not,
            a_probe_is_taken_again_and_again,
            coming_online_is_told_to_one_of_many,
            an_older_beat_changes_nothing,
            silent_are_the_online_with_an_old_beat,
            silent_users_are_listed_in_pages_that_name_each_once,
            a_beat_between_look_and_expire_keeps_online,
            a_user_is_declared_offline_once,
            a_beat_from_before_does_not_bring_back,
            a_batch_tells_apart_who_was_online,
            one_clock_dates_the_beats_of_all,
        }
    };
}
pub(crate) use presence_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use std::time::Duration;

    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::presence::{Beat, LastBeat, Presence, PresenceRecord};
    use crate::protocol::UserId;

    type Port = dyn Presence;

    const EVERYBODY: usize = 100_000;
    const SILENCE_MS: u64 = 30_000;

    /// A beat of somebody whom no other test knows.
    fn beat(age_ms: u64) -> Beat {
        Beat { user: UserId(Uuid::new_v4().as_u64_pair().0 >> 2), age_ms }
    }

    /// The same user, another age.
    fn aged(beat: Beat, age_ms: u64) -> Beat {
        Beat { age_ms, ..beat }
    }

    async fn record(port: &Port, user: UserId) -> PresenceRecord {
        port.get(&[user]).await.expect("answers")[0]
    }

    /// The last beat of a user who is silent.
    async fn silent(port: &Port, user: UserId) -> Option<LastBeat> {
        let silent = port.silent(SILENCE_MS, 0, EVERYBODY).await.expect("answers");
        silent.users.into_iter().find(|last| last.user == user)
    }

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn the_first_beat_brings_online_and_the_next_does_not(place: impl Place<Port>) {
        let port = place.open().await;
        let b = beat(50);
        assert_eq!(record(&*port, b.user).await, PresenceRecord { online: false, last_beat_ms: 0 });
        let came = port.beat(&[b]).await.expect("takes");
        assert_eq!(came.len(), 1);
        let known = PresenceRecord { online: true, last_beat_ms: came[0].at_ms };
        assert_eq!((came[0].user, record(&*port, b.user).await), (b.user, known));
        assert_eq!(port.beat(&[aged(b, 0)]).await.expect("takes"), []);
        let later = record(&*place.open().await, b.user).await;
        assert!(later.online && later.last_beat_ms >= came[0].at_ms + 50, "{later:?} after {came:?}");
    }

    pub(crate) async fn coming_online_is_told_to_one_of_many(place: impl Place<Port>) {
        let b = beat(100);
        let tries = (0..16).map(|n| {
            let place = &place;
            async move { place.open().await.beat(&[aged(b, n)]).await.expect("takes").len() }
        });
        assert_eq!(futures_util::future::join_all(tries).await.into_iter().sum::<usize>(), 1);
    }

    pub(crate) async fn an_older_beat_changes_nothing(place: impl Place<Port>) {
        let port = place.open().await;
        let b = beat(0);
        let came = port.beat(&[b]).await.expect("takes");
        port.beat(&[aged(b, 10_000)]).await.expect("takes");
        assert_eq!(record(&*port, b.user).await.last_beat_ms, came[0].at_ms);
    }

    pub(crate) async fn silent_are_the_online_with_an_old_beat(place: impl Place<Port>) {
        let port = place.open().await;
        let (old, young) = (beat(SILENCE_MS + 1_000), beat(0));
        let came = port.beat(&[old, young]).await.expect("takes");
        assert_eq!(came.len(), 2);
        assert_eq!(silent(&*port, young.user).await, None);
        let last = silent(&*port, old.user).await.expect("silent");
        assert_eq!(last, came[0]);
        let look = port.silent(SILENCE_MS, 0, EVERYBODY).await.expect("answers");
        assert!(look.now_ms >= last.at_ms + SILENCE_MS + 1_000, "{look:?}");
        assert_eq!(port.silent(SILENCE_MS, 0, EVERYBODY).await.expect("answers").life, look.life, "the same data");
        assert!(port.expire(&last).await.expect("answers"));
        assert_eq!(silent(&*port, old.user).await, None);
    }

    pub(crate) async fn silent_users_are_listed_in_pages_that_name_each_once(place: impl Place<Port>) {
        let port = place.open().await;
        // Of one age, too: their order is the engine's, and it is one.
        let old: Vec<Beat> = (0..7).map(|n| beat(SILENCE_MS + 1_000 + n / 3)).collect();
        port.beat(&old).await.expect("takes");
        let (mut listed, mut skip) = (Vec::new(), 0);
        loop {
            let page = port.silent(SILENCE_MS, skip, 3).await.expect("answers").users;
            assert!(page.len() <= 3, "{page:?}");
            skip += page.len();
            listed.extend(page.iter().map(|last| last.user));
            if page.len() < 3 {
                break;
            }
        }
        for known in &old {
            assert_eq!(listed.iter().filter(|user| **user == known.user).count(), 1, "{known:?} in {listed:?}");
        }
    }

    pub(crate) async fn a_beat_between_look_and_expire_keeps_online(place: impl Place<Port>) {
        let port = place.open().await;
        let old = beat(SILENCE_MS + 1_000);
        port.beat(&[old]).await.expect("takes");
        let last = silent(&*port, old.user).await.expect("silent");
        port.beat(&[aged(old, 0)]).await.expect("takes");
        assert!(!port.expire(&last).await.expect("answers"));
        assert!(record(&*port, old.user).await.online);
    }

    pub(crate) async fn a_user_is_declared_offline_once(place: impl Place<Port>) {
        let old = beat(SILENCE_MS + 1_000);
        let last = place.open().await.beat(&[old]).await.expect("takes")[0];
        let tries = (0..8).map(|_| async { place.open().await.expire(&last).await.expect("answers") });
        let told = futures_util::future::join_all(tries).await.into_iter().filter(|told| *told).count();
        assert_eq!(told, 1);
        let port = place.open().await;
        assert!(!record(&*port, old.user).await.online);
        assert_eq!(port.beat(&[aged(old, 0)]).await.expect("takes").len(), 1, "online again");
    }

    pub(crate) async fn a_beat_from_before_does_not_bring_back(place: impl Place<Port>) {
        let port = place.open().await;
        let old = beat(SILENCE_MS + 1_000);
        let last = port.beat(&[old]).await.expect("takes")[0];
        assert!(port.expire(&last).await.expect("answers"));
        assert_eq!(port.beat(&[aged(old, SILENCE_MS + 20_000)]).await.expect("takes"), []);
        let known = PresenceRecord { online: false, last_beat_ms: last.at_ms };
        assert_eq!(record(&*place.open().await, old.user).await, known);
    }

    pub(crate) async fn a_batch_tells_apart_who_was_online(place: impl Place<Port>) {
        let port = place.open().await;
        let users = |beats: &[LastBeat]| beats.iter().map(|beat| beat.user).collect::<Vec<_>>();
        let known: Vec<Beat> = (0..1_200).map(|_| beat(5_000)).collect();
        let came = port.beat(&known).await.expect("takes");
        assert_eq!(users(&came), known.iter().map(|beat| beat.user).collect::<Vec<_>>());
        let news = [beat(1_000), beat(1_000)];
        let mut batch: Vec<Beat> = known.iter().map(|b| aged(*b, 2_000)).collect();
        batch.insert(700, news[1]);
        batch.insert(3, news[0]);
        // Older than what is known, and the same user twice.
        batch.extend([aged(known[0], 20_000), aged(news[0], 0)]);
        let came_now = port.beat(&batch).await.expect("takes");
        assert_eq!(users(&came_now), news.map(|beat| beat.user));
        let last = record(&*port, known[0].user).await.last_beat_ms;
        assert!(last >= came[0].at_ms + 3_000, "{last} is not later than {:?}", came[0]);
        let twice = record(&*port, news[0].user).await.last_beat_ms;
        assert!(
            twice >= came_now[0].at_ms + 1_000,
            "{twice} is not the later of the two, {:?} was the first",
            came_now[0]
        );
    }

    pub(crate) async fn one_clock_dates_the_beats_of_all(place: impl Place<Port>) {
        let (port, another) = (place.open().await, place.open().await);
        let b = beat(0);
        port.beat(&[b]).await.expect("takes");
        tokio::time::sleep(Duration::from_millis(20)).await;
        another.beat(&[aged(b, 0)]).await.expect("takes");
        let before = record(&*port, b.user).await.last_beat_ms;
        // Of an age that makes it older than what is known, although it is sent later.
        another.beat(&[aged(b, 10_000)]).await.expect("takes");
        assert_eq!(record(&*port, b.user).await.last_beat_ms, before);
        let look = another.silent(0, 0, EVERYBODY).await.expect("answers");
        assert!(look.now_ms >= before && look.now_ms < before + 60_000, "{} and {before}", look.now_ms);
    }
}

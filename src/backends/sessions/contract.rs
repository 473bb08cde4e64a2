//! The promises of the session store, as tests.

/// One test per promise of [`super::Sessions`], for an implementation given as a `Place`.
macro_rules! sessions_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::sessions::contract::promises;
            a_claimed_session_is_found_by_another_handle,
            a_probe_is_taken_again_and_again,
            a_device_has_one_session_and_the_old_one_is_told,
            two_devices_are_two_sessions,
            an_old_servers_release_does_not_end_the_new_session,
            a_refresh_of_a_replaced_session_changes_nothing_and_tells,
            a_refresh_brings_back_what_the_store_forgot,
            a_claim_of_an_earlier_session_changes_nothing,
            of_sessions_that_the_store_forgot_the_last_one_is_kept_whichever_comes_first,
            the_store_tells_one_time_to_all,
            a_mark_is_found_by_who_looks_for_it_and_by_nobody_else,
            of_many_claims_one_is_left,
        }
    };
}
pub(crate) use sessions_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use std::sync::atomic::{AtomicU64, Ordering};

    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::sessions::{Claim, Session, Sessions};
    use crate::protocol::{SessionId, UserId};

    type Port = dyn Sessions;

    /// A session that is made behind all those before it.
    pub(crate) fn session(user: u64, device: &str, server: &str) -> Session {
        static MADE: AtomicU64 = AtomicU64::new(1);
        let made_ms = MADE.fetch_add(1, Ordering::Relaxed);
        Session {
            user: UserId(user),
            device: device.parse().expect("valid"),
            session: SessionId::made_at(made_ms, rand::random()),
            server: server.parse().expect("valid"),
        }
    }

    fn fresh() -> u64 {
        Uuid::new_v4().as_u64_pair().0 >> 2
    }

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn a_claimed_session_is_found_by_another_handle(place: impl Place<Port>) {
        let s = session(fresh(), "phone", "chat-1");
        assert_eq!(place.open().await.claim(&s).await.expect("claims"), Claim::Made(None));
        assert_eq!(place.open().await.lookup(&[s.user, UserId(fresh())]).await.expect("answers"), [s]);
    }

    pub(crate) async fn a_device_has_one_session_and_the_old_one_is_told(place: impl Place<Port>) {
        let port = place.open().await;
        let old = session(fresh(), "phone", "chat-1");
        let new = session(old.user.0, "phone", "chat-2");
        port.claim(&old).await.expect("claims");
        assert_eq!(port.claim(&new).await.expect("claims"), Claim::Made(Some(old.clone())));
        assert_eq!(port.lookup(&[old.user]).await.expect("answers"), [new]);
    }

    pub(crate) async fn two_devices_are_two_sessions(place: impl Place<Port>) {
        let port = place.open().await;
        let user = fresh();
        port.claim(&session(user, "phone", "chat-1")).await.expect("claims");
        port.claim(&session(user, "laptop", "chat-2")).await.expect("claims");
        assert_eq!(port.lookup(&[UserId(user)]).await.expect("answers").len(), 2);
    }

    pub(crate) async fn an_old_servers_release_does_not_end_the_new_session(place: impl Place<Port>) {
        let port = place.open().await;
        let old = session(fresh(), "phone", "chat-1");
        let new = session(old.user.0, "phone", "chat-2");
        port.claim(&old).await.expect("claims");
        port.claim(&new).await.expect("claims");
        assert!(!port.release(&old).await.expect("answers"));
        assert_eq!(port.lookup(&[old.user]).await.expect("answers"), std::slice::from_ref(&new));
        assert!(port.release(&new).await.expect("answers"));
        assert!(!port.release(&new).await.expect("answers"));
        assert_eq!(port.lookup(&[old.user]).await.expect("answers"), []);
    }

    pub(crate) async fn a_refresh_of_a_replaced_session_changes_nothing_and_tells(place: impl Place<Port>) {
        let port = place.open().await;
        let old = session(fresh(), "phone", "chat-1");
        let new = session(old.user.0, "phone", "chat-2");
        port.claim(&old).await.expect("claims");
        port.claim(&new).await.expect("claims");
        let replaced = port.refresh(&[old.clone(), new.clone()]).await.expect("answers");
        assert_eq!(replaced, [old.session]);
        assert_eq!(port.lookup(&[old.user]).await.expect("answers"), [new]);
    }

    pub(crate) async fn a_refresh_brings_back_what_the_store_forgot(place: impl Place<Port>) {
        let port = place.open().await;
        let s = session(fresh(), "phone", "chat-1");
        port.refresh(std::slice::from_ref(&s)).await.expect("answers");
        assert_eq!(port.lookup(&[s.user]).await.expect("answers"), [s]);
    }

    pub(crate) async fn a_claim_of_an_earlier_session_changes_nothing(place: impl Place<Port>) {
        let port = place.open().await;
        let early = session(fresh(), "phone", "chat-1");
        let late = session(early.user.0, "phone", "chat-2");
        port.claim(&late).await.expect("claims");
        assert_eq!(port.claim(&early).await.expect("answers"), Claim::Late(late.session));
        assert_eq!(port.lookup(&[early.user]).await.expect("answers"), [late]);
    }

    pub(crate) async fn of_sessions_that_the_store_forgot_the_last_one_is_kept_whichever_comes_first(
        place: impl Place<Port>,
    ) {
        let port = place.open().await;
        for late_is_first in [false, true] {
            let early = session(fresh(), "phone", "chat-1");
            let late = session(early.user.0, "phone", "chat-2");
            let (first, second) = if late_is_first { (&late, &early) } else { (&early, &late) };
            assert_eq!(port.refresh(std::slice::from_ref(first)).await.expect("answers"), []);
            let replaced = port.refresh(std::slice::from_ref(second)).await.expect("answers");
            assert_eq!(replaced.is_empty(), !late_is_first, "{replaced:?}");
            assert_eq!(port.refresh(std::slice::from_ref(&early)).await.expect("answers"), [early.session]);
            assert_eq!(port.lookup(&[early.user]).await.expect("answers"), [late]);
        }
    }

    pub(crate) async fn the_store_tells_one_time_to_all(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        let mut told = Vec::new();
        for port in [&here, &there, &here] {
            told.push(port.now_ms().await.expect("answers"));
        }
        assert!(told.is_sorted() && told[0] > 1_600_000_000_000, "{told:?}");
    }

    pub(crate) async fn a_mark_is_found_by_who_looks_for_it_and_by_nobody_else(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        here.enter_mark(one).await.expect("enters");
        here.enter_mark(one).await.expect("enters again");
        for port in [&here, &there] {
            assert!(port.has_mark(one).await.expect("answers"));
            assert!(!port.has_mark(other).await.expect("answers"), "nobody entered it");
        }
    }

    pub(crate) async fn of_many_claims_one_is_left(place: impl Place<Port>) {
        let user = fresh();
        let claims = (0..16).map(|n| {
            let mut s = session(user, "phone", &format!("chat-{n}"));
            let place = &place;
            async move {
                let port = place.open().await;
                loop {
                    match port.claim(&s).await.expect("claims") {
                        Claim::Made(replaced) => return replaced.is_some(),
                        Claim::Late(known) => s.session = SessionId::made_behind(known, 0, rand::random()),
                    }
                }
            }
        });
        let replaced = futures_util::future::join_all(claims).await.into_iter().filter(|r| *r).count();
        assert_eq!(replaced, 15);
        assert_eq!(place.open().await.lookup(&[UserId(user)]).await.expect("answers").len(), 1);
    }
}

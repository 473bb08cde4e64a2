//! The promises of the registry, as tests.

/// One test per promise of [`super::Registry`], for an implementation given as a `Place`.
macro_rules! registry_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::registry::contract::promises;
            an_announced_server_is_listed_under_its_role,
            a_refresh_brings_new_figures,
            a_withdrawn_server_is_gone_but_its_successor_is_not,
            an_older_epoch_does_not_replace_a_younger_one,
            a_silent_server_is_gone_after_its_time_to_live,
        }
    };
}
pub(crate) use registry_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::registry::{ENTRY_TTL, Registry, Role, ServerEntry};

    type Port = dyn Registry;

    pub(crate) fn entry(epoch: u64, load: u64) -> ServerEntry {
        ServerEntry {
            name: format!("chat-{}", Uuid::new_v4().simple()).parse().expect("valid"),
            role: Role::Chat,
            address: "127.0.0.1:1".parse().expect("valid"),
            peer: None,
            load,
            seats: 7,
            draining: false,
            epoch,
        }
    }

    async fn find(port: &Port, wanted: &ServerEntry) -> Option<ServerEntry> {
        port.list(wanted.role).await.expect("lists").into_iter().find(|e| e.name == wanted.name)
    }

    pub(crate) async fn an_announced_server_is_listed_under_its_role(place: impl Place<Port>) {
        let e = entry(1, 0);
        place.open().await.announce(&e).await.expect("announces");
        let port = place.open().await;
        assert_eq!(find(&*port, &e).await.as_ref(), Some(&e));
        assert_eq!(find(&*port, &ServerEntry { role: Role::Api, ..e }).await, None);
    }

    pub(crate) async fn a_refresh_brings_new_figures(place: impl Place<Port>) {
        let port = place.open().await;
        let e = entry(1, 0);
        port.announce(&e).await.expect("announces");
        let busy = ServerEntry { load: 9, draining: true, ..e };
        port.announce(&busy).await.expect("announces");
        assert_eq!(find(&*port, &busy).await.as_ref(), Some(&busy));
    }

    pub(crate) async fn a_withdrawn_server_is_gone_but_its_successor_is_not(place: impl Place<Port>) {
        let port = place.open().await;
        let old = entry(1, 0);
        let new = ServerEntry { epoch: 2, ..old.clone() };
        port.announce(&old).await.expect("announces");
        port.announce(&new).await.expect("announces");
        port.withdraw(&old.name, 1).await.expect("answers");
        assert_eq!(find(&*port, &new).await.as_ref(), Some(&new));
        port.withdraw(&new.name, 2).await.expect("withdraws");
        assert_eq!(find(&*port, &new).await, None);
    }

    pub(crate) async fn an_older_epoch_does_not_replace_a_younger_one(place: impl Place<Port>) {
        let port = place.open().await;
        let young = entry(2, 5);
        port.announce(&young).await.expect("announces");
        port.announce(&ServerEntry { epoch: 1, load: 0, ..young.clone() }).await.expect("answers");
        assert_eq!(find(&*port, &young).await.as_ref(), Some(&young));
    }

    pub(crate) async fn a_silent_server_is_gone_after_its_time_to_live(place: impl Place<Port>) {
        let port = place.open().await;
        let e = entry(1, 0);
        port.announce(&e).await.expect("announces");
        tokio::time::sleep(ENTRY_TTL / 2).await;
        assert!(find(&*port, &e).await.is_some());
        // An engine may take its time to notice; twice the life is too long.
        tokio::time::timeout(ENTRY_TTL * 3 / 2, async {
            while find(&*port, &e).await.is_some() {
                tokio::time::sleep(ENTRY_TTL / 20).await;
            }
        })
        .await
        .expect("gone in time");
    }
}

//! The promises of the directory, as tests.

/// One test per promise of [`super::Directory`], for an implementation given as a `Place`.
macro_rules! directory_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::directory::contract::promises;
            a_user_is_found_by_name_and_by_id,
            a_name_is_taken_once_by_one_of_many,
            many_users_are_added_together_or_not_at_all,
            friendship_has_two_directions,
            a_pair_has_one_direct_conversation,
            members_join_once_and_leave_at_once_for_every_handle,
            conversations_are_listed_in_pages,
            a_large_group_can_be_made,
            a_receipt_never_goes_back,
            a_revoked_token_stays_revoked,
            a_token_of_nobody_is_told_apart,
            who_logged_out_lately_is_listed_and_what_expired_is_purged,
        }
    };
}
pub(crate) use directory_contract;

/// The bodies of the tests.
pub(crate) mod promises {
    use uuid::Uuid;

    use crate::backends::contract::Place;
    use crate::backends::directory::{Directory, NewConversationRow, TokenStanding};
    use crate::backends::error::ErrorKind;
    use crate::protocol::api::{ConversationKind, Receipt};
    use crate::protocol::frames::ReceiptStatus;
    use crate::protocol::{ConversationId, MessageId, UserId};
    use crate::runtime::clock;

    type Port = dyn Directory;

    fn name() -> String {
        format!("user-{}", Uuid::new_v4().simple())
    }

    async fn user(port: &Port) -> UserId {
        port.add_user(&name(), "hash").await.expect("adds")
    }

    async fn group(port: &Port, members: &[UserId]) -> ConversationId {
        let new = NewConversationRow {
            kind: ConversationKind::Group,
            name: "a group".to_owned(),
            owner: members[0],
            members: members.to_vec(),
        };
        port.add_conversation(&new).await.expect("adds")
    }

    pub(crate) async fn a_user_is_found_by_name_and_by_id(place: impl Place<Port>) {
        let port = place.open().await;
        let name = name();
        let id = port.add_user(&name, "hash").await.expect("adds");
        let found = port.credentials(&name).await.expect("reads").expect("is there");
        assert_eq!((found.user, found.password_hash.as_str()), (id, "hash"));
        port.set_display_name(id, "Zoë").await.expect("sets");
        let other = place.open().await;
        let profile = other.find_user(&name).await.expect("reads").expect("is there");
        assert_eq!((profile.user, profile.display_name.as_str()), (id, "Zoë"));
        assert_eq!(other.profiles(&[id, UserId(u64::MAX >> 1)]).await.expect("reads"), [profile]);
        assert_eq!(other.credentials("nobody").await.expect("reads"), None);
    }

    pub(crate) async fn many_users_are_added_together_or_not_at_all(place: impl Place<Port>) {
        let port = place.open().await;
        // In an order that is not that of their names.
        let users: Vec<(String, String)> =
            (0..250).rev().map(|n| (format!("{n:03}-{}", name()), format!("hash-{n}"))).collect();
        let ids = port.add_users(&users).await.expect("adds");
        assert_eq!(ids.len(), users.len());
        for n in [0, 99, 100, 249] {
            let found = port.credentials(&users[n].0).await.expect("reads").expect("is there");
            assert_eq!((found.user, &found.password_hash), (ids[n], &users[n].1));
        }
        let fresh = (name(), "hash".to_owned());
        let refused = port.add_users(&[fresh.clone(), users[7].clone()]).await.expect_err("one is taken");
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert_eq!(port.credentials(&fresh.0).await.expect("reads"), None, "the other one was not added either");
        assert_eq!(port.add_users(&[]).await.expect("nothing to do"), []);
    }

    pub(crate) async fn a_name_is_taken_once_by_one_of_many(place: impl Place<Port>) {
        let name = name();
        let port = place.open().await;
        let tries = futures_util::future::join_all((0..8).map(|_| port.add_user(&name, "hash"))).await;
        assert_eq!(tries.iter().filter(|t| t.is_ok()).count(), 1);
        assert!(tries.iter().filter_map(|t| t.as_ref().err()).all(|e| e.kind == ErrorKind::Conflict));
    }

    pub(crate) async fn friendship_has_two_directions(place: impl Place<Port>) {
        let port = place.open().await;
        let (a, b) = (user(&*port).await, user(&*port).await);
        assert!(port.set_friends(a, b, true).await.expect("sets"));
        assert!(!port.set_friends(b, a, true).await.expect("sets"));
        assert_eq!(port.friends(a).await.expect("reads"), [b]);
        assert_eq!(port.friends(b).await.expect("reads"), [a]);
        assert!(port.set_friends(b, a, false).await.expect("sets"));
        assert_eq!(port.friends(a).await.expect("reads"), []);
    }

    pub(crate) async fn a_pair_has_one_direct_conversation(place: impl Place<Port>) {
        let port = place.open().await;
        let (a, b) = (user(&*port).await, user(&*port).await);
        let new = |owner, members: [UserId; 2]| NewConversationRow {
            kind: ConversationKind::Direct,
            name: String::new(),
            owner,
            members: members.to_vec(),
        };
        let (from_a, from_b) = (new(a, [a, b]), new(b, [b, a]));
        let (one, two) = tokio::join!(port.add_conversation(&from_a), port.add_conversation(&from_b));
        assert_eq!(one.expect("adds"), two.expect("finds"));
    }

    pub(crate) async fn members_join_once_and_leave_at_once_for_every_handle(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        let (a, b, c) = (user(&*here).await, user(&*here).await, user(&*here).await);
        let group = group(&*here, &[a, b]).await;
        assert_eq!(there.members(group).await.expect("reads"), [a, b]);
        assert_eq!(there.add_members(group, &[b, c]).await.expect("adds"), 1);
        assert_eq!(here.members(group).await.expect("reads"), [a, b, c]);
        assert!(here.remove_member(group, b).await.expect("removes"));
        assert!(!here.remove_member(group, b).await.expect("answers"));
        assert_eq!(there.members(group).await.expect("reads"), [a, c]);
        assert!(there.is_member(group, a).await.expect("reads") && !there.is_member(group, b).await.expect("reads"));
        assert_eq!(there.conversation(group).await.expect("reads").expect("is there").members, 2);
    }

    pub(crate) async fn conversations_are_listed_in_pages(place: impl Place<Port>) {
        let port = place.open().await;
        let (a, b) = (user(&*port).await, user(&*port).await);
        let mut groups = Vec::new();
        for _ in 0..3 {
            groups.push(group(&*port, &[a, b]).await);
        }
        let first = port.conversations_of(b, ConversationId(0), 2).await.expect("reads");
        assert_eq!(first.iter().map(|c| c.conversation).collect::<Vec<_>>(), groups[..2]);
        let rest = port.conversations_of(b, groups[1], 2).await.expect("reads");
        assert_eq!(rest.iter().map(|c| c.conversation).collect::<Vec<_>>(), groups[2..]);
        assert_eq!((rest[0].owner, rest[0].members), (a, 2));
    }

    pub(crate) async fn a_large_group_can_be_made(place: impl Place<Port>) {
        let port = place.open().await;
        let members: Vec<UserId> = (1..=12_000).map(|n| UserId(n + 1_000_000)).collect();
        let group = group(&*port, &members).await;
        assert_eq!(port.members(group).await.expect("reads"), members);
    }

    pub(crate) async fn a_receipt_never_goes_back(place: impl Place<Port>) {
        let port = place.open().await;
        let a = user(&*port).await;
        let group = group(&*port, &[a]).await;
        let receipt = |upto| Receipt { user: a, status: ReceiptStatus::Read, upto: MessageId(upto) };
        for upto in [5, 9, 7] {
            port.raise_receipt(group, &receipt(upto)).await.expect("raises");
        }
        assert_eq!(port.receipts(group).await.expect("reads"), [receipt(9)]);
    }

    pub(crate) async fn a_revoked_token_stays_revoked(place: impl Place<Port>) {
        let token = Uuid::new_v4();
        let port = place.open().await;
        let user = user(&*port).await;
        assert_eq!(port.token_standing(user, token).await.expect("reads"), TokenStanding::Good);
        port.revoke_token(token, 4_000_000_000).await.expect("revokes");
        port.revoke_token(token, 4_000_000_000).await.expect("revokes again");
        let other = place.open().await;
        assert_eq!(other.token_standing(user, token).await.expect("reads"), TokenStanding::Revoked);
        assert_eq!(other.token_standing(user, Uuid::new_v4()).await.expect("reads"), TokenStanding::Good);
    }

    pub(crate) async fn a_token_of_nobody_is_told_apart(place: impl Place<Port>) {
        let port = place.open().await;
        let nobody = UserId(u64::MAX >> 2);
        assert_eq!(port.token_standing(nobody, Uuid::new_v4()).await.expect("reads"), TokenStanding::NoSuchUser);
    }

    pub(crate) async fn who_logged_out_lately_is_listed_and_what_expired_is_purged(place: impl Place<Port>) {
        let port = place.open().await;
        let user = user(&*port).await;
        let (long, expired) = (Uuid::new_v4(), Uuid::new_v4());
        port.revoke_token(long, 4_000_000_000).await.expect("revokes");
        port.revoke_token(expired, 1).await.expect("revokes");
        let lately_expired = Uuid::new_v4();
        port.revoke_token(lately_expired, clock::unix_ms() / 1_000 - 60).await.expect("revokes");
        let lately = place.open().await.revoked_within(30).await.expect("reads");
        assert!(lately.contains(&long) && lately.contains(&expired) && !lately.contains(&Uuid::new_v4()));
        assert!(port.purge_revoked().await.expect("purges") >= 1);
        let left = port.revoked_within(30).await.expect("reads");
        assert!(!left.contains(&expired) && left.contains(&lately_expired), "a server's clock may be behind");
        assert_eq!(port.token_standing(user, long).await.expect("reads"), TokenStanding::Revoked);
    }
}

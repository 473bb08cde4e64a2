//! The promises of the directory, as tests.

/// One test per promise of [`super::Directory`], for an implementation given as a `Place`.
macro_rules! directory_contract {
    ($place:expr $(, ignore = $needs:literal)?) => {
        $crate::backends::contract::contract_tests! { $place $(, ignore = $needs)?; $crate::backends::directory::contract::promises;
            a_user_is_found_by_name_and_by_id,
            a_probe_is_taken_again_and_again,
            a_name_is_taken_once_by_one_of_many,
            many_users_are_added_together_or_not_at_all,
            friendship_has_two_directions,
            a_pair_has_one_direct_conversation,
            members_join_once_and_leave_at_once_for_every_handle,
            conversations_are_listed_in_pages,
            a_large_group_can_be_made,
            an_audience_is_listed_up_to_a_limit_and_members_are_found_by_key,
            a_receipt_never_goes_back,
            of_many_who_raise_a_receipt_the_highest_stays,
            hostile_texts_are_kept_as_they_are_or_refused,
            names_differ_when_a_byte_differs,
            ids_that_nothing_can_have_are_those_of_nobody,
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
    use crate::backends::directory::{Audience, Directory, NewConversationRow, NewUser, TokenStanding};
    use crate::backends::error::ErrorKind;
    use crate::protocol::api::{ConversationKind, Receipt};
    use crate::protocol::frames::ReceiptStatus;
    use crate::protocol::limits::{MEMBERS_COUNTED_MAX, MEMBERS_LISTED_MAX};
    use crate::protocol::{ConversationId, MessageId, UserId};
    use crate::runtime::clock;

    type Port = dyn Directory;

    fn name() -> String {
        format!("user-{}", Uuid::new_v4().simple())
    }

    fn new(name: &str) -> NewUser {
        NewUser { name: name.to_owned(), display_name: name.to_owned(), password_hash: "hash".to_owned() }
    }

    async fn user(port: &Port) -> UserId {
        port.add_user(&new(&name())).await.expect("adds")
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

    pub(crate) async fn a_probe_is_taken_again_and_again(place: impl Place<Port>) {
        let (here, there) = (place.open().await, place.open().await);
        for port in [&here, &there, &here] {
            port.probe().await.expect("is taken");
        }
    }

    pub(crate) async fn a_user_is_found_by_name_and_by_id(place: impl Place<Port>) {
        let port = place.open().await;
        let name = name();
        let id = port.add_user(&NewUser { display_name: "Zoe".to_owned(), ..new(&name) }).await.expect("adds");
        let found = port.credentials(&name).await.expect("reads").expect("is there");
        assert_eq!((found.user, found.password_hash.as_str()), (id, "hash"));
        assert_eq!(port.find_user(&name).await.expect("reads").expect("is there").display_name, "Zoe");
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
        let user = |n| NewUser { password_hash: format!("hash-{n}"), ..new(&format!("{n:03}-{}", name())) };
        let users: Vec<NewUser> = (0..250).rev().map(user).collect();
        let ids = port.add_users(&users).await.expect("adds");
        assert_eq!(ids.len(), users.len());
        for n in [0, 99, 100, 249] {
            let found = port.credentials(&users[n].name).await.expect("reads").expect("is there");
            assert_eq!((found.user, &found.password_hash), (ids[n], &users[n].password_hash));
        }
        let fresh = new(&name());
        let refused = port.add_users(&[fresh.clone(), users[7].clone()]).await.expect_err("one is taken");
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert_eq!(port.credentials(&fresh.name).await.expect("reads"), None, "the other one was not added either");
        assert_eq!(port.add_users(&[]).await.expect("nothing to do"), []);
    }

    pub(crate) async fn a_name_is_taken_once_by_one_of_many(place: impl Place<Port>) {
        let new = new(&name());
        let port = place.open().await;
        let tries = futures_util::future::join_all((0..8).map(|_| port.add_user(&new))).await;
        assert_eq!(tries.iter().filter(|t| t.is_ok()).count(), 1);
        assert!(tries.iter().filter_map(|t| t.as_ref().err()).all(|e| e.kind == ErrorKind::Conflict));
    }

    pub(crate) async fn friendship_has_two_directions(place: impl Place<Port>) {
        let port = place.open().await;
        let (a, b) = (user(&*port).await, user(&*port).await);
        assert!(port.set_friends(a, b, true).await.expect("sets"));
        assert!(!port.set_friends(b, a, true).await.expect("sets"));
        assert_eq!(port.friends(a).await.expect("reads"), [b]);
        let c = user(&*port).await;
        assert!(port.set_friends(a, c, true).await.expect("sets"));
        let counts = [port.friend_count(a, 9).await, port.friend_count(a, 1).await, port.friend_count(c, 9).await];
        assert_eq!(counts.map(|count| count.expect("counts")), [2, 1, 1]);
        let are = [port.are_friends(a, c).await, port.are_friends(c, a).await, port.are_friends(b, c).await];
        assert_eq!(are.map(|are| are.expect("reads")), [true, true, false]);
        assert!(port.set_friends(a, c, false).await.expect("sets"));
        assert!(!port.are_friends(c, a).await.expect("reads"));
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
        assert_eq!(there.members(group, UserId(0), 100).await.expect("reads"), [a, b]);
        assert_eq!(there.add_members(group, &[b, c]).await.expect("adds"), 1);
        assert_eq!(here.members(group, UserId(0), 100).await.expect("reads"), [a, b, c]);
        assert!(here.remove_member(group, b).await.expect("removes"));
        assert!(!here.remove_member(group, b).await.expect("answers"));
        assert_eq!(there.members(group, UserId(0), 100).await.expect("reads"), [a, c]);
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
        assert_eq!(port.members(group, UserId(0), 20_000).await.expect("reads"), members);
        let counted = port.conversation(group).await.expect("reads").expect("is there").members;
        assert_eq!(counted, MEMBERS_COUNTED_MAX as u64, "no further");
        let listed = port.conversations_of(members[0], ConversationId(group.0 - 1), 1).await.expect("reads");
        assert_eq!(listed[0].members, MEMBERS_LISTED_MAX as u64, "a list has many of them");
    }

    pub(crate) async fn an_audience_is_listed_up_to_a_limit_and_members_are_found_by_key(place: impl Place<Port>) {
        let port = place.open().await;
        let mut users = Vec::new();
        for _ in 0..4 {
            users.push(user(&*port).await);
        }
        let group = group(&*port, &users[..3]).await;
        let audience = async |most| port.audience(group, most).await.expect("reads").expect("is there");
        assert_eq!(audience(3).await, Audience { kind: ConversationKind::Group, users: Some(users[..3].to_vec()) });
        assert_eq!(audience(2).await, Audience { kind: ConversationKind::Group, users: None });
        assert_eq!(
            port.members_among(group, &[users[3], users[2], users[0]]).await.expect("reads"),
            [users[0], users[2]]
        );
        assert_eq!(port.members_among(group, &[]).await.expect("reads"), []);
        assert_eq!(port.members(group, users[0], 1).await.expect("reads"), [users[1]]);
        assert_eq!(port.conversation_ids_of(users[1], ConversationId(0), 10).await.expect("reads"), [group]);
        assert_eq!(port.conversation_ids_of(users[1], group, 10).await.expect("reads"), []);
        for user in &users[..3] {
            assert!(port.remove_member(group, *user).await.expect("removes"));
        }
        assert_eq!(audience(2).await.users, Some(Vec::new()), "everybody has left, and it is there");
        assert_eq!(port.audience(ConversationId(u64::MAX), 2).await.expect("reads"), None);
    }

    pub(crate) async fn a_receipt_never_goes_back(place: impl Place<Port>) {
        let port = place.open().await;
        let a = user(&*port).await;
        let group = group(&*port, &[a]).await;
        let receipt = |upto| Receipt { user: a, status: ReceiptStatus::Read, upto: MessageId(upto) };
        for (upto, rises) in [(5, true), (9, true), (7, false), (9, false)] {
            assert_eq!(port.raise_receipt(group, &receipt(upto)).await.expect("raises"), rises, "{upto}");
        }
        assert_eq!(port.receipts(group, UserId(0), 10).await.expect("reads"), [receipt(9)]);
        let later = UserId(a.0 + 1);
        port.raise_receipt(group, &Receipt { user: later, ..receipt(3) }).await.expect("raises");
        assert_eq!(port.receipts(group, UserId(0), 1).await.expect("reads"), [receipt(9)], "a page");
        assert_eq!(port.receipts(group, a, 10).await.expect("reads"), [Receipt { user: later, ..receipt(3) }]);
        assert_eq!(port.receipts(group, later, 10).await.expect("reads"), []);
    }

    pub(crate) async fn of_many_who_raise_a_receipt_the_highest_stays(place: impl Place<Port>) {
        let port = place.open().await;
        let a = user(&*port).await;
        let group = group(&*port, &[a]).await;
        let receipt = |upto| Receipt { user: a, status: ReceiptStatus::Delivered, upto: MessageId(upto) };
        let all: Vec<Receipt> = (1..=12).map(receipt).collect();
        let raised = futures_util::future::join_all(all.iter().map(|receipt| port.raise_receipt(group, receipt))).await;
        assert!(raised.into_iter().all(|raised| raised.is_ok()));
        assert_eq!(port.receipts(group, UserId(0), 10).await.expect("reads"), [receipt(12)]);
    }

    pub(crate) async fn hostile_texts_are_kept_as_they_are_or_refused(place: impl Place<Port>) {
        let port = place.open().await;
        let id = user(&*port).await;
        let longest = "\u{10348}".repeat(128);
        for text in ["'; DROP TABLE users; --", "\"?\" $1 ? %s \\", "\u{202e}abc\u{7f}", "a\u{308}", "", " ", &longest]
        {
            port.set_display_name(id, text).await.expect("takes it");
            assert_eq!(port.profiles(&[id]).await.expect("reads")[0].display_name, text);
            let conversation = NewConversationRow {
                kind: ConversationKind::Group,
                name: text.to_owned(),
                owner: id,
                members: vec![id],
            };
            let group = port.add_conversation(&conversation).await.expect("takes it");
            assert_eq!(port.conversation(group).await.expect("reads").expect("is there").name, text);
            assert_eq!(port.find_user(text).await.expect("reads"), None);
            assert_eq!(port.credentials(text).await.expect("reads"), None);
        }
        let with_nul = "a\0b";
        let named = NewConversationRow {
            kind: ConversationKind::Group,
            name: with_nul.to_owned(),
            owner: id,
            members: vec![id],
        };
        let refusals = [
            port.add_user(&new(with_nul)).await.err(),
            port.add_users(&[new(with_nul)]).await.err(),
            port.credentials(with_nul).await.err(),
            port.find_user(with_nul).await.err(),
            port.set_display_name(id, with_nul).await.err(),
            port.add_conversation(&named).await.err(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.expect("refused").kind, ErrorKind::Rejected);
        }
    }

    pub(crate) async fn names_differ_when_a_byte_differs(place: impl Place<Port>) {
        let port = place.open().await;
        let name = name();
        port.add_user(&new(&name)).await.expect("adds");
        for other in [format!("{name} "), name.to_uppercase(), format!("{name}\u{301}"), format!(" {name}")] {
            assert_eq!(port.credentials(&other).await.expect("reads"), None, "{other:?}");
            assert_eq!(port.find_user(&other).await.expect("reads"), None, "{other:?}");
        }
        port.add_user(&new(&name.to_uppercase())).await.expect("is another name");
    }

    pub(crate) async fn ids_that_nothing_can_have_are_those_of_nobody(place: impl Place<Port>) {
        let port = place.open().await;
        let a = user(&*port).await;
        let group = group(&*port, &[a]).await;
        for beyond in [u64::MAX, 1 << 63, i64::MAX as u64] {
            let (no_conversation, nobody) = (ConversationId(beyond), UserId(beyond));
            assert_eq!(port.conversations_of(a, no_conversation, 10).await.expect("reads"), [], "{beyond}");
            assert_eq!(port.conversation(no_conversation).await.expect("reads"), None);
            assert_eq!(port.profiles(&[nobody]).await.expect("reads"), []);
            assert_eq!(port.members(no_conversation, UserId(0), 10).await.expect("reads"), []);
            assert!(!port.is_member(no_conversation, a).await.expect("reads"));
            assert!(!port.is_member(group, nobody).await.expect("reads"));
            assert!(!port.remove_member(group, nobody).await.expect("answers"));
            assert_eq!(port.token_standing(nobody, Uuid::new_v4()).await.expect("reads"), TokenStanding::NoSuchUser);
        }
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

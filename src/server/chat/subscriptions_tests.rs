//! Tests of subscriptions.

use futures_util::FutureExt;

use super::super::bench::{Bench, written};
use super::*;
use crate::protocol::frames::Deliver;

const fn heads(conversation: ConversationId) -> SubscribeFrame {
    SubscribeFrame { conversation, deliver: Deliver::Heads }
}

#[tokio::test]
async fn who_is_no_member_any_more_loses_the_subscription() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 2 }>().await;
    let channel = bench.group(&users).await;
    let [stays, leaves, never] = [0, 1, 2].map(|n| bench.enter(users[n]));
    for connection in [&stays, &leaves] {
        subscriptions.subscribe(connection, heads(channel)).await.expect("a member");
    }
    bench.deps.backends.directory.remove_member(channel, leaves.user).await.expect("removes");
    bench.shared.members.invalidate(channel);
    subscriptions.members_changed(channel, users.len() as u64 - 1).await.expect("reads");
    assert!(subscriptions.has(channel, stays.user) && !subscriptions.has(channel, leaves.user));
    assert!(leaves.subscriptions().is_empty());
    let refused = subscriptions.subscribe(&leaves, heads(channel)).await.expect_err("not a member");
    assert_eq!(refused.code, ErrorCode::NotAMember);
    // The conversation may have grown with the change: a member that is connected is subscribed and told, once.
    let told = ServerFrame::Conversation(ConversationChangeFrame { conversation: channel, large: true });
    assert_eq!((written(&never).0, written(&leaves).0), (vec![told], Vec::new()));
    subscriptions.remove(&never, channel).await;
    subscriptions.members_changed(channel, users.len() as u64).await.expect("reads");
    assert!(!subscriptions.has(channel, never.user), "it did not want to");
}

#[tokio::test]
async fn members_of_a_conversation_that_has_grown_who_are_not_subscribed_are_counted() {
    const MEMBERS: usize = FANOUT_ON_WRITE_MEMBERS_MAX + 2;
    let bench = Bench::new().await;
    let mut users = bench.users::<MEMBERS>().await;
    users.sort_unstable();
    let connections = [0, MEMBERS - 1].map(|n| bench.enter(users[n]));
    for (most, are_subscribed, cut_off) in [(MEMBERS, [true, true], 0), (MEMBERS - 1, [true, false], 1)] {
        let mut subscriptions = bench.subscriptions();
        Arc::get_mut(&mut subscriptions).expect("nobody else has it").grown_members_max = most;
        let group = bench.group(&users).await;
        subscriptions.members_changed(group, MEMBERS as u64).await.expect("reads");
        assert_eq!([0, 1].map(|n| subscriptions.has(group, connections[n].user)), are_subscribed);
        assert_eq!(bench.deps.metrics.counted(Counter::GrownCutOff), cut_off);
    }
}

#[tokio::test]
async fn what_could_not_be_read_is_checked_again_whatever_number_was_told() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 2 }>().await;
    let group = bench.group(&users).await;
    let connection = bench.enter(users[0]);
    // It was told of a few members, could not be read, and has many by now.
    subscriptions.check_later(group);
    subscriptions.check_again().await;
    assert!(subscriptions.has(group, connection.user));
}

#[tokio::test]
async fn what_a_client_asked_for_is_left_when_a_server_learns_that_the_channel_is_large() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 1 }>().await;
    let channel = bench.group(&users).await;
    let connection = bench.enter(users[0]);
    let asked = SubscribeFrame { conversation: channel, deliver: Deliver::Messages };
    subscriptions.subscribe(&connection, asked).await.expect("a member");
    subscriptions.members_changed(channel, users.len() as u64).await.expect("reads");
    assert_eq!(subscriptions.of(channel)[0].wants, Deliver::Messages);
    assert_eq!(written(&connection).0, [], "it knows");
}

#[tokio::test]
async fn who_was_removed_a_moment_ago_does_not_subscribe_by_a_cached_membership() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 1 }>().await;
    let channel = bench.group(&users).await;
    let connection = bench.enter(users[0]);
    subscriptions.subscribe(&connection, heads(channel)).await.expect("a member");
    subscriptions.remove(&connection, channel).await;
    // This server was not told.
    bench.deps.backends.directory.remove_member(channel, users[0]).await.expect("removes");
    let refused = subscriptions.subscribe(&connection, heads(channel)).await.expect_err("not a member");
    assert_eq!((refused.code, subscriptions.len()), (ErrorCode::NotAMember, 0));
}

#[tokio::test]
async fn a_removal_that_nobody_told_of_is_found() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 2 }>().await;
    let channel = bench.group(&users).await;
    let [stays, leaves] = [0, 1].map(|n| bench.enter(users[n]));
    for connection in [&stays, &leaves] {
        subscriptions.subscribe(connection, heads(channel)).await.expect("a member");
    }
    bench.deps.backends.directory.remove_member(channel, leaves.user).await.expect("removes");
    bench.shared.members.invalidate(channel);
    subscriptions.check_all().await;
    assert!(subscriptions.has(channel, stays.user) && !subscriptions.has(channel, leaves.user));
}

#[tokio::test]
async fn a_group_that_grows_by_several_calls_at_once_keeps_its_connected_members() {
    const TOGETHER: usize = MEMBERS_PER_CALL_MAX + 600;
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = Box::pin(bench.users::<TOGETHER>()).await;
    // The one who is connected was there first, and has the highest number.
    let old = users[TOGETHER - 1];
    let group = bench.group(&[old]).await;
    let connection = bench.enter(old);
    for count in [0, TOGETHER as u64] {
        for some in users.chunks(MEMBERS_PER_CALL_MAX) {
            bench.deps.backends.directory.add_members(group, some).await.expect("adds");
        }
        bench.shared.members.invalidate(group);
        // Each of those who added them reads the number of all, or none.
        subscriptions.members_changed(group, count).await.expect("reads");
        assert!(subscriptions.has(group, old), "{count}");
        let told = ServerFrame::Conversation(ConversationChangeFrame { conversation: group, large: true });
        assert_eq!(written(&connection).0, [told], "{count}");
        for gone in &users[FANOUT_ON_WRITE_MEMBERS_MAX / 2..TOGETHER - 1] {
            bench.deps.backends.directory.remove_member(group, *gone).await.expect("removes");
        }
        bench.shared.members.invalidate(group);
        subscriptions.members_changed(group, FANOUT_ON_WRITE_MEMBERS_MAX as u64 / 2).await.expect("reads");
        let told = ServerFrame::Conversation(ConversationChangeFrame { conversation: group, large: false });
        assert_eq!(written(&connection).0, [told], "{count}");
    }
}

#[tokio::test]
async fn a_group_that_grows_holds_up_no_removal_from_another_large_one() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<{ FANOUT_ON_WRITE_MEMBERS_MAX + 2 }>().await;
    let count = users.len() as u64;
    let [grows, known, other] = [bench.group(&users).await, bench.group(&users).await, bench.group(&users).await];
    let connection = bench.enter(users[0]);
    subscriptions.members_changed(known, count).await.expect("reads");
    // Somebody subscribes the members of two of them, and takes long.
    let growing = (subscriptions.lock_growing(grows).await, subscriptions.lock_growing(known).await);
    for channel in [known, other] {
        bench.deps.backends.directory.remove_member(channel, users[0]).await.expect("removes");
        bench.shared.members.invalidate(channel);
        let changed = subscriptions.members_changed(channel, count - 1);
        tokio::time::timeout(Duration::from_mins(1), changed).await.expect("waits for none of them").expect("reads");
        assert!(!subscriptions.has(channel, connection.user));
    }
    assert!(subscriptions.members_changed(grows, count).now_or_never().is_none());
    drop(growing);
    subscriptions.members_changed(grows, count).await.expect("reads");
    assert!(subscriptions.has(grows, connection.user));
    drop(subscriptions.lock_growing(other).await);
    assert_eq!(
        subscriptions.growing.lock().expect("no panic while held").len(),
        1,
        "of those that are done none is kept"
    );
}

#[tokio::test]
async fn a_connection_has_so_many_subscriptions_and_none_once_it_has_ended() {
    let bench = Bench::new().await;
    let subscriptions = bench.subscriptions();
    let users = bench.users::<2>().await;
    let connection = bench.enter(users[0]);
    let mut channels = Vec::new();
    for _ in 0..=subscriptions.of_a_connection_max {
        channels.push(bench.group(&users).await);
    }
    for (n, channel) in channels.iter().enumerate() {
        let subscribed = subscriptions.subscribe(&connection, heads(*channel)).await;
        let code = subscribed.err().map(|refused| refused.code);
        assert_eq!(code, (n == subscriptions.of_a_connection_max).then_some(ErrorCode::TooLarge), "{n}");
    }
    bench.shared.outbound.hub.remove(connection.user, connection.session);
    subscriptions.remove_all(&connection).await;
    subscriptions.subscribe(&connection, heads(channels[0])).await.expect("nobody hears of it");
    assert_eq!((subscriptions.len(), connection.subscriptions().len()), (0, 0));
}

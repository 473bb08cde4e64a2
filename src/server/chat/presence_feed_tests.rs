//! Tests of the presence of friends.

use super::super::bench::{Bench, written};
use super::*;
use crate::backends::layers::{Layer, Layered, Pace};
use crate::backends::log::Record;
use crate::backends::presence::Beat;
use crate::server::bench::Gate;

fn online(user: UserId) -> ServerFrame {
    ServerFrame::Presence(PresenceFrame { user, state: PresenceState::Online, at: 7 })
}

fn record(user: UserId) -> Delivered {
    let record = Record { keys: vec![user.0], payload: online(user).encode().into_bytes().into() };
    Delivered { topic: Topic::PresenceUpdates, partition: 0, offset: 0, at_ms: 0, record: Arc::new(record) }
}

#[tokio::test]
async fn beats_that_no_presence_server_takes_are_kept_with_their_age() {
    let bench = Bench::new().await;
    let feed = bench.presence_feed();
    let [early, late] = [1, 2].map(UserId);
    feed.beat(early);
    let beats = feed.beats.take();
    feed.beat(late);
    feed.pass_beats(beats.clone()).await;
    let kept = feed.beats.take();
    assert_eq!((kept.len(), kept[&early]), (2, beats[&early]));
    assert_eq!(feed.metrics.counted(Counter::BeatsDropped), 0);
}

#[tokio::test]
async fn a_friends_change_reaches_who_watches_until_the_friendship_ends() {
    let bench = Bench::new().await;
    let feed = bench.presence_feed();
    let [friend, user, other] = bench.users().await;
    let (watching, stranger) = (bench.enter(user), bench.enter(other));
    let directory = &bench.deps.backends.directory;
    directory.set_friends(friend, user, true).await.expect("befriends");
    feed.friends_changed(friend, user, true).await;
    feed.on_record(&record(friend));
    assert_eq!(written(&watching).0, [online(friend)]);
    directory.set_friends(friend, user, false).await.expect("ends");
    // The word of the beginning comes once more, and late.
    for told in [false, true] {
        feed.friends_changed(friend, user, told).await;
        feed.on_record(&record(friend));
        assert_eq!((written(&watching).0, written(&stranger).0), (Vec::new(), Vec::new()), "{told}");
    }
    assert_eq!(feed.watched(), 0);
    // They are friends again, and the word of the end comes once more.
    directory.set_friends(friend, user, true).await.expect("befriends");
    for told in [true, false] {
        feed.friends_changed(friend, user, told).await;
        feed.on_record(&record(friend));
        assert_eq!(written(&watching).0, [online(friend)], "{told}");
    }
}

#[tokio::test]
async fn a_friendship_that_ends_while_its_user_leaves_leaves_no_watch() {
    let bench = Bench::new().await;
    let feed = bench.presence_feed();
    let [friend, user] = bench.users().await;
    bench.deps.backends.directory.set_friends(friend, user, true).await.expect("befriends");
    let connection = bench.enter(user);
    feed.greet(&connection).await;
    assert_eq!(feed.watches.of(friend), [user]);
    bench.shared.outbound.hub.remove(user, connection.session);
    bench.deps.backends.directory.set_friends(friend, user, false).await.expect("ends");
    feed.friends_changed(friend, user, false).await;
    feed.stop_watching(user).await;
    assert_eq!(feed.watched(), 0);
}

#[tokio::test]
async fn a_friendship_that_ends_while_its_user_comes_up_is_neither_shown_nor_watched() {
    let bench = Bench::new().await;
    let feed = bench.presence_feed();
    let [friend, former, user] = bench.users().await;
    for other in [friend, former] {
        // The directory as it was read before the end of one of the friendships.
        bench.deps.backends.directory.set_friends(user, other, true).await.expect("befriends");
        feed.presence.beat(&[Beat { user: other, age_ms: 0 }]).await.expect("beats");
    }
    for pair in [(user, former), (former, user)] {
        assert_eq!(feed.ended.insert(pair), 0);
    }
    let connection = bench.enter(user);
    feed.greet(&connection).await;
    let (shown, _) = written(&connection);
    assert!(matches!(&shown[..], [ServerFrame::Presence(shown)] if shown.user == friend), "{shown:?}");
    assert_eq!((feed.watches.of(former), feed.watches.of(friend)), (Vec::new(), vec![user]));
}

#[tokio::test]
async fn who_comes_after_a_connect_that_was_given_up_halfway_hears_of_its_friends() {
    let mut bench = Bench::new().await;
    let [friend, user] = bench.users().await;
    let directory = Arc::clone(&bench.deps.backends.directory);
    directory.set_friends(friend, user, true).await.expect("befriends");
    let gate = Gate::new("directory.friends");
    let layer = Layer::Paced(Arc::clone(&gate) as Arc<dyn Pace>);
    bench.deps.backends.directory = Arc::new(Layered::<dyn Directory>::new(directory, layer));
    let feed = bench.presence_feed();
    let [given_up, second] = [(), ()].map(|()| bench.enter(user));
    tokio::select! {
        () = feed.greet(&given_up) => panic!("it waits for the directory"),
        () = gate.reached() => {}
    }
    gate.open();
    feed.greet(&second).await;
    assert_eq!(feed.watches.of(friend), [user]);
    // Nothing is kept of who has left.
    for connection in [given_up, second] {
        bench.shared.outbound.hub.remove(user, connection.session);
    }
    feed.stop_watching(user).await;
    assert_eq!((feed.watched(), feed.is_watching(user)), (0, false));
}

#[tokio::test]
async fn more_friends_than_a_connection_has_room_for_are_shown_as_it_reads() {
    const FRIENDS: usize = 60;
    let mut bench = Bench::new().await;
    bench.shared.outbound = Arc::new(Outbound::new(1_500, bench.deps.tasks.clone(), Arc::clone(&bench.deps.metrics)));
    let feed = bench.presence_feed();
    let [user, friends @ ..] = bench.users::<{ FRIENDS + 1 }>().await;
    let friends: [UserId; FRIENDS] = friends;
    for friend in friends {
        bench.deps.backends.directory.set_friends(user, friend, true).await.expect("befriends");
        feed.presence.beat(&[Beat { user: friend, age_ms: 0 }]).await.expect("beats");
    }
    let connection = bench.enter(user);
    feed.greet(&connection).await;
    let room = connection.socket.waiting_bytes();
    assert!((1..=750).contains(&room), "half of the room is left for other things: {room}");
    // The last of them stops being a friend while it waits to be shown.
    let last = friends.into_iter().max().expect("there are some");
    bench.deps.backends.directory.set_friends(user, last, false).await.expect("ends");
    feed.friends_changed(user, last, false).await;
    let mut shown = HashSet::new();
    while shown.len() < FRIENDS - 1 {
        connection.socket.news().await;
        let (frames, closed) = written(&connection);
        assert_eq!(closed, None);
        for frame in frames {
            let ServerFrame::Presence(frame) = frame else { panic!("{frame:?}") };
            assert!(shown.insert(frame.user), "once");
        }
    }
    assert!(!shown.contains(&last));
}

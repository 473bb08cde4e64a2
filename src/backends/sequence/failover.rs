//! The counters in a Redis behind sentinels: the same promises, and what a failover leaves of them.

use std::sync::Arc;
use std::time::Duration;

use super::contract::sequence_contract;
use super::contract::talk::{TALK, request, seeded};
use super::{RedisSequence, Reservation, Sequence};
use crate::backends::contract::{Place, RedisPlace, SentinelPlace};
use crate::backends::deployment::DeploymentId;
use crate::backends::error::{Effect, ErrorKind};
use crate::backends::redis::Connection;
use crate::protocol::MessageId;

async fn place(password: Option<&'static str>) -> SentinelPlace<dyn Sequence> {
    SentinelPlace::<dyn Sequence>::new(password, |redis| Arc::new(RedisSequence::new(redis))).await
}

sequence_contract!(place(None).await, ignore = "needs redis-server");

/// The master is killed: the next calls find the replica that was promoted, and what it has copied counts as not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_master_that_is_killed_is_replaced_by_the_one_that_the_sentinels_promote() {
    let place = place(None).await;
    let port = place.open().await;
    seeded(&*port).await;
    let first = request();
    let Reservation::Fresh(slot, _) = port.reserve(&first).await.expect("reserves") else { panic!("not fresh") };
    assert!(port.commit(TALK, first.sender, first.uuid, slot.id).await.expect("commits"));
    place.kill_master().await;
    let mut answer = port.progress(TALK).await;
    for _ in 0..300 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = port.progress(TALK).await;
    }
    assert_eq!(answer.expect("the port works again"), None);
    assert_eq!(port.reserve(&first).await.expect("answers"), Reservation::Unseeded);
    assert_eq!(port.newest(&[TALK]).await.expect("reads"), [None]);
    assert!(!port.commit(TALK, first.sender, first.uuid, slot.id).await.expect("answers"));
    seeded(&*port).await;
    assert!(matches!(port.reserve(&request()).await, Ok(Reservation::Fresh(..))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_silent_sentinel_is_passed_over_and_those_that_ask_for_a_password_get_it() {
    let place = place(Some("secret")).await;
    place.signal_sentinel(0, "STOP");
    let redis = place.redis("chat").await.expect("opens");
    assert!(redis.version().starts_with("Redis ") && redis.version().ends_with("(Sentinel)"), "{}", redis.version());
    redis.probe("probe").await.expect("is taken");
    place.signal_sentinel(1, "STOP");
    place.redis("chat").await.expect("the last one is enough");
    place.signal_sentinel(2, "STOP");
    let error = place.redis("chat").await.err().expect("nobody answers").to_string();
    assert!(error.contains("no answer in time") && !error.contains("secret"), "{error}");
    for sentinel in 0..3 {
        place.signal_sentinel(sentinel, "CONT");
    }
    let error = place.redis("talk").await.err().expect("no such master").to_string();
    assert!(error.matches(r#"it knows no master "talk""#).count() == 3 && !error.contains("secret"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_sentinel_that_names_a_server_that_is_gone_is_passed_over() {
    let place = place(None).await;
    place.add_stale_sentinel();
    // The sentinel itself takes a moment to start.
    for _ in 0..2 {
        place.redis("chat").await.expect("opens").probe("probe").await.expect("is taken");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A master that its replicas have left: it may have been replaced, and is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_master_that_misses_its_replicas_is_unavailable_and_does_nothing() {
    let place = RedisPlace::<dyn Sequence>::new(|redis| Arc::new(RedisSequence::new(redis))).await;
    let port = place.open().await;
    seeded(&*port).await;
    let redis = place.redis_of(DeploymentId(7)).await;
    let mut connection = redis.connection("set").await.expect("connects");
    let need = async |replicas: u32, connection: &mut Connection| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("min-replicas-to-write").arg(replicas);
        set.query_async::<()>(&mut connection.commands).await.expect("is set");
    };
    need(1, &mut connection).await;
    for error in [port.reserve(&request()).await.err(), port.probe().await.err(), redis.probe("probe").await.err()] {
        let error = error.expect("refused");
        assert_eq!((error.kind, error.effect), (ErrorKind::Unavailable, Effect::NotApplied), "{error}");
    }
    need(0, &mut connection).await;
    assert!(matches!(port.reserve(&request()).await, Ok(Reservation::Fresh(slot, _)) if slot.id == MessageId(1)));
}

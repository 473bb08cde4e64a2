//! Plans by hand.

use super::*;
use crate::server::{api, chat, gateway};

pub(super) fn demand(connections: f64) -> Demand {
    Demand {
        connections,
        messages_per_user_day: 40.0,
        message_bytes: 200.0,
        group_share: 0.5,
        group_members: 50,
        peak: 3.0,
        heartbeat_s: 5.0,
        retention_days: 365.0,
        replication: 3.0,
        cores: 16.0,
        memory_bytes: 64e9,
        headroom: 0.5,
        connections_per_server_max: 500_000.0,
        recovery_s: 30.0,
    }
}

fn planned(demand: &Demand) -> Plan {
    plan(demand, &Constants::default()).expect("is planned")
}

fn line_of(plan: &Plan, part: Part, what: &str) -> Line {
    plan.lines.iter().find(|line| line.part == part && line.what == what).expect("is listed").clone()
}

fn value(plan: &Plan, part: Part, what: &str) -> f64 {
    line_of(plan, part, what).value
}

#[test]
fn the_arithmetic_of_a_plan_by_hand() {
    let plan = planned(&demand(1e6));
    assert!((value(&plan, Part::Load, "messages") - 1e6 * 40.0 / 86_400.0 * 3.0).abs() < 1e-6);
    // Half to one, half to 49.
    let each = value(&plan, Part::Load, "deliveries") / value(&plan, Part::Load, "messages");
    assert!((each - 25.0).abs() < 1e-9);
    assert!((value(&plan, Part::Load, "heartbeats") - 200_000.0).abs() < 1e-6);
    let stored = 1e6 * 40.0 * 365.0 * (200.0 + 120.0) * 3.0;
    assert!((value(&plan, Part::Cassandra, "storage") / stored - 1.0).abs() < 1e-9);
    // 3.8 µs each.
    assert!((value(&plan, Part::Redis, "processor, presence") - 0.76).abs() < 1e-9);
    // Ten connects a day, and the users of the largest server within half a minute.
    let connects = 1e6 * 10.0 / 86_400.0 * 3.0;
    assert!((value(&plan, Part::Load, "connects") - connects).abs() < 1e-6);
    let largest = 1e6 / plan.chat_servers as f64 * plan.placed.spread.fullest;
    assert!((value(&plan, Part::Api, "placements") - connects - largest / 30.0).abs() < 1e-6);
    assert!((value(&plan, Part::Api, "logins with a password") - 1e6 / 86_400.0 * 3.0).abs() < 1e-6);
}

#[test]
fn every_role_and_engine_is_sized_and_every_line_names_constants_that_there_are() {
    let (plan, c) = (planned(&demand(5e7)), Constants::default());
    let parts = [
        (Part::Chat, "chat servers"),
        (Part::Presence, "presence servers"),
        (Part::Api, "API servers"),
        (Part::Gateway, "gateways"),
        (Part::Push, "push servers"),
        (Part::Kafka, "brokers"),
        (Part::Cassandra, "nodes"),
        (Part::Redis, "memory"),
        (Part::Sql, "connections"),
        (Part::Registry, "members"),
    ];
    for (part, what) in parts {
        assert!(value(&plan, part, what) >= 1.0, "{what}");
    }
    let fields: Vec<_> = c.list().iter().map(|constant| constant.field).collect();
    for line in &plan.lines {
        assert!(line.value.is_finite() && !line.why.is_empty(), "{line:?}");
        assert!(line.constants.iter().all(|field| fields.contains(field)), "{line:?}");
        assert_eq!(line.error > 0.0, !line.constants.is_empty(), "{line:?}");
    }
    // And no constant is there for nothing, but those of rates that this plan does not reach.
    let used = |field: &&str| plan.lines.iter().any(|line| line.constants.contains(field));
    let unused: Vec<_> = fields.iter().filter(|field| !used(field)).collect();
    let of_chat_cpu = |field: &&str| {
        field.starts_with("delivery_us") || field.starts_with("beat_us") || field.contains("per_million")
    };
    assert!(unused.iter().all(|field| of_chat_cpu(field) || **field == "chat_us_per_connect"), "{unused:?}");
}

#[test]
fn the_limits_of_servers_are_kept() {
    for connections in [3e5, 5e6, 5e7] {
        let plan = planned(&demand(connections));
        let fullest = value(&plan, Part::Chat, "connections each") * plan.placed.spread.fullest;
        let limit = chat::Config::default().connections_max as f64;
        assert!(fullest <= limit, "{fullest} of {limit} at {connections}");
        assert!(value(&plan, Part::Gateway, "tunnels each") <= gateway::Config::default().tunnels_max as f64);
        let requests = value(&plan, Part::Api, "placements") / value(&plan, Part::Api, "API servers");
        assert!(requests * 0.4 < api::Config::default().connections_max as f64, "{requests}");
    }
    let few = planned(&Demand { connections_per_server_max: 50_000.0, ..demand(5e6) });
    assert!(value(&few, Part::Chat, "connections each") * few.placed.spread.fullest <= 50_000.0);
}

#[test]
fn fifty_million_have_about_ten_partitions_a_server_and_few_readers() {
    let plan = planned(&demand(5e7));
    let each = plan.partitions as f64 / plan.chat_servers as f64;
    assert!((7.0..15.0).contains(&each), "{each}");
    assert!(plan.partitions.is_power_of_two());
    assert!(value(&plan, Part::Chat, "readers per partition") <= 3.0, "{:?}", plan.placed);
}

#[test]
fn readers_are_part_of_what_kafka_does() {
    let plan = planned(&demand(5e6));
    let (written, fetched) =
        (value(&plan, Part::Kafka, "records written"), value(&plan, Part::Kafka, "records fetched"));
    let changes = 2.0 * value(&plan, Part::Load, "connects");
    let readers = value(&plan, Part::Chat, "readers per partition") + 1.0;
    let expected = (written - changes) * readers + changes * plan.chat_servers as f64;
    assert!((fetched / expected - 1.0).abs() < 1e-9, "{fetched} {expected}");
}

#[test]
fn a_beat_costs_what_it_does_at_the_rate_of_one_server() {
    let chat = |heartbeat_s| {
        planned(&Demand { heartbeat_s, cores: 1.0, headroom: 0.05, messages_per_user_day: 0.001, ..demand(1e6) })
            .chat_servers as f64
    };
    // Ten times the beats are not ten times the work.
    let (slow, quick) = (chat(50.0), chat(5.0));
    assert!(quick > slow && quick < 8.0 * slow, "{slow} {quick}");
}

#[test]
fn what_one_redis_or_one_directory_can_not_do_is_said() {
    let notes = planned(&demand(5e7)).notes;
    assert!(notes.iter().any(|note| note.starts_with("Redis for presence takes 38.0 processors")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("one SQL server")), "{notes:?}");
    assert_eq!(planned(&demand(1e4)).notes, Vec::<String>::new());
}

#[test]
fn what_nobody_runs_is_not_planned() {
    let refused = plan(&Demand { memory_bytes: 100.0, ..demand(1e6) }, &Constants::default()).expect_err("too many");
    assert!(refused.contains("chat servers") && refused.contains("by memory"), "{refused}");
    assert!(plan(&Demand { cores: 0.0, ..demand(0.0) }, &Constants::default()).is_ok_and(|p| p.chat_servers == 2));
}

#[test]
fn twice_the_connections_want_about_twice_the_servers() {
    let (one, two) = (planned(&demand(5e6)), planned(&demand(1e7)));
    let ratio = two.chat_servers as f64 / one.chat_servers as f64;
    assert!((1.9..2.1).contains(&ratio), "{ratio}");
}

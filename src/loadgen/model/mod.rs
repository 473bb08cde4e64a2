//! The client against a server, both in simulated time: hours of cuts, delays, repeats, reorderings, failed and slow syncs in
//! seconds, decided by a seed. Every seed must end quiet, with nothing owed and the truth in the ledger; a fault that is put
//! back must not.

mod attribution;
mod server;
mod sim;
mod waits;
mod weather;

use server::Lie;
use sim::{LOAD_US, MS, S, Sim};

use crate::loadgen::client::{Command, Device, DeviceState, Mutant, plant};
use crate::loadgen::ledger::{AuditedDevice, audit_conversation};
use crate::loadgen::stats::get;

/// Seeds of the sound model.
const SEEDS: u64 = 1_000;

/// Time without trouble after the load, in which everything must come to rest.
const CALM_US: u64 = 60 * S;

/// Longest that the last sync may take, in trouble.
const FINAL_SYNC_US: u64 = 180 * S;

/// Most calls and connects that one device may repeat in the trouble of a run.
const RETRIES_MAX: u64 = 100;

/// What is wrong with the run of a seed; nothing for a sound client and server.
fn faults(seed: u64, lie: Option<Lie>) -> Vec<String> {
    let mut sim = Sim::new(seed, lie);
    let mut faults = Vec::new();
    sim.go(S + LOAD_US, |_| false);
    // Half of the seeds come to rest before they end; of the others, half end in the middle of the trouble.
    let rests = seed.is_multiple_of(2);
    if rests || seed % 4 == 3 {
        sim.calm();
    }
    if rests {
        let ends_us = sim.now_us + CALM_US;
        bring_online(&mut sim);
        sim.go(ends_us, |_| false);
        faults.extend(unrest(&sim));
    }
    finish(&mut sim, &mut faults);
    if rests && get(&sim.run.stats.unresolved) > 0 {
        faults.push(format!("{} messages have no answer", get(&sim.run.stats.unresolved)));
    }
    audit(&mut sim);
    faults.extend(sim.run.ledger.described());
    let retries = get(&sim.run.stats.retries_per_device_max);
    if retries > RETRIES_MAX {
        faults.push(format!("a device tried {retries} times again"));
    }
    let [broken, pushed, expected] =
        [&sim.run.stats.protocol_errors, &sim.run.stats.pushed, &sim.run.stats.push_expected].map(get);
    if broken > 0 || pushed > expected {
        faults.push(format!("{broken} protocol errors of a server without any; {pushed} pushes of {expected}"));
    }
    faults
}

fn bring_online(sim: &mut Sim) {
    for client in 0..sim.devices.len() as u32 {
        sim.command(client, Command::Online(sim.now_us));
    }
}

/// What has not come to rest though nothing goes wrong any more.
fn unrest(sim: &Sim) -> Vec<String> {
    let mut faults = Vec::new();
    for device in &sim.devices {
        if let Some(unrest) = device.unrest() {
            faults.push(format!("client {} {unrest}", device.client()));
        }
    }
    if sim.on_dead_connections() > 0 {
        faults.push(format!("{} devices hold on to dead connections", sim.on_dead_connections()));
    }
    if sim.run.stats.owed() > 0 {
        faults.push(format!("{} answers are owed", sim.run.stats.owed()));
    }
    faults
}

/// Ends the run as the engine does.
fn finish(sim: &mut Sim, faults: &mut Vec<String>) {
    bring_online(sim);
    let settle_us = sim.now_us + 3 * S;
    sim.go(settle_us, |sim| sim.run.stats.owed() == 0);
    sim.go(sim.now_us + 700 * MS, |_| false);
    let by_us = sim.now_us + FINAL_SYNC_US;
    for client in 0..sim.devices.len() as u32 {
        sim.command(client, Command::Finish(by_us));
    }
    sim.go(by_us + S, |sim| sim.devices.iter().all(|device| device.outcome().is_some()));
    let undrained = sim.devices.iter().filter(|device| device.outcome() != Some(true)).count();
    if undrained > 0 {
        faults.push(format!("{undrained} devices could not sync at the end"));
    }
    if sim.run.stats.owed() > 0 {
        faults.push(format!("{} messages have no fate", sim.run.stats.owed()));
    }
}

/// Holds what is stored against what was shown, as the engine does.
fn audit(sim: &mut Sim) {
    let states: Vec<DeviceState> = std::mem::take(&mut sim.devices).into_iter().map(Device::into_state).collect();
    for index in 0..sim.run.world.conversations.len() as u32 {
        let devices: Vec<AuditedDevice<'_>> = states
            .iter()
            .filter_map(|state| {
                let conversation = state.conversations.iter().find(|c| c.index == index)?;
                let record = conversation.record();
                Some(AuditedDevice {
                    client: state.client,
                    user: state.user,
                    shown: &record.shown,
                    shown_sum: record.shown_sum,
                    at_sum: record.at_sum,
                    acked: &record.acked,
                    held: conversation.cursor.held().copied().collect(),
                    is_drained: state.is_drained,
                })
            })
            .collect();
        audit_conversation(&sim.run.ledger, &sim.run.world, index, &sim.stored(index), &devices, sim.unix_ms());
    }
}

/// Whether any seed shows a planted fault.
fn is_caught(mutant: Mutant) -> bool {
    plant(Some(mutant));
    let is_caught = (0..SEEDS).any(|seed| !faults(seed, None).is_empty());
    plant(None);
    is_caught
}

#[test]
fn a_sound_client_and_server_end_quiet_under_every_seed() {
    let found = (0..SEEDS).map(|seed| (seed, faults(seed, None)));
    let bad: Vec<(u64, Vec<String>)> = found.filter(|(_, faults)| !faults.is_empty()).take(5).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn every_fault_of_the_client_that_is_put_back_is_caught() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        unseen.extend((!is_caught(mutant)).then_some(mutant));
    }
    assert!(unseen.is_empty(), "{unseen:?} go unseen");
}

#[test]
fn every_lie_of_the_server_is_caught() {
    let lies = [
        (Lie::AckedNotStored, "lost"),
        (Lie::StoredTwice, "duplicated"),
        (Lie::BodyChanged, "altered"),
        (Lie::PushedToAll, "leaked"),
        (Lie::AckedUnderAnotherId, "id reuse"),
        (Lie::HiddenFromOne, "lost"),
    ];
    for (lie, kind) in lies {
        let found: Vec<String> = (0..20).flat_map(|seed| faults(seed, Some(lie))).collect();
        assert!(found.iter().any(|fault| fault.starts_with(kind)), "{lie:?}: {:?}", found.first());
    }
}

#[test]
fn a_seed_repeats() {
    let happenings = |seed| {
        let mut sim = Sim::new(seed, None);
        sim.go(S + LOAD_US, |_| false);
        (sim.happenings, get(&sim.run.stats.acked), get(&sim.run.stats.frames))
    };
    assert_eq!(happenings(3), happenings(3));
    assert_ne!(happenings(3), happenings(4));
}

//! What is done to servers and engines on purpose. A fault runs in a task of the supervisor: it comes to its end whether or
//! not somebody still waits for it.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::oneshot;

use super::engines::LocalEngines;
use super::server::Server;
use super::supervisor::Supervisor;
use crate::backends::deployment::DeploymentId;
use crate::backends::redis::Redis;
use crate::backends::redis_admin::Memory;
use crate::protocol::Fault;
use crate::protocol::fault::engine_name;
use crate::runtime::clock;
use crate::runtime::process::Tell;
use crate::stack::fault_check;

/// Tries to start an engine: its port may be held for a moment by a connection of a client.
const START_TRIES: usize = 3;

/// Longest that a fault waits for one that collides with it and whose time is over.
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// By how much clocks and timers of two that follow each other may differ.
const LEEWAY: Duration = Duration::from_millis(50);

/// What a fault is done to.
enum Target {
    Server(Arc<Server>),
    Engine(String, LocalEngines),
}

impl Supervisor {
    /// Whether a fault can be done.
    ///
    /// # Errors
    /// Says what is in the way, and the fix.
    pub async fn check_fault(&self, fault: &Fault) -> Result<(), String> {
        let servers: Vec<String> = self.servers().iter().map(|server| server.name.to_string()).collect();
        fault_check::of_processes(fault, &servers, &self.engine_kinds())?;
        match (self.target(fault.target()).await?, fault) {
            (Target::Server(_), Fault::Cut { server, engine, .. }) => self.relay(server, engine).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Does a fault and returns when it is over. Dropping the future does not end the fault early.
    ///
    /// # Errors
    /// Says what went wrong; the fault may have been done in part.
    pub async fn do_fault(self: &Arc<Self>, fault: Fault) -> Result<(), String> {
        self.check_fault(&fault).await?;
        self.begin(&fault).await?;
        let (done, when_done) = oneshot::channel();
        let supervisor = Arc::clone(self);
        self.faults.spawn("supervisor.fault", async move {
            let result = supervisor.carry_out(fault.clone()).await;
            supervisor.under_way().retain(|(other, _)| *other != fault);
            // Whoever asked may be gone.
            let _ = done.send(result);
        });
        when_done.await.unwrap_or_else(|_| Err("the supervisor is stopping".to_owned()))
    }

    /// Each with when it is to be over.
    fn under_way(&self) -> MutexGuard<'_, Vec<(Fault, Instant)>> {
        self.faults_under_way.lock().expect("no panic while held")
    }

    /// Notes a fault, unless one lasts that it would collide with. One whose time is over, and that is still coming to its end, is
    /// waited for.
    async fn begin(&self, fault: &Fault) -> Result<(), String> {
        let until = clock::instant() + ENDS_WITHIN;
        loop {
            let now = clock::instant();
            {
                let mut under_way = self.under_way();
                let Some((other, ends)) = under_way.iter().find(|(other, _)| other.collides_with(fault)) else {
                    under_way.push((fault.clone(), now + fault.lasts()));
                    return Ok(());
                };
                if *ends > now + LEEWAY || now >= until {
                    return Err(format!("{other} lasts: let that end first"));
                }
            }
            tokio::time::sleep(LEEWAY).await;
        }
    }

    async fn carry_out(&self, fault: Fault) -> Result<(), String> {
        match (self.target(fault.target()).await?, fault) {
            (Target::Server(server), Fault::Kill(_)) => server.tell(Tell::Die),
            (Target::Server(server), Fault::Drain(_)) => self.drain(server.name.as_str()).await,
            (Target::Server(server), Fault::Restart(_)) => server.restart().await,
            (Target::Server(server), Fault::Pause(_, lasts)) => {
                server.tell(Tell::Freeze)?;
                self.last(lasts).await;
                server.tell(Tell::GoOn)
            }
            (Target::Server(server), Fault::Stop(_, lasts)) => {
                server.hold();
                self.last(lasts).await;
                server.release();
                Ok(())
            }
            (Target::Server(server), Fault::Skew { by_ms, lasts, .. }) => {
                server.skew(by_ms);
                self.last(lasts).await;
                server.skew(0);
                Ok(())
            }
            (Target::Server(_), Fault::Cut { server, engine, lasts }) => {
                let relay = self.relay(&server, &engine)?;
                relay.set_cut(true);
                self.last(lasts).await;
                relay.set_cut(false);
                Ok(())
            }
            (Target::Engine(engine, local), Fault::Kill(_)) => self.kill_for(&engine, &local, Duration::ZERO).await,
            (Target::Engine(engine, local), Fault::Stop(_, lasts)) => self.kill_for(&engine, &local, lasts).await,
            (Target::Engine(engine, local), Fault::Restart(_)) => {
                let stopped = local.stop(&engine).await;
                start(&engine, &local).await.and(stopped)
            }
            (Target::Engine(engine, local), Fault::Pause(_, lasts)) => {
                local.tell(&engine, Tell::Freeze).await?;
                self.last(lasts).await;
                local.tell(&engine, Tell::GoOn).await
            }
            (Target::Engine(..), Fault::Flush(_)) => self.flush_redis().await,
            (Target::Engine(..), Fault::Fill(_, lasts)) => self.fill_redis(lasts).await,
            (Target::Engine(engine, local), Fault::Wipe(_)) => {
                let wiped = async {
                    local.kill(&engine).await?;
                    local.wipe(&engine).await
                };
                let wiped = wiped.await;
                // Whatever came of that: nothing that was taken down stays so.
                start(&engine, &local).await.and(wiped)
            }
            (Target::Engine(engine, local), Fault::Restore(_, lasts)) => {
                local.save(&engine).await?;
                self.last(lasts).await;
                let restored = async {
                    local.kill(&engine).await?;
                    local.restore(&engine).await
                };
                let restored = restored.await;
                start(&engine, &local).await.and(restored)
            }
            (Target::Engine(engine, local), Fault::FailBack(_, lasts)) => {
                local.save(&engine).await?;
                self.last(lasts).await;
                local.fail_back(&engine).await
            }
            (Target::Engine(engine, local), Fault::FillDisk(_, lasts)) => {
                let filled = local.fill_disk(&engine).await;
                if filled.is_ok() {
                    self.last(lasts).await;
                }
                // Whatever came of that: nothing stays full.
                local.free_disk(&engine).await.and(filled)
            }
            (
                Target::Server(_),
                Fault::Flush(_)
                | Fault::Wipe(_)
                | Fault::Restore(..)
                | Fault::Fill(..)
                | Fault::FailBack(..)
                | Fault::FillDisk(..),
            )
            | (Target::Engine(..), Fault::Drain(_) | Fault::Cut { .. } | Fault::Skew { .. }) => {
                Err("this can't be done".to_owned())
            }
        }
    }

    async fn kill_for(&self, engine: &str, local: &LocalEngines, lasts: Duration) -> Result<(), String> {
        local.kill(engine).await?;
        self.last(lasts).await;
        start(engine, local).await
    }

    /// Has a fault last, or come to its end at once when the stack ends: what it froze or took down must not stay so.
    async fn last(&self, lasts: Duration) {
        tokio::select! {
            () = tokio::time::sleep(lasts) => {}
            () = self.faults.stopped() => {}
        }
    }

    async fn target(&self, name: &str) -> Result<Target, String> {
        if let Some(server) = self.find(name) {
            return Ok(Target::Server(server));
        }
        let name = engine_name(name);
        let engines = self.engine_kinds();
        if !engines.iter().any(|engine| engine == name) {
            let valid = self.servers().iter().map(|s| s.name.to_string()).chain(engines).collect::<Vec<_>>().join(", ");
            return Err(format!("there is no server or engine {name:?}: valid are {valid}"));
        }
        let local = self.local_engines().ok_or_else(|| fault_check::out_of_reach(name))?;
        local.pid(name).await?;
        Ok(Target::Engine(name.to_owned(), local))
    }

    /// Each Redis of the stack.
    async fn redises(&self) -> Result<Vec<Redis>, String> {
        let engines = self.config().engines.all();
        let of_redis = engines.iter().filter(|(_, engine, _)| engine.kind() == Some("redis"));
        let addresses: BTreeSet<&str> = of_redis.filter_map(|(_, engine, _)| engine.address()).collect();
        // No key is named, so it is of no matter whose deployment this is.
        let opening = addresses.into_iter().map(|address| Redis::open(address, DeploymentId(0)));
        try_join_all(opening).await.map_err(|e| e.to_string())
    }

    async fn flush_redis(&self) -> Result<(), String> {
        for redis in self.redises().await? {
            redis.flush().await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Leaves Redis a byte of memory, and afterwards what it had.
    async fn fill_redis(&self, lasts: Duration) -> Result<(), String> {
        let redises = self.redises().await?;
        // All is read before anything is set: two addresses may be databases of one server.
        let before = try_join_all(redises.iter().map(Redis::memory)).await.map_err(|e| e.to_string())?;
        let mut filled = Ok(());
        for redis in &redises {
            filled = filled.and(redis.set_memory(&Memory::full()).await);
        }
        if filled.is_ok() {
            self.last(lasts).await;
        }
        for (redis, memory) in redises.iter().zip(&before) {
            filled = filled.and(redis.set_memory(memory).await);
        }
        filled.map_err(|e| e.to_string())
    }
}

async fn start(engine: &str, local: &LocalEngines) -> Result<(), String> {
    let mut result = local.start(engine).await;
    for _ in 1..START_TRIES {
        if result.is_ok() {
            break;
        }
        result = local.start(engine).await;
    }
    result
}

//! The registry in memory. Nothing outlives the process, since its servers do not either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::{ENTRY_TTL, Registry, Role, ServerEntry};
use crate::backends::BackendResult;
use crate::protocol::ServerName;
use crate::runtime::clock;

/// Servers of one process. Clones are the same registry.
#[derive(Clone, Default)]
pub struct EmbeddedRegistry {
    servers: Arc<Mutex<BTreeMap<ServerName, (ServerEntry, u64)>>>,
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn announce(&self, entry: &ServerEntry) -> BackendResult<()> {
        let expires_us = clock::now_us() + ENTRY_TTL.as_micros() as u64;
        let mut servers = self.servers.lock().expect("no panic while held");
        if servers.get(&entry.name).is_none_or(|(old, _)| old.epoch <= entry.epoch) {
            servers.insert(entry.name.clone(), (entry.clone(), expires_us));
        }
        Ok(())
    }

    async fn withdraw(&self, name: &ServerName, epoch: u64) -> BackendResult<()> {
        let mut servers = self.servers.lock().expect("no panic while held");
        if servers.get(name).is_some_and(|(entry, _)| entry.epoch == epoch) {
            servers.remove(name);
        }
        Ok(())
    }

    async fn list(&self, role: Role) -> BackendResult<Vec<ServerEntry>> {
        let now = clock::now_us();
        let mut servers = self.servers.lock().expect("no panic while held");
        servers.retain(|_, (_, expires_us)| *expires_us > now);
        Ok(servers.values().map(|(entry, _)| entry).filter(|e| e.role == role).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::registry::contract::registry_contract;

    fn place() -> EmbeddedPlace<dyn Registry> {
        EmbeddedPlace::<dyn Registry>::new(|_| Arc::new(EmbeddedRegistry::default()))
    }

    registry_contract!(place());
}

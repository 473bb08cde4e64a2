//! The devices' tokens: those of the setup, and those that were renewed since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::api::{Api, Error};
use super::world::{PASSWORD, World};
use crate::protocol::api::Placement;

/// Tokens that were renewed, by client. A client that never renews takes no memory.
#[derive(Default)]
pub(super) struct Tokens {
    renewed: Mutex<HashMap<u32, Arc<str>>>,
}

impl Tokens {
    /// A device's token as it is now.
    pub(super) fn get(&self, world: &World, client: u32) -> Arc<str> {
        let renewed = self.renewed.lock().expect("no panic while held").get(&client).cloned();
        renewed.unwrap_or_else(|| Arc::from(&*world.clients[client as usize].token))
    }

    /// Logs a device in again. Returns where it is to connect.
    pub(super) async fn renew(&self, world: &World, api: &Api, client: u32) -> Result<Placement, Error> {
        let user = world.clients[client as usize].user;
        let login = api.login(&world.user_name(user), PASSWORD, &world.device_name(client)).await?;
        self.renewed.lock().expect("no panic while held").insert(client, login.token.into());
        Ok(login.placement)
    }
}

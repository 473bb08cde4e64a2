//! What a stack is made of, checked before anything is opened.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::processes;
use crate::backends::Engines;
use crate::backends::registry::Role;
use crate::protocol::ServerName;
use crate::protocol::limits::{HEARTBEAT, PARTITIONS_MAX};
use crate::runtime::net;
use crate::server::{api, chat, gateway, presence};

/// Most servers of one role in one process.
pub const SERVERS_MAX: usize = 64;

const DAY: Duration = Duration::from_hours(24);

/// Below two beats whoever loses one is told offline.
const OFFLINE_AFTER_MIN: Duration = HEARTBEAT.saturating_mul(2);

/// A stack's settings. Every field has a default; a file may set any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Data folder of the embedded engines; `None` makes a temporary one.
    pub data: Option<PathBuf>,
    /// Address that all servers listen on.
    pub host: IpAddr,
    /// Address at which clients and other servers are told to reach them; `None` is `host`, or where that means every address,
    /// the one of this machine's way out.
    pub advertise: Option<IpAddr>,
    /// Port of the first API server, 0 for any; further ones take the next ports.
    pub api_port: u16,
    /// Port of the first chat server, 0 for any; further ones take the next ports.
    pub chat_port: u16,
    /// Port of the first gateway for HTTP, 0 for any; further ones take the next ports.
    pub gateway_port: u16,
    /// Port of the first gateway for WebSockets, 0 for any; further ones take the next ports.
    pub gateway_chat_port: u16,
    /// Chat servers.
    pub chat_servers: usize,
    /// Presence servers.
    pub presence_servers: usize,
    /// API servers.
    pub api_servers: usize,
    /// Gateways. Without one, clients are sent straight to the chat servers.
    pub gateways: usize,
    /// Number of the first server of each role: `chat-4` when it is 4. For stacks that are spread over processes.
    pub first_number: usize,
    /// Whether the push service runs.
    pub push: bool,
    /// Partitions of the log; fixed once the data folder exists.
    pub partitions: u32,
    /// Which engine is behind each port; all of them are embedded by default.
    pub engines: Engines,
    /// Life of a token.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// How long a stopping stack waits for its clients to leave.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Whether, and how, each server is a process of its own.
    pub processes: processes::Config,
    /// Settings of each chat server.
    pub chat: chat::Config,
    /// Settings of each presence server.
    pub presence: presence::Config,
    /// Settings of each API server.
    pub api: api::Config,
    /// Settings of each gateway.
    pub gateway: gateway::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: None,
            host: IpAddr::from([127, 0, 0, 1]),
            advertise: None,
            api_port: 0,
            chat_port: 0,
            gateway_port: 0,
            gateway_chat_port: 0,
            chat_servers: 1,
            presence_servers: 1,
            api_servers: 1,
            gateways: 0,
            first_number: 1,
            push: true,
            partitions: 16,
            engines: Engines::default(),
            token_lifetime: Duration::from_hours(24),
            drain_timeout: Duration::from_secs(10),
            processes: processes::Config::default(),
            chat: chat::Config::default(),
            presence: presence::Config::default(),
            api: api::Config::default(),
            gateway: gateway::Config::default(),
        }
    }
}

impl Config {
    /// Checks what types can't say.
    ///
    /// # Errors
    /// Names the setting and its valid values.
    pub fn check(&self) -> Result<(), String> {
        let counts = [
            ("chat_servers", self.chat_servers),
            ("presence_servers", self.presence_servers),
            ("api_servers", self.api_servers),
            ("gateways", self.gateways),
        ];
        for (name, count) in counts {
            if count > SERVERS_MAX {
                return Err(format!("{name} is {count}: at most {SERVERS_MAX} servers of a role run in one process"));
            }
        }
        self.engines.check()?;
        let by_sentinels = self.engines.all().into_iter().find(|(_, engine, _)| engine.is_by_sentinels());
        if let Some((port, ..)) = by_sentinels.filter(|_| self.processes.relays) {
            return Err(format!(
                "engines.{port} is at sentinels, and processes.relays is true (as every run with a cut sets it): the master \
                 that sentinels name is not reached through a relay; give the address of a single Redis"
            ));
        }
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            return Err(format!("partitions is {}: valid are 1 to {PARTITIONS_MAX}", self.partitions));
        }
        for (name, rate) in [
            ("api.logins_per_second", self.api.logins_per_second as usize),
            ("api.requests_per_second", self.api.requests_per_second as usize),
            ("api.connections_per_address", self.api.connections_per_address),
            ("chat.limits.frames_per_second", self.chat.limits.frames_per_second as usize),
            ("gateway.tunnels_per_address", self.gateway.tunnels_per_address),
            ("gateway.http_connections_per_address", self.gateway.http_connections_per_address),
        ] {
            if rate == 0 {
                return Err(format!("{name} is 0: nothing would be let in; valid are 1 and more"));
            }
        }
        if self.chat.channel_bytes_per_second == 0 {
            let problem = "chat.channel_bytes_per_second is 0: valid are 1 and more; for heads only set \
                           chat.channel_messages_per_second to 0";
            return Err(problem.to_owned());
        }
        if self.advertise.is_some_and(|address| address.is_unspecified()) {
            return Err("advertise: every address is none that can be reached; name one, or leave it out".to_owned());
        }
        self.api.password_cost.check().map_err(|problem| format!("api.password_cost: {problem}"))?;
        self.check_times()
    }

    /// Checks that a stack of its own has every role that its clients need.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check_whole(&self) -> Result<(), String> {
        let needed = [
            ("chat_servers", self.chat_servers),
            ("presence_servers", self.presence_servers),
            ("api_servers", self.api_servers),
        ];
        match needed.iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => {
                Err(format!("{name} is 0: a stack needs at least one; `chatctl serve --role` runs some roles only"))
            }
            None => Ok(()),
        }
    }

    /// Where the servers of this stack are reached, if not at `host`.
    #[must_use]
    pub fn advertised(&self) -> Option<IpAddr> {
        self.advertise.or_else(|| self.host.is_unspecified().then(net::own_address))
    }

    fn check_times(&self) -> Result<(), String> {
        let (least, zero) = (Duration::from_millis(1), Duration::ZERO);
        for (name, time, lowest, highest) in [
            ("token_lifetime", self.token_lifetime, Duration::from_secs(1), 1_000 * DAY),
            ("drain_timeout", self.drain_timeout, zero, DAY),
            ("chat.handshake_timeout", self.chat.handshake_timeout, least, DAY),
            ("chat.idle_timeout", self.chat.idle_timeout, least, DAY),
            ("presence.offline_after", self.presence.offline_after, OFFLINE_AFTER_MIN, DAY),
            ("presence.grace", self.presence.grace, zero, DAY),
            ("gateway.first_line_timeout", self.gateway.first_line_timeout, least, DAY),
        ] {
            if !(lowest..=highest).contains(&time) {
                let shown = humantime::format_duration;
                let (time, lowest, highest) = (shown(time), shown(lowest), shown(highest));
                return Err(format!("{name} is {time}: valid are {lowest} to {highest}"));
            }
        }
        Ok(())
    }

    /// Only some roles of this stack.
    #[must_use]
    pub fn with_roles(mut self, roles: &[Role]) -> Self {
        let count = |role, count: usize| if roles.contains(&role) { count.max(1) } else { 0 };
        self.chat_servers = count(Role::Chat, self.chat_servers);
        self.presence_servers = count(Role::Presence, self.presence_servers);
        self.api_servers = count(Role::Api, self.api_servers);
        self.gateways = count(Role::Gateway, self.gateways);
        self.push = roles.contains(&Role::Push);
        self
    }
}

/// One server of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it does.
    pub role: Role,
    /// Its number among those of its role.
    pub number: usize,
    /// Its name.
    pub name: ServerName,
    /// Port for clients, 0 for any; not used by roles without clients.
    pub port: u16,
    /// Port of a gateway for WebSockets, 0 for any.
    pub websocket_port: u16,
}

impl Config {
    /// Every server, in the order in which they start: those that others look for come first.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let counts = [
            (Role::Presence, self.presence_servers),
            (Role::Chat, self.chat_servers),
            (Role::Push, usize::from(self.push)),
            (Role::Gateway, self.gateways),
            (Role::Api, self.api_servers),
        ];
        counts
            .into_iter()
            .flat_map(|(role, count)| (0..count).map(move |n| self.place(role, self.first_number + n)))
            .collect()
    }

    /// The server of a role and a number; the ports are those of the first one and up.
    #[must_use]
    pub fn place(&self, role: Role, number: usize) -> Place {
        let name = format!("{role}-{number}").parse().expect("a role and a number make a valid name");
        let after = (number - self.first_number.min(number)) as u16;
        let port = |first: u16| if first == 0 { 0 } else { first.saturating_add(after) };
        let (port, websocket_port) = match role {
            Role::Presence | Role::Push => (0, 0),
            Role::Chat => (port(self.chat_port), 0),
            Role::Api => (port(self.api_port), 0),
            Role::Gateway => (port(self.gateway_port), port(self.gateway_chat_port)),
        };
        Place { role, number, name, port, websocket_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_without_end_are_refused() {
        let check = |text: &str| serde_saphyr::from_str::<Config>(text).expect("parses").check();
        for text in
            ["drain_timeout: 9999999h", "token_lifetime: 0s", "chat: {idle_timeout: 0s}", "presence: {grace: 9y}"]
        {
            assert!(check(text).is_err_and(|problem| problem.contains("valid are")), "{text}");
        }
        assert_eq!(check("token_lifetime: 2s"), Ok(()));
    }

    #[test]
    fn a_relay_to_sentinels_is_refused() {
        let check = |relays: bool| {
            let engines = "{sequence: 'redis+sentinel://a:1/chat'}";
            let text = format!("{{engines: {engines}, processes: {{relays: {relays}}}}}");
            serde_saphyr::from_str::<Config>(&text).expect("parses").check()
        };
        assert_eq!(check(false), Ok(()));
        assert!(check(true).is_err_and(|problem| problem.starts_with("engines.sequence is at sentinels")));
    }

    #[test]
    fn a_password_cost_that_is_not_valid_is_told_by_its_setting() {
        let check = |text: &str| serde_saphyr::from_str::<Config>(text).expect("parses").check();
        for text in ["api: {password_cost: {passes: 0}}", "api: {password_cost: {memory_kib: 1}}"] {
            assert!(check(text).is_err_and(|problem| problem.starts_with("api.password_cost: ")), "{text}");
        }
    }

    #[test]
    fn every_address_is_told_as_one_that_can_be_reached() {
        let config = |text: &str| serde_saphyr::from_str::<Config>(text).expect("parses");
        let told = Some(IpAddr::from([10, 0, 0, 7]));
        assert_eq!(config("host: 127.0.0.5").advertised(), None);
        for host in ["0.0.0.0", "127.0.0.5"] {
            assert_eq!(config(&format!("{{host: {host}, advertise: 10.0.0.7}}")).advertised(), told, "{host}");
        }
        for every in ["0.0.0.0", "'::'"] {
            assert!(config(&format!("host: {every}")).advertised().is_some_and(|address| !address.is_unspecified()));
        }
        assert!(config("advertise: 0.0.0.0").check().is_err());
    }

    #[test]
    fn a_stack_without_a_role_that_its_clients_need_is_told() {
        let config = Config { chat_servers: 0, ..Config::default() };
        assert!(config.check_whole().is_err_and(|problem| problem.contains("chat_servers is 0")));
        assert_eq!(Config::default().check_whole(), Ok(()));
    }

    #[test]
    fn a_rate_that_lets_nothing_in_is_refused_by_name() {
        let check = |text: &str| serde_saphyr::from_str::<Config>(text).expect("parses").check();
        for (name, text) in [
            ("api.requests_per_second", "api: {requests_per_second: 0}"),
            ("api.logins_per_second", "api: {logins_per_second: 0}"),
            ("chat.limits.frames_per_second", "chat: {limits: {frames_per_second: 0}}"),
            ("chat.channel_bytes_per_second", "chat: {channel_bytes_per_second: 0}"),
            ("api.connections_per_address", "api: {connections_per_address: 0}"),
            ("gateway.tunnels_per_address", "gateway: {tunnels_per_address: 0}"),
        ] {
            assert!(check(text).is_err_and(|problem| problem.contains(name)), "{text}");
        }
        assert_eq!(check("api: {requests_per_second: 1}"), Ok(()));
    }

    #[test]
    fn the_documented_stack_on_real_engines_is_valid() {
        let config: Config = serde_saphyr::from_str(include_str!("../../docs/engines.yaml")).expect("parses");
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.engines.not_shared(), None);
    }
}

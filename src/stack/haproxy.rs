//! An HAProxy configuration that does the gateway's job: HTTP to the API servers, WebSockets as TCP to the chat server that
//! the path names, or to the one with the fewest connections.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::backends::registry::Role;
use crate::protocol::{CHAT_PATH, ServerName};

/// A server that is balanced to.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its name.
    pub name: ServerName,
    /// What it does.
    pub role: Role,
    /// Where it is.
    pub address: SocketAddr,
}

/// Writes the configuration for HAProxy 2.4 and newer. `http` and `chat` are where it listens. Servers of other roles than
/// API and chat are left out.
#[must_use]
pub fn render(http: SocketAddr, chat: SocketAddr, backends: &[Backend]) -> String {
    let of_role = |role| backends.iter().filter(move |backend| backend.role == role);
    let mut out = format!(
        "# HTTP at {http}, WebSockets at {chat}. For servers that are added or leave, make it again and reload.
defaults
    timeout connect 1s
    # Longer than a chat server waits for a silent client (chat.idle_timeout, 75 s).
    timeout client 90s
    timeout server 90s
    retries 2
    option redispatch

frontend http
    mode http
    bind {http}
    option forwardfor
    default_backend api

backend api
    mode http
    balance leastconn
    # Liveness: an engine's outage is the same for every API server, and they answer with an error that clients understand.
    option httpchk GET /health/live
    default-server check inter 1s fall 2 rise 1
"
    );
    for server in of_role(Role::Api) {
        let _ = writeln!(out, "    server {} {}", server.name, server.address);
    }
    let _ = write!(
        out,
        "
frontend chat
    mode tcp
    bind {chat}
    # The first line of a client names its server; nothing behind it is looked at.
    tcp-request inspect-delay 10s
    tcp-request content accept if {{ req.len gt 0 }}
    default_backend chat

backend chat
    mode tcp
    balance leastconn
    # A server that drains is not ready: it gets nobody, and keeps whom it has until they are told to move.
    option httpchk GET /health/ready
    default-server check inter 1s fall 2 rise 1
"
    );
    for server in of_role(Role::Chat) {
        let name = &server.name;
        let _ = writeln!(out, "    use-server {name} if {{ req.payload(0,0) -m beg \"GET {CHAT_PATH}/{name} \" }}");
    }
    for server in of_role(Role::Chat) {
        let _ = writeln!(out, "    server {} {}", server.name, server.address);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_and_chat_server_is_there_once_and_chat_servers_are_found_by_their_path() {
        let backend = |name: &str, role, port: u16| Backend {
            name: name.parse().expect("valid"),
            role,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        let backends = [
            backend("chat-1", Role::Chat, 1),
            backend("chat-12", Role::Chat, 2),
            backend("api-1", Role::Api, 3),
            backend("push-1", Role::Push, 4),
        ];
        let (http, chat) = ("127.0.0.1:80".parse().expect("valid"), "127.0.0.1:81".parse().expect("valid"));
        let text = render(http, chat, &backends);
        for line in ["server chat-1 127.0.0.1:1", "server chat-12 127.0.0.1:2", "server api-1 127.0.0.1:3"] {
            assert_eq!(text.matches(&format!("    {line}\n")).count(), 1, "{line}: {text}");
        }
        assert!(text.contains("use-server chat-1 if { req.payload(0,0) -m beg \"GET /ws/chat-1 \" }"), "{text}");
        assert!(!text.contains("push-1"));
    }
}

//! What goes into a device and what comes out of it.

use std::fmt;
use std::time::Duration;

use crate::loadgen::api;
use crate::protocol::api::{InboxEntry, MessagesSync, Placement};
use crate::protocol::frames::WelcomeFrame;
use crate::protocol::{ClientFrame, CloseCode, ErrorCode, ServerName};
use crate::runtime::{error_chain, is_local_cause};

/// What the plan of the run asks of a device.
#[derive(Debug)]
pub(in crate::loadgen) enum Command {
    /// Be connected; it was due at this time (µs).
    Online(u64),
    /// Close the connection and stay away.
    Offline,
    /// Be gone without a close frame: the socket stays open, and nobody reads or writes it any more.
    Vanish,
    /// Send a message of some size that is due at this time (µs).
    Send { conversation: u32, intended_us: u64, bytes: u32 },
    /// The user was removed from a conversation: try to send there all the same.
    TryToSend(u32),
    /// The user is a member of a conversation again, and got to know it as people do.
    Joined(u32),
    /// Nothing new is sent; sync everything until this time (µs), and end.
    Finish(u64),
}

/// What happens to a device.
pub(in crate::loadgen) enum Event {
    Command(Command),
    /// The connection stands: the server's first frame.
    Opened(Box<WelcomeFrame>),
    ConnectFailed(ConnectError),
    /// The server sent something, perhaps not a whole frame.
    Heard,
    /// The connection ended, not by this device.
    Closed(LinkError),
    Inbox {
        generation: u32,
        result: Result<Vec<InboxEntry>, CallError>,
    },
    Page(Box<Page>),
    LoggedIn(Result<(), CallError>),
}

/// A page of a conversation.
pub(in crate::loadgen) struct Page {
    pub(in crate::loadgen) conversation: u32,
    pub(in crate::loadgen) after: u64,
    /// When the call began and ended, on the run's clock.
    pub(in crate::loadgen) started_us: u64,
    pub(in crate::loadgen) ended_us: u64,
    /// How much of that the call waited for the generator, in µs.
    pub(in crate::loadgen) waited_us: u64,
    pub(in crate::loadgen) result: Result<MessagesSync, CallError>,
}

/// What a device does.
#[derive(Debug)]
pub(in crate::loadgen) enum Action {
    /// Connect: to `placement` where it is known, else where the API places the device, not on `avoid`.
    Connect {
        placement: Option<Placement>,
        avoid: Option<ServerName>,
    },
    Write(ClientFrame),
    /// Close the connection with a close frame.
    Close,
    /// Drop the connection, or the try to make one.
    Drop,
    /// Keep the connection open and never touch it again.
    Abandon,
    ListInbox {
        generation: u32,
    },
    FetchPage {
        conversation: u32,
        after: u64,
    },
    /// Log in again.
    LogIn,
}

/// Why there is no connection (any more).
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::loadgen) enum LinkError {
    /// The socket failed or was closed without a close frame.
    #[error("connection lost: {0}")]
    Lost(String),
    /// A step of connecting, or a write, took too long.
    #[error("no {what} within {limit:?}")]
    TimedOut {
        /// Which step.
        what: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The upgrade or a request was refused.
    #[error("refused: {status} {text}")]
    Refused {
        /// HTTP status; where an `error` frame came instead of `welcome`, the one that its code stands for.
        status: u16,
        /// The server's own text.
        text: String,
        /// When the server asked to be tried again.
        retry_after: Option<Duration>,
    },
    /// The server closed with a code.
    #[error("closed with {0}")]
    Closed(u16),
    /// The server sent something that is not of the protocol.
    #[error("protocol error: {0}")]
    Broken(String),
    /// This machine could not: files, ports, memory.
    #[error("this machine: {0}")]
    Local(String),
    /// The API did not say where to connect.
    #[error("no placement: {0}")]
    Placement(CallError),
}

impl LinkError {
    /// The error of a socket.
    pub(super) fn of_socket(error: &std::io::Error) -> Self {
        if is_local_cause(error) { Self::Local(error.to_string()) } else { Self::Lost(error.to_string()) }
    }

    /// The error of a request.
    pub(super) fn of_request(error: &(dyn std::error::Error + 'static)) -> Self {
        let text = error_chain(error);
        if is_local_cause(error) { Self::Local(text) } else { Self::Lost(text) }
    }

    /// The name under which it is counted.
    pub(in crate::loadgen) fn name(&self) -> String {
        match self {
            Self::Lost(_) => "connection_lost".to_owned(),
            Self::TimedOut { .. } => "timeout".to_owned(),
            Self::Refused { status, .. } => format!("refused_{status}"),
            Self::Closed(code) => format!("close_{code}"),
            Self::Broken(_) => "protocol_error".to_owned(),
            Self::Local(_) => "local".to_owned(),
            Self::Placement(_) => "placement".to_owned(),
        }
    }

    /// Whether this machine is the cause, and not the server.
    pub(in crate::loadgen) const fn is_local(&self) -> bool {
        matches!(self, Self::Local(_) | Self::Placement(CallError::Local(_)))
    }

    /// Whether another token is needed.
    pub(in crate::loadgen) fn is_unauthorized(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 401,
            Self::Closed(code) => *code == CloseCode::Unauthorized.code(),
            Self::Placement(error) => *error == CallError::Unauthorized,
            Self::Lost(_) | Self::TimedOut { .. } | Self::Broken(_) | Self::Local(_) => false,
        }
    }
}

/// A try to connect that failed.
#[derive(Debug)]
pub(in crate::loadgen) struct ConnectError {
    pub(in crate::loadgen) cause: LinkError,
    /// The server that was tried, where it is likely to be gone.
    pub(in crate::loadgen) server: Option<ServerName>,
    /// When the server asked to be tried again.
    pub(in crate::loadgen) retry_after: Option<Duration>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

/// Why a call of the API failed, as far as a device acts on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::loadgen) enum CallError {
    /// The user is no member.
    #[error("not a member")]
    NotAMember,
    /// The token is not good (any more).
    #[error("unauthorized")]
    Unauthorized,
    /// The server is busy and says when to try again.
    #[error("throttled for {0:?}")]
    Throttled(Duration),
    /// This machine could not make the call.
    #[error("this machine: {0}")]
    Local(String),
    /// The answer can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// Anything else: the name under which it is counted.
    #[error("{0}")]
    Failed(String),
}

impl CallError {
    pub(in crate::loadgen) const fn retry_after(&self) -> Option<Duration> {
        if let Self::Throttled(wait) = self { Some(*wait) } else { None }
    }
}

impl From<api::Error> for CallError {
    fn from(error: api::Error) -> Self {
        if error.is_unauthorized() {
            return Self::Unauthorized;
        }
        if error.code() == Some(ErrorCode::NotAMember) {
            return Self::NotAMember;
        }
        if let api::Error::Unreadable(text) = error {
            return Self::Unreadable(text);
        }
        if error.is_local() {
            return Self::Local(error.to_string());
        }
        match (error.is_throttled(), error.retry_after(), error.status()) {
            (true, Some(wait), _) => Self::Throttled(wait),
            (_, _, Some(status)) => Self::Failed(format!("http_{}", status.as_u16())),
            _ => Self::Failed("no_answer".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn a_request_that_this_machine_could_not_make_is_not_lost() {
        let of = |code: i32| LinkError::of_request(&Error::other(Error::from_raw_os_error(code)));
        assert!([libc::EMFILE, libc::EADDRNOTAVAIL].iter().all(|code| of(*code).is_local()));
        assert!(matches!(of(libc::ECONNRESET), LinkError::Lost(_)));
    }
}

//! One simulated device, doing what the protocol asks of a client: a uuid per message and the same one for each retry,
//! contiguous cursors, and a sync where there is a gap.
//!
//! | file | what |
//! |---|---|
//! | `device` | the state machine: commands and time. No I/O |
//! | `connection` | how it connects, loses its connection and comes back. No I/O |
//! | `talk` | what it sends, and what it does with each frame. No I/O |
//! | `probe` | what it tries where its user was removed. No I/O |
//! | `catch_up` | how it fetches what it missed. No I/O |
//! | `pending` | a message without an answer yet. No I/O |
//! | `causes` | what its calls failed by. No I/O |
//! | `cursor`, `conversation` | what it may show of a conversation, and what it has of it. No I/O |
//! | `event` | what goes into the state machine, and what comes out |
//! | `driver` | the loop that does its I/O |
//! | `link`, `poll` | its WebSocket; the same without a socket: long-poll and poll |
//! | `mailbox` | how it is reached |
//! | `alarms` | when it is woken |
//! | `handover` | how much before its time a message is handed to it |
//! | `grid` | heartbeats that go out together |
//! | `mutant` | faults that tests put back |

mod alarms;
mod catch_up;
mod causes;
mod connection;
mod conversation;
pub(super) mod cursor;
mod device;
mod driver;
mod event;
mod grid;
mod handover;
mod link;
mod mailbox;
mod mutant;
mod noted;
mod pending;
mod poll;
mod probe;
mod pushes;
mod talk;

pub(super) use alarms::Alarms;
pub(super) use causes::Causes;
pub(super) use device::DeviceState;
pub(super) use driver::start;
pub(super) use event::{CallError, Command, ConnectError, LinkError};
pub(super) use handover::Handover;
pub(super) use link::Traffic;
pub(super) use mailbox::Mailbox;
pub(super) use poll::Pollers;

#[cfg(test)]
pub(super) use {
    device::Device,
    event::{Action, Event, Page},
    mutant::{Mutant, plant},
};

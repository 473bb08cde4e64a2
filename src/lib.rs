//! chatctl: runs a chat server stack, simulates its users, and proves what was lost, repeated, reordered or leaked.
//!
//! The rooms, in the order in which they may depend on each other (`tests/walls.rs` holds them to it):

pub mod protocol;
pub mod telemetry;

pub mod runtime;

pub mod backends;

pub mod server;

pub mod stack;

pub mod loadgen;

pub mod report;

pub mod tui;

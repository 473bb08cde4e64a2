//! chatctl: runs a chat server stack, simulates its users, and proves what was lost, repeated, reordered or leaked.
//!
//! The rooms, in the order in which they may depend on each other (`tests/walls.rs` holds them to it):

// Only the command talks to people.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod protocol;
pub mod telemetry;

pub mod runtime;

pub mod backends;

pub mod server;

pub mod stack;

pub mod loadgen;

pub mod report;

pub mod run;

pub mod tui;

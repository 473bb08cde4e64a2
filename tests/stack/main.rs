//! A whole stack in this process, on real sockets and port 0, as clients see it.

mod calibration;
#[path = "../bench/client.rs"]
mod client;
mod conformance;
mod engines;
mod faults;
mod gateway;
mod poll;
mod precision;
mod presence;
mod proofs;
#[path = "../bench/raw.rs"]
mod raw;
mod rights;
mod sense;
mod sentinels;
mod talk;
mod unwell;

//! A whole stack in this process, on real sockets and port 0, as clients see it.

mod calibration;
mod client;
mod conformance;
mod engines;
mod faults;
mod gateway;
mod hostile;
mod poll;
mod precision;
mod presence;
mod proofs;
mod rights;
mod sense;
mod sentinels;
mod talk;
mod unwell;

//! Simulated clients. Knows the wire and nothing else: the same run can be aimed at any deployment.
//!
//! | file | what |
//! |---|---|
//! | `scenario/` | what to simulate: parsing with places in the errors, arrival schedules, thresholds |
//! | `behavior/` | what users do: one file per behaviour |
//! | `world` | users, devices, conversations, made through the API |
//! | `client/` | one device: a cursor without I/O, a WebSocket, a loop |
//! | `engine` | the run: phases, arrivals, faults, draining, audit |
//! | `fault_track` | what came of a fault |
//! | `fleet/` | a run spread over several processes or machines |
//! | `ledger/` | what was expected against what came |
//! | `run` | what everybody who takes part in a run shares |
//! | `recorder`, `stats` | latencies by path; counters |
//! | `call_lag` | slots of API calls; what they waited for one, and what of that is the generator's |
//! | `target` | the address of the stack, checked |
//! | `tokens` | tokens that were renewed |
//! | `retry` | when a failed request is repeated: no I/O |
//! | `history` | every event as a line of JSON |
//! | `intervals` | what was measured second by second |
//! | `counts` | what was counted, and what the verdict rests on |
//! | `result` | the outcome, versioned |
//! | `capacity` | the search for the highest load that holds: no I/O |

mod api;
pub mod behavior;
mod body;
mod call_lag;
pub mod capacity;
mod client;
pub mod control;
pub mod counts;
mod engine;
mod fault_track;
pub mod fleet;
mod history;
pub mod intervals;
mod ledger;
#[cfg(test)]
mod model;
pub mod recorder;
pub mod result;
mod retry;
mod run;
pub mod scenario;
mod stats;
mod target;
mod tokens;
mod world;

pub use engine::{HISTORY_INCOMPLETE, RunError, RunOptions, check_fault, run};

pub use result::RunResult;
pub use scenario::Scenario;
pub use target::Target;
pub use world::check_talkers;

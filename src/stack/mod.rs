//! Roles and engines put together into a running system.
//!
//! | file | what |
//! |---|---|
//! | `config` | what a stack is made of |
//! | `node` | one server: its own runtime, its listeners, its role |
//! | `running` | a whole stack in this process: start, stop, kill, drain |
//! | `processes` | a stack whose servers are processes of their own |
//! | `secrets` | the keys of a deployment, as files |
//! | `fault_check` | which faults a stack can have done to it |
//! | `model` | seeded schedules against the real servers, on a clock that tests move |
//! | `haproxy` | another balancer in the gateway's place |
//! | `plan` | what a deployment of some size needs, and its placement simulated |
//! | `profile` | stacks with a name |

pub mod config;
pub mod fault_check;
pub mod haproxy;
#[cfg(test)]
mod model;
mod node;
pub mod plan;
pub mod processes;
pub mod profile;
mod running;
mod secrets;

pub use config::Config;
pub use processes::Supervisor;
pub use running::{NodeInfo, Stack, StackError, migrate};

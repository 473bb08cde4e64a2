//! Roles and engines put together into a running system.
//!
//! | file | what |
//! |---|---|
//! | `config` | what a stack is made of |
//! | `node` | one server: its own runtime, its listeners, its role |
//! | `running` | a whole stack in this process: start, stop, kill, drain |

pub mod config;
mod node;
mod running;

pub use config::Config;
pub use running::{NodeInfo, Stack, StackError, migrate};

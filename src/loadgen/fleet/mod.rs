//! One run spread over several generators: processes of this machine, or of others.
//!
//! Each worker simulates a population of its own: its users talk to each other and to nobody else's. So both ends of every
//! message are in one process, on one clock, under one ledger, and results merge without loss: counts are added,
//! histograms merged, violations listed. A server can't tell the difference (docs/adr/0016).
//!
//! | file | what |
//! |---|---|
//! | `split` | a scenario cut into parts |
//! | `wire` | what coordinator and worker say, over a pipe or TCP, and how each proves that it knows the secret |
//! | `worker` | runs one part |
//! | `hired` | a worker before it has a job: started or reached, its clocks compared with ours |
//! | `coordinator` | starts all parts at the same moment, does the faults, shows and judges the whole |
//! | `merge` | snapshots and results put together |

mod coordinator;
mod hired;
mod merge;
mod split;
mod wire;
mod worker;

pub use coordinator::{FleetOptions, run};
pub use hired::Worker;
pub use split::split;
pub use wire::{Secret, WireError};
pub use worker::{serve, serve_pipe};

//! A judge on trial: a proxy lies between the generator and a sound stack, and the verdict must say so, with the exact counts;
//! or it does what a sound server may do, and must not be accused.
//!
//! ```sh
//! cargo test --test lying                      # every mode, and the table
//! cargo test --test lying ack                  # the modes with `ack` in their names
//! cargo test --test lying sound::cut::seed_07  # one seed of a sound mode
//! ```
//!
//! | file | what |
//! |---|---|
//! | `modes/` | the modes: a lie and what must be said of it |
//! | `mode` | what a mode is |
//! | `proxy/` | the proxy, its hooks, what it counts and what it knows |
//! | `scenarios` | what is run |
//! | `run` | one mode, once |
//! | `harness` | arguments, order, the table |
//! | `body` | bodies for messages that nobody sent |

#[path = "../bench/args.rs"]
mod args;
mod body;
mod harness;
mod mode;
mod modes;
mod proxy;
mod run;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    harness::run_all(runtime.handle())
}

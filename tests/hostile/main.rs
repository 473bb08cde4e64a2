//! Hostile clients over raw sockets, against `chatctl up` in a process of its own: each case does what it can, and what
//! is asserted is how everybody else fares (invariants I10 and I12).
//!
//! ```sh
//! cargo test --test hostile            # every case
//! cargo test --test hostile flood::    # the cases with `flood::` in their names
//! ```
//!
//! While a case lasts, every health endpoint answers 200, users who were connected reach each other over two chat
//! servers, and a user who comes gets in. The process's memory never goes further above that of the case's start than
//! the case's bound. Once the case has ended its connections are gone, and `chatctl_connections` is what it was; at the
//! end of all cases the process has as many sockets as at first and not much more memory, and its log tells of no
//! panic. Bounds are counts and bytes, so the cases run one after the other.
//!
//! | file | what |
//! |---|---|
//! | `halves` | requests that begin and do not go on |
//! | `deaf` | clients that do not read |
//! | `flood` | much of everything |
//! | `odd` | what can't be meant: texts, tokens, upgrades |
//! | `smuggling` | requests that two servers might read differently |
//! | `single` | one user with a token against the rest |
//! | `peers` | strangers on the ports of peer links |
//! | `case` | what a case is, and the table of them |
//! | `bench` | the stack, those who mean no harm, and what is measured |
//! | `process` | what the system says of the stack's process |
//! | `wire` | requests and answers as bytes |
//! | `harness` | arguments, order, a line for each case |

#[path = "../bench/args.rs"]
#[allow(dead_code, reason = "these cases run one after the other")]
mod args;
mod bench;
mod case;
#[path = "../bench/client.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod client;
mod deaf;
mod flood;
mod halves;
mod harness;
mod odd;
mod peers;
mod process;
#[path = "../bench/raw.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod raw;
mod single;
mod smuggling;
#[path = "../bench/up.rs"]
mod up;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    harness::run_all(&runtime)
}

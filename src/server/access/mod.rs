//! Who may do what, and how much of it.
//!
//! | file | what |
//! |---|---|
//! | `auth` | tokens and passwords |
//! | `callers` | who may send a request by a token, and how often |
//! | `connects` | how often a user connects, and how many connections a device has at once |
//! | `keys` | the keys of a deployment, one for each use |
//! | `members` | who may read a conversation |
//! | `revocations` | which tokens were logged out |
//! | `rate` | how often something may be asked for: token buckets |
//! | `places` | connections that carry requests: the oldest that waits makes room, and an address has a share |
//! | `seats` | how many may be connected |
//! | `single_flight` | one look-up for all who want the same thing at the same time |
//! | `ttl_cache` | TTL cache with explicit invalidation, below `members` and `revocations` |

pub mod auth;
pub(super) mod callers;
pub(super) mod connects;
pub mod keys;
pub mod members;
pub(super) mod places;
pub mod rate;
mod revocations;
pub(super) mod seats;
mod single_flight;
mod ttl_cache;

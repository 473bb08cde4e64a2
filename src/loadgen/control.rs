//! What a scenario may do to the stack that it runs against, given by whoever started that stack.

use async_trait::async_trait;

use super::result::ProcessUsage;
use crate::protocol::Fault;

/// Hands on a stack. A run against somebody else's deployment has none.
#[async_trait]
pub trait StackControl: Send + Sync {
    /// Whether a fault can be done here.
    ///
    /// # Errors
    /// Says what is in the way, and the fix.
    async fn check(&self, fault: &Fault) -> Result<(), String>;

    /// Does a fault and returns when it is over. Dropping the future does not end the fault early.
    async fn do_fault(&self, fault: &Fault) -> Result<(), String>;

    /// What the processes of the stack, and the engines on this machine, have taken since they started.
    async fn usage(&self) -> Vec<ProcessUsage> {
        Vec::new()
    }
}

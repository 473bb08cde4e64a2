//! What a scenario may do to the stack that it runs against, given by whoever started that stack.

use async_trait::async_trait;

/// Hands on a stack. A run against somebody else's deployment has none.
#[async_trait]
pub trait StackControl: Send + Sync {
    /// Ends a server at once.
    async fn kill(&self, server: &str) -> Result<(), String>;

    /// Lets a server's clients leave, then stops it.
    async fn drain(&self, server: &str) -> Result<(), String>;
}

//! What faults do to a Redis server: to all of it, whoever uses it.

use redis::{Cmd, FromRedisValue};

use super::error::BackendResult;
use super::redis::Redis;

/// How much memory a server may take, and what it does then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Setting `maxmemory`, in bytes; 0 for all that there is.
    bytes_max: String,
    /// Setting `maxmemory-policy`.
    policy: String,
}

impl Memory {
    /// None for anything new, and nothing is evicted.
    #[must_use]
    pub fn full() -> Self {
        Self { bytes_max: "1".to_owned(), policy: "noeviction".to_owned() }
    }
}

impl Redis {
    async fn admin<T: FromRedisValue>(&self, operation: &'static str, command: &Cmd) -> BackendResult<T> {
        let mut connection = self.connection(operation).await?;
        let answer = command.query_async(&mut connection.commands).await;
        answer.map_err(|error| self.failed(operation, error, &connection))
    }

    /// Removes every key of every database.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn flush(&self) -> BackendResult<()> {
        self.admin("flush redis", &redis::cmd("FLUSHALL")).await
    }

    /// How much memory the server may take.
    ///
    /// # Errors
    /// Those of the server, such as that the account may not ask.
    pub async fn memory(&self) -> BackendResult<Memory> {
        let setting = async |name: &str| {
            let (_, value): (String, String) =
                self.admin("read the memory of redis", redis::cmd("CONFIG").arg("GET").arg(name)).await?;
            Ok(value)
        };
        Ok(Memory { bytes_max: setting("maxmemory").await?, policy: setting("maxmemory-policy").await? })
    }

    /// Sets how much memory the server may take, until it starts again.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn set_memory(&self, memory: &Memory) -> BackendResult<()> {
        // One at a time: several in one command are for Redis 7.
        for (name, value) in [("maxmemory-policy", &memory.policy), ("maxmemory", &memory.bytes_max)] {
            self.admin::<()>("set the memory of redis", redis::cmd("CONFIG").arg("SET").arg(name).arg(value)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;
    use crate::backends::contract::RedisPlace;
    use crate::backends::deployment::DeploymentId;
    use crate::backends::sequence::{RedisSequence, Sequence};

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn a_full_server_takes_no_writes_and_has_its_memory_back_afterwards() {
        let place = RedisPlace::<dyn Sequence>::new(|redis| Arc::new(RedisSequence::new(redis))).await;
        let redis = place.redis_of(DeploymentId(7)).await;
        let before = redis.memory().await.expect("reads");
        redis.set_memory(&Memory::full()).await.expect("sets");
        assert_eq!(redis.memory().await.expect("reads"), Memory::full());
        assert!(redis.probe("test").await.is_err(), "nothing new");
        redis.set_memory(&before).await.expect("sets");
        assert_eq!(redis.memory().await.expect("reads"), before);
        redis.probe("test").await.expect("writes");
        redis.flush().await.expect("flushes");
    }
}

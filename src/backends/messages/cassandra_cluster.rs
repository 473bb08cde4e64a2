//! What an address asks of a Cassandra cluster, and what the cluster says of itself.

use std::collections::{HashMap, HashSet};

use scylla::client::session::Session;

use crate::backends::version;

/// The first versions that give out rows by `PER PARTITION LIMIT` and are still kept up.
const CASSANDRA_MIN: version::Version = (3, 11);
const SCYLLA_MIN: version::Version = (4, 0);

/// An address such as `cassandra://user:password@host:9042,host:9042/keyspace?replicas=3&datacenter=dc1`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) user: Option<(String, String)>,
    pub(super) hosts: Vec<String>,
    pub(super) keyspace: String,
    /// As the address says, if it does.
    pub(super) replicas: Option<u8>,
    /// The only one whose nodes are asked, and whose quorum counts.
    pub(super) datacenter: Option<String>,
}

impl Address {
    pub(super) fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("cassandra://")?;
        // A password may hold anything.
        let (account, rest) = rest.rsplit_once('@').map_or((None, rest), |(account, rest)| (Some(account), rest));
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (mut replicas, mut datacenter) = (None, None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=')? {
                ("replicas", count) => replicas = Some(count.parse().ok().filter(|n| (1..=7).contains(n))?),
                // It goes into the text of a statement.
                ("datacenter", name) if !name.is_empty() && name.chars().all(|c| is_name(c) || "-.".contains(c)) => {
                    datacenter = Some(name.to_owned());
                }
                _ => return None,
            }
        }
        let (hosts, keyspace) = rest.split_once('/').unwrap_or((rest, "chatctl"));
        let user = match account {
            Some(account) => {
                let (user, password) = account.split_once(':')?;
                Some((user.to_owned(), password.to_owned()))
            }
            None => None,
        };
        let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let valid = !keyspace.is_empty() && keyspace.chars().all(is_name) && hosts.iter().all(|host| !host.is_empty());
        valid.then(|| Self { user, hosts, keyspace: keyspace.to_owned(), replicas, datacenter })
    }
}

impl Address {
    /// Whether there are the nodes that it asks for.
    pub(super) fn check_nodes(&self, session: &Session) -> Result<(), String> {
        let state = session.get_cluster_state();
        let centers: Vec<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
        let is_counted = |center: &&str| self.datacenter.as_deref().is_none_or(|own| own == *center);
        let nodes = match &self.datacenter {
            Some(_) => centers.iter().copied().filter(is_counted).count(),
            None => state.get_nodes_info().len(),
        };
        if let Some(datacenter) = self.datacenter.as_ref().filter(|_| nodes == 0) {
            let names: HashSet<&str> = centers.into_iter().collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!("there is no data center {datacenter}: valid are {names}"));
        }
        match self.replicas {
            Some(replicas) if usize::from(replicas) > nodes => Err(format!(
                "replicas={replicas} needs as many nodes, there are {nodes}: no write would be acknowledged"
            )),
            _ => Ok(()),
        }
    }
}

pub(super) fn tables(keyspace: &str, datacenter: &str, replicas: u8) -> [String; 5] {
    [
        format!(
            "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
             {{'class': 'NetworkTopologyStrategy', '{datacenter}': {replicas}}}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.messages (\
             conversation_id bigint, bucket bigint, message_id bigint, sender_id bigint, uuid uuid, content_type text, \
             content text, reply_to bigint, timestamp bigint, status tinyint, \
             PRIMARY KEY ((conversation_id, bucket), message_id)) WITH CLUSTERING ORDER BY (message_id DESC)"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.message_buckets (\
             conversation_id bigint, bucket bigint, PRIMARY KEY (conversation_id, bucket)) \
             WITH CLUSTERING ORDER BY (bucket DESC)"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.conversation_heads (\
             conversation_id bigint PRIMARY KEY, epoch bigint, block_end bigint)"
        ),
        format!("CREATE TABLE IF NOT EXISTS {keyspace}.store_marks (name text PRIMARY KEY, value text)"),
    ]
}

/// The data center of the node that answers.
pub(super) async fn datacenter(session: &Session) -> Result<String, String> {
    let answer = session.query_unpaged("SELECT data_center FROM system.local", ()).await.map_err(|e| e.to_string())?;
    let rows = answer.into_rows_result().map_err(|e| e.to_string())?;
    rows.single_row::<(String,)>().map(|(name,)| name).map_err(|e| e.to_string())
}

/// How many replicas a keyspace has whose quorum counts.
pub(super) async fn replicas_of(session: &Session, address: &Address) -> Result<u32, String> {
    let query = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let answer = session.query_unpaged(query, (&address.keyspace,)).await.map_err(|e| e.to_string())?;
    let rows = answer.into_rows_result().map_err(|e| e.to_string())?;
    let (replication,) = rows.single_row::<(HashMap<String, String>,)>().map_err(|e| e.to_string())?;
    match replicas_in(&replication, address.datacenter.as_deref()) {
        0 => Err(format!("keyspace {} has no replica in {:?}", address.keyspace, address.datacenter)),
        replicas => Ok(replicas),
    }
}

/// The sum of a replication's numbers: one for each data center, or one for all. (A number such as `3/1` has transient ones.)
fn replicas_in(replication: &HashMap<String, String>, datacenter: Option<&str>) -> u32 {
    let counts = replication.iter().filter(|(name, _)| datacenter.is_none_or(|datacenter| *name == datacenter));
    counts.filter_map(|(_, value)| value.split('/').next()?.parse::<u32>().ok()).sum()
}

/// Product and version of a node that is new enough. `ScyllaDB` calls itself an old Cassandra in the table that both have,
/// and tells its own version in one that only it has.
pub(super) async fn checked_version(session: &Session) -> Result<String, String> {
    const SCYLLA: &str = "SELECT version FROM system.versions WHERE key = 'local'";
    const CASSANDRA: &str = "SELECT release_version FROM system.local";
    let ask = async |query: &str| {
        let rows = session.query_unpaged(query, ()).await.ok()?.into_rows_result().ok()?;
        rows.single_row::<(String,)>().ok().map(|(version,)| version)
    };
    let (product, found, needed) = match ask(SCYLLA).await {
        Some(found) => ("ScyllaDB", found, SCYLLA_MIN),
        None => ("Cassandra", ask(CASSANDRA).await.unwrap_or_default(), CASSANDRA_MIN),
    };
    version::at_least(product, &found, needed)?;
    Ok(format!("{product} {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_added_over_data_centers() {
        let replication = |pairs: &[(&str, &str)]| {
            replicas_in(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), None)
        };
        assert_eq!(
            replication(&[("class", "org.apache.cassandra.locator.SimpleStrategy"), ("replication_factor", "1")]),
            1
        );
        let two = [("class", "NetworkTopologyStrategy"), ("dc1", "3"), ("dc2", "2/1")];
        assert_eq!(replication(&two), 5);
        let two: HashMap<String, String> = two.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!((replicas_in(&two, Some("dc2")), replicas_in(&two, Some("dc3"))), (2, 0));
    }

    #[test]
    fn an_address_is_taken_apart() {
        let address = Address::parse("cassandra://u:p@a:1,b:2/ks?replicas=3").expect("valid");
        let user = Some(("u".to_owned(), "p".to_owned()));
        let hosts = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(address, Address { user, hosts, keyspace: "ks".to_owned(), replicas: Some(3), datacenter: None });
        let local = Address::parse("cassandra://a:1/ks?datacenter=eu-west.1&replicas=3").expect("valid");
        assert_eq!((local.datacenter.as_deref(), local.replicas), (Some("eu-west.1"), Some(3)));
        let secret = Address::parse("cassandra://u:p?/@q@a:1/ks?replicas=3").expect("valid");
        assert_eq!(secret.user, Some(("u".to_owned(), "p?/@q".to_owned())));
        assert_eq!(
            (secret.hosts, secret.keyspace, secret.replicas),
            (vec!["a:1".to_owned()], "ks".to_owned(), Some(3))
        );
        assert_eq!(Address::parse("cassandra://a:1").expect("valid").keyspace, "chatctl");
        for bad in [
            "cassandra://",
            "cassandra://a/b-c",
            "cassandra://a/b?replicas=9",
            "redis://a",
            "cassandra://a/b?datacenter=d'c",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }
}

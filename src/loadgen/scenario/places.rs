//! Where in a text the values of a scenario stand, so that an error names the right line: of `phases[2].rate`, not of the first
//! `rate`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{NonFiniteFloatPolicy, Spanned};

/// The values of a text, each with its place.
pub(super) struct Places(Node);

enum Node {
    Map(Vec<(Spanned<String>, Node)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

impl Places {
    /// Reads a text that is known to be a scenario; `None` where it can't be read again.
    pub(super) fn read(text: &str) -> Option<Self> {
        let options = serde_saphyr::options! { non_finite_float_policy: NonFiniteFloatPolicy::PassThrough };
        serde_saphyr::from_str_with_options(text, options).ok().map(Self)
    }

    /// Line and column of a value such as `phases[2].rate`, by its key. Where the text does not have it, those of what would
    /// contain it; `None` for the whole.
    pub(super) fn find(&self, path: &str) -> Option<(u64, u64)> {
        self.walk(path).0
    }

    /// Whether the text has a value at a path, rather than leaving it to the default.
    pub(super) fn has(&self, path: &str) -> bool {
        self.walk(path).1
    }

    /// The place of the deepest value on the way, and whether it is the last.
    fn walk(&self, path: &str) -> (Option<(u64, u64)>, bool) {
        let (mut node, mut place) = (&self.0, None);
        for step in path.split(['.', '[']).map(|step| step.trim_end_matches(']')) {
            let found = match node {
                Node::Map(entries) => entries.iter().find(|(key, _)| key.value == step).map(|(key, value)| {
                    let at = key.referenced;
                    (value, (at.line(), at.column()))
                }),
                Node::List(items) => step.parse().ok().and_then(|n: usize| items.get(n)).map(|item| {
                    let at = item.referenced;
                    (&item.value, (at.line(), at.column()))
                }),
                Node::Scalar => None,
            };
            let Some((next, at)) = found else { return (place, false) };
            (node, place) = (next, Some(at));
        }
        (place, true)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key()? {
                    entries.push((key, map.next_value()?));
                }
                Ok(Node::Map(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
name: t
phases:
  - {phase: warm-up, duration: 1s}
  - phase: steady
    rate: 5
population:
  users: 3
odd: [.nan, -.inf, true, null, 99999999999999999999999]
";

    #[test]
    fn a_value_is_found_by_its_path_and_a_missing_one_by_what_would_hold_it() {
        let places = Places::read(TEXT).expect("reads");
        assert_eq!(places.find("phases[1].rate"), Some((6, 5)));
        assert_eq!(places.find("phases[0].duration"), Some((4, 22)));
        assert_eq!(places.find("phases[0].rate"), Some((4, 5)), "the phase that has none");
        assert_eq!(places.find("population.users"), Some((8, 3)));
        assert_eq!(places.find("churn.every"), None);
        assert!(places.has("phases[1].rate") && !places.has("phases[0].rate") && !places.has("phases[2]"));
        assert!(Places::read("{").is_none());
    }
}

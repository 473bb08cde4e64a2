//! Numbers that are drawn from a range, or fixed.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A whole number drawn evenly from a range, or fixed: `{min: 1, max: 3}`, or `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrBoth)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Both {
    min: u32,
    max: u32,
}

struct OneOrBoth;

impl<'de> Visitor<'de> for OneOrBoth {
    type Value = Range;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number such as 2, or {min: 1, max: 3}")
    }

    fn visit_u64<E: de::Error>(self, fixed: u64) -> Result<Range, E> {
        let fixed = u32::try_from(fixed).map_err(|_| E::custom(format!("{fixed} is too large")))?;
        Ok(Range { min: fixed, max: fixed })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Range, A::Error> {
        let Both { min, max } = Both::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Range { min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_number_or_two() {
        let read = |text: &str| serde_saphyr::from_str::<Range>(text);
        assert_eq!(read("{min: 1, max: 3}").expect("valid"), Range { min: 1, max: 3 });
        assert_eq!(read("2").expect("valid"), Range { min: 2, max: 2 });
        for bad in ["-1", "x", "{min: 1}", "{min: 1, max: 2, mean: 1}", "5000000000", "1.5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let written = serde_json::to_string(&Range { min: 2, max: 2 }).expect("plain data");
        assert_eq!(serde_json::from_str::<Range>(&written).expect("reads"), Range { min: 2, max: 2 });
    }
}

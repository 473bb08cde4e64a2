//! How late things were, second by second: what one slow minute explains, it explains of that minute only.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Time around what is judged in which a lateness counts as well: it is seen only where something was under way.
const AROUND_US: u64 = 5_000_000;

/// Longest lateness whose every second is kept.
const SPAN_MAX_S: u64 = 3_600;

/// Bits of the newest entry that hold its lateness; the others hold its second.
const LATE_BITS: u32 = 40;

/// The greatest lateness of each second. Written by devices.
#[derive(Default)]
pub(super) struct Lateness {
    by_second: Mutex<BTreeMap<u64, u64>>,
    /// The newest second with its greatest lateness: most of what comes is below it, and takes no lock.
    newest: AtomicU64,
}

const fn second_of(us: u64) -> u64 {
    us / 1_000_000
}

impl Lateness {
    /// Something that came at `now_us` was under way, or waited, for `us`.
    pub(super) fn note(&self, now_us: u64, us: u64) {
        if us == 0 {
            return;
        }
        let last = second_of(now_us);
        let entry = (last << LATE_BITS) | us.min((1 << LATE_BITS) - 1);
        let newest = self.newest.load(Ordering::Relaxed);
        if newest >> LATE_BITS == entry >> LATE_BITS && entry <= newest {
            return;
        }
        self.newest.fetch_max(entry, Ordering::Relaxed);
        let first = second_of(now_us.saturating_sub(us)).max(last.saturating_sub(SPAN_MAX_S));
        let mut by_second = self.by_second.lock().expect("no panic while held");
        for second in first..=last {
            let greatest = by_second.entry(second).or_default();
            *greatest = us.max(*greatest);
        }
    }

    /// The greatest lateness of what was under way between two times, or a moment before or after.
    pub(super) fn between(&self, from_us: u64, until_us: u64) -> u64 {
        let (from, until) = (from_us.saturating_sub(AROUND_US), until_us.saturating_add(AROUND_US));
        let by_second = self.by_second.lock().expect("no panic while held");
        by_second.range(second_of(from)..=second_of(until.max(from))).map(|(_, us)| *us).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn a_lateness_counts_while_it_lasted() {
        let late = Lateness::default();
        late.note(50 * S, 10 * S);
        late.note(50 * S + 1, 2 * S);
        late.note(51 * S, 3);
        assert_eq!(late.between(30 * S, 34 * S), 0);
        assert_eq!(late.between(30 * S, 35 * S), 10 * S, "it began a moment later");
        assert_eq!(late.between(45 * S, 46 * S), 10 * S);
        assert_eq!(late.between(55 * S, 90 * S), 10 * S, "it ended a moment before");
        assert_eq!([late.between(56 * S, 90 * S), late.between(57 * S, 90 * S)], [3, 0]);
    }
}

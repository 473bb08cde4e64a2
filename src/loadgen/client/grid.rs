//! Heartbeats that go out together.

/// The first multiple of `grid_us` at or after `due_us`, on the wall clock, which is `offset_us` ahead of the run's: processes of
/// one machine have one wall clock, and so one grid. 0 stands for no grid.
pub(super) const fn align(due_us: u64, grid_us: u64, offset_us: u64) -> u64 {
    if grid_us == 0 {
        return due_us;
    }
    due_us + until_multiple(due_us.wrapping_add(offset_us), grid_us)
}

/// From a time until the next multiple of `grid_us`.
const fn until_multiple(at_us: u64, grid_us: u64) -> u64 {
    at_us.next_multiple_of(grid_us) - at_us
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_on_the_grid_stays_and_others_wait_for_the_next() {
        let waits = [0, 1, 19, 20, 21].map(|at| until_multiple(1_000 + at, 20));
        assert_eq!(waits, [0, 19, 1, 0, 19]);
    }

    #[test]
    fn no_grid_changes_nothing() {
        assert_eq!(align(1_007, 0, 3), 1_007);
        assert_eq!(align(1_007, 20, 3), 1_017);
    }
}

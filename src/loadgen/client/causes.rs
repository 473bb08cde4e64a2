//! Whether what failed did so by a limit of this machine, or by the target.

/// What calls have failed by since a time.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::loadgen) struct Causes {
    here: bool,
    there: bool,
}

impl Causes {
    /// Notes a failure; `is_local` says whether it was a limit of this machine.
    pub(in crate::loadgen) const fn note(&mut self, is_local: bool) {
        self.here |= is_local;
        self.there |= !is_local;
    }

    /// Whether something failed, and all of it by a limit of this machine.
    pub(in crate::loadgen) const fn are_only_here(self) -> bool {
        self.here && !self.there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_of_the_target_is_the_targets() {
        let only_here = |failures: &[bool]| {
            let mut causes = Causes::default();
            for is_local in failures {
                causes.note(*is_local);
            }
            causes.are_only_here()
        };
        assert!(only_here(&[true]) && only_here(&[true, true]));
        assert!(!only_here(&[]) && !only_here(&[false]) && !only_here(&[true, false, true]));
    }
}

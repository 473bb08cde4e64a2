//! A mode: what is done to the traffic, and what the verdict must say of it.

use chatctl::loadgen::RunResult;
use chatctl::loadgen::result::Verdict;

use crate::proxy::{LIES, Lie, Proxy};
use crate::scenarios;

/// A kind of misbehaviour, or of sound behaviour that is easily taken for it.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    /// `lie::…` for what must be found, `sound::…` for what must not be accused.
    pub(crate) name: &'static str,
    pub(crate) scenario: &'static str,
    pub(crate) stack: StackKind,
    pub(crate) lie: Lie,
    pub(crate) expect: Expect,
    /// About how long it takes, in seconds: the longest begin first.
    pub(crate) takes_s: u32,
    /// Runs with seeds 1 to this.
    pub(crate) seeds: u64,
}

/// The stack behind the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StackKind {
    /// Sound.
    Usual,
    /// Its tokens live for a few seconds.
    ShortTokens,
}

/// What must be said.
#[derive(Clone, Copy)]
pub(crate) struct Expect {
    /// One of these.
    pub(crate) verdicts: &'static [Verdict],
    /// Stands in one of the reasons; empty for nothing in particular.
    pub(crate) reason: &'static str,
    /// Names of counts, or of several with `+` or `-` between, and what they must be.
    pub(crate) counts: &'static [(&'static str, Want)],
    /// Violations that follow from the lie and are not counted here. All that are not named are zero.
    pub(crate) also: &'static [&'static str],
    /// What else must hold.
    pub(crate) extra: fn(&Proxy, &RunResult) -> Result<(), String>,
}

/// What a count must be. Names are of the proxy's tally.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    Is(&'static str),
    Within(&'static str, &'static str),
    Least(u64),
    Number(u64),
}

use Want::{Is, Least, Number, Within};

/// Counts of broken guarantees.
pub(crate) const VIOLATIONS: [&str; 14] = [
    "lost",
    "duplicated",
    "out_of_order",
    "id_reuse",
    "id_went_back",
    "leaked",
    "altered",
    "false_refusal",
    "false_acceptance",
    "ack_wrong",
    "forged",
    "presence_wrong",
    "presence_missed",
    "presence_leaked",
];

impl Expect {
    const NOTHING: Self = Self { verdicts: &[], reason: "", counts: &[], also: &[], extra: |_, _| Ok(()) };

    /// A broken guarantee.
    pub(crate) const fn violated(counts: &'static [(&'static str, Want)]) -> Self {
        Self { verdicts: &[Verdict::LedgerViolated], counts, ..Self::NOTHING }
    }

    /// A failed threshold that is named in a reason.
    pub(crate) const fn failed(reason: &'static str, counts: &'static [(&'static str, Want)]) -> Self {
        Self { verdicts: &[Verdict::ThresholdFailed], reason, counts, ..Self::NOTHING }
    }

    /// A pass.
    pub(crate) const fn passed(counts: &'static [(&'static str, Want)]) -> Self {
        Self { verdicts: &[Verdict::Pass], counts, ..Self::NOTHING }
    }

    /// A pass, or a threshold that is not met because it was slow or cut.
    pub(crate) const fn not_accused(counts: &'static [(&'static str, Want)]) -> Self {
        Self { verdicts: &[Verdict::Pass, Verdict::ThresholdFailed], counts, ..Self::NOTHING }
    }

    /// Violations that may be there, too.
    pub(crate) const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    pub(crate) const fn extra(self, extra: fn(&Proxy, &RunResult) -> Result<(), String>) -> Self {
        Self { extra, ..self }
    }

    /// What is wrong with a result; empty when it is as it must be.
    pub(crate) fn problems(&self, proxy: &Proxy, result: &RunResult) -> Vec<String> {
        let mut problems = Vec::new();
        if proxy.tally.get(LIES) == 0 {
            problems.push("the proxy never got the chance: nothing is shown".to_owned());
        }
        if !self.verdicts.contains(&result.verdict) {
            problems.push(format!("the verdict is {}: {:?}", result.verdict.word(), result.reasons));
        }
        if !self.reason.is_empty() && !result.reasons.iter().any(|reason| reason.contains(self.reason)) {
            problems.push(format!("no reason names {}: {:?}", self.reason, result.reasons));
        }
        for (name, want) in self.counts {
            problems.extend(want.problem(name, proxy, result));
        }
        for name in VIOLATIONS {
            let is_named = self.also.contains(&name) || self.counts.iter().any(|(n, _)| *n == name);
            match result.counts.get(name) {
                Some(n) if n > 0.0 && !is_named => problems.push(format!("accused of {name}: {n}")),
                _ => {}
            }
        }
        problems.extend((self.extra)(proxy, result).err());
        problems
    }

    /// What is expected and what came, for the table.
    pub(crate) fn row(&self, proxy: &Proxy, result: &RunResult) -> (String, String) {
        let verdicts: Vec<&str> = self.verdicts.iter().map(|v| v.word()).collect();
        let mut expected = vec![verdicts.join(" or ")];
        if !self.reason.is_empty() {
            expected.push(format!("by {}", self.reason));
        }
        expected.extend(self.counts.iter().map(|(name, want)| format!("{name} {}", want.text(proxy))));
        let mut got = vec![result.verdict.word().to_owned()];
        got.extend(self.counts.iter().map(|(name, _)| match value(name, result) {
            Ok(n) => format!("{name} {n}"),
            Err(_) => format!("{name} is not counted"),
        }));
        (expected.join(", "), got.join(", "))
    }
}

impl Want {
    fn holds(self, n: i64, proxy: &Proxy) -> bool {
        let tally = |name| i64::try_from(proxy.tally.get(name)).unwrap_or(i64::MAX);
        match self {
            Is(name) => n == tally(name),
            Within(least, most) => (tally(least)..=tally(most)).contains(&n),
            Least(least) => n >= i64::try_from(least).unwrap_or(i64::MAX),
            Number(number) => n == i64::try_from(number).unwrap_or(i64::MAX),
        }
    }

    fn text(self, proxy: &Proxy) -> String {
        let tally = |name| proxy.tally.get(name);
        match self {
            Is(name) => format!("= {}", tally(name)),
            Within(least, most) => format!("= {}..{}", tally(least), tally(most)),
            Least(least) => format!(">= {least}"),
            Number(number) => format!("= {number}"),
        }
    }

    fn problem(self, name: &str, proxy: &Proxy, result: &RunResult) -> Option<String> {
        match value(name, result) {
            Ok(n) if self.holds(n, proxy) => None,
            Ok(n) => Some(format!("{name} is {n}, must be {}", self.text(proxy))),
            Err(missing) => Some(format!("there is no count {missing}: {name} must be {}", self.text(proxy))),
        }
    }
}

/// The value of a count, or of a sum or difference of counts; the name of one that there is not.
fn value(expression: &str, result: &RunResult) -> Result<i64, String> {
    let (mut sum, mut sign, mut rest) = (0, 1, expression);
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let n = result.counts.get(&rest[..end]).ok_or_else(|| rest[..end].to_owned())?;
        sum += sign * n as i64;
        match rest[end..].chars().next() {
            None => return Ok(sum),
            Some(operator) => sign = if operator == '-' { -1 } else { 1 },
        }
        rest = &rest[end + 1..];
    }
}

impl Mode {
    /// A lie about talk.
    pub(crate) const LIE: Self = Self {
        name: "",
        scenario: scenarios::TALK,
        stack: StackKind::Usual,
        lie: Lie::NONE,
        expect: Expect::NOTHING,
        takes_s: 8,
        seeds: 1,
    };

    /// A run of brief talk, twenty times.
    pub(crate) const SOUND: Self =
        Self { scenario: scenarios::BRIEF, expect: Expect::not_accused(&[]), takes_s: 5, seeds: 20, ..Self::LIE };
}

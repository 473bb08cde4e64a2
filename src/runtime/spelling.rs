//! What somebody may have meant who misspelt a name.

/// The candidate that is nearest to a text, where one is near: a third of its characters wrong at the most.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Characters past which a text is no misspelt name.
    const LONGEST: usize = 80;
    let length = text.chars().count();
    let most = (length / 3).max(1);
    let is_name = length > 1 && length <= LONGEST;
    let near = candidates.into_iter().filter(|_| is_name).map(|candidate| (distance(text, candidate), candidate));
    near.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// The question to whoever misspelt a name: `: did you mean "p95"?`, or nothing where no candidate is near.
#[must_use]
pub fn did_you_mean<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(text, candidates).map(|near| format!(": did you mean {near:?}?")).unwrap_or_default()
}

/// How many characters have to be added, left out, changed or swapped with their neighbour. Source: Damerau, "A technique for
/// computer detection and correction of spelling errors", 1964; the form that touches no character twice.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i.max(j);
                continue;
            }
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        let names = ["duration", "rate", "rate_to", "phase"];
        for (text, near) in [("duraton", "duration"), ("rtae", "rate"), ("rateto", "rate_to"), ("phases", "phase")] {
            assert_eq!(nearest(text, names), Some(near), "{text}");
        }
        for text in ["happiness", "", "x", "d\u{fc}", &"x".repeat(10_000)] {
            assert_eq!(nearest(text, names), None, "{text}");
        }
        assert_eq!(did_you_mean("rat", names), ": did you mean \"rate\"?");
        assert_eq!(did_you_mean("happiness", names), "");
    }
}

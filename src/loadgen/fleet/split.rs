//! A scenario cut into parts of about the same size.

use crate::loadgen::Scenario;
use crate::loadgen::scenario::Groups;

/// Cuts a scenario into `parts`: users, groups and rates are shared out; times, behaviours and faults are the same in each.
///
/// # Errors
/// When a group would be larger than the part that it lies in, or a part would have less than two users.
pub fn split(scenario: &Scenario, parts: usize) -> Result<Vec<Scenario>, String> {
    let count = parts as u32;
    let population = &scenario.population;
    if population.users < 2 * count {
        return Err(format!("{} users over {parts} workers: each needs at least two", population.users));
    }
    let smallest = population.users / count;
    if let Some(groups) = population.groups.iter().find(|g| g.members.max > smallest) {
        return Err(format!(
            "a group of up to {} members does not fit into one of {parts} workers with {smallest} users each: \
             use fewer workers, or smaller groups",
            groups.members.max
        ));
    }
    let mut out: Vec<Scenario> = Vec::with_capacity(parts);
    let mut groups_before = 0;
    let mut shares: Vec<Vec<Groups>> = vec![Vec::new(); parts];
    for groups in &population.groups {
        for (index, share) in (0..count).zip(&mut shares) {
            // The remainder goes on where that of the groups before ended.
            let place = (index + count - groups_before % count) % count;
            let own = groups.count / count + u32::from(place < groups.count % count);
            if own > 0 {
                share.push(Groups { count: own, ..*groups });
            }
        }
        groups_before += groups.count;
    }
    for (index, groups) in (0..count).zip(shares) {
        let mut part = scenario.clone();
        part.seed = scenario.seed.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        part.population.users = smallest + u32::from(index < population.users % count);
        part.population.groups = groups;
        // The whole is judged, not its parts.
        part.thresholds = Vec::new();
        out.push(part);
    }
    share_rates(scenario, &mut out);
    Ok(out)
}

/// Shares out the rates by users, over the parts in which somebody has a conversation to talk in.
fn share_rates(whole: &Scenario, parts: &mut [Scenario]) {
    let can_talk = |part: &Scenario| part.talkers().next().is_some();
    let talking: f64 = parts.iter().filter(|p| can_talk(p)).map(|p| f64::from(p.population.users)).sum();
    let with_groups = parts.iter().filter(|p| !p.population.groups.is_empty()).count();
    for part in parts {
        let share = if can_talk(part) { f64::from(part.population.users) / talking } else { 0.0 };
        for phase in &mut part.phases {
            phase.rate *= share;
            phase.rate_to = phase.rate_to.map(|rate| rate * share);
        }
        if part.population.groups.is_empty() {
            part.churn = None;
        }
        if let Some(churn) = &mut part.churn {
            churn.every = whole.churn.map_or(churn.every, |c| c.every) * with_groups.max(1) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = "{name: t, seed: 7, population: {users: 11, groups: [{count: 4, members: {min: 2, max: 3}}, \
                    {count: 3, members: {min: 2, max: 2}}]}, behaviors: {group-talker: 1}, churn: {every: 2s, back_after: 1s}, \
                    phases: [{phase: ramp, duration: 1s, rate: 10, rate_to: 20}], thresholds: ['lost == 0']}";
        Scenario::parse(text, "t").expect("valid")
    }

    #[test]
    fn nothing_is_lost_or_added_by_cutting() {
        let whole = scenario();
        let parts = split(&whole, 3).expect("fits");
        assert_eq!(parts.iter().map(|p| p.population.users).collect::<Vec<_>>(), [4, 4, 3]);
        let groups = |p: &Scenario| p.population.groups.iter().map(|g| g.count).sum::<u32>();
        assert_eq!(parts.iter().map(groups).collect::<Vec<_>>(), [3, 2, 2], "the remainders go round");
        let rate: f64 = parts.iter().map(|p| p.phases[0].rate).sum();
        let rate_to: f64 = parts.iter().filter_map(|p| p.phases[0].rate_to).sum();
        assert!((rate - 10.0).abs() < 1e-9 && (rate_to - 20.0).abs() < 1e-9);
        let seeds: std::collections::BTreeSet<u64> = parts.iter().map(|p| p.seed).collect();
        assert!(seeds.len() == 3 && seeds.contains(&7));
        assert!(parts.iter().all(|p| p.thresholds.is_empty()));
        assert_eq!(parts[0].churn.expect("kept").every, std::time::Duration::from_secs(6));
    }

    #[test]
    fn a_part_without_conversations_has_no_rate() {
        let mut whole = scenario();
        whole.population.groups.truncate(1);
        whole.population.groups[0].count = 2;
        let rates: Vec<f64> = split(&whole, 3).expect("fits").iter().map(|p| p.phases[0].rate).collect();
        assert_eq!((rates[2], rates[0] + rates[1]), (0.0, 10.0));
    }

    #[test]
    fn what_can_not_be_cut_is_said() {
        assert!(split(&scenario(), 6).expect_err("too few users").contains("11 users over 6 workers"));
        assert!(split(&scenario(), 4).expect_err("too large a group").contains("up to 3 members"));
    }
}

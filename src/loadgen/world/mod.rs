//! Who is simulated: users, devices and conversations, drawn from the seed and made through the API.

mod setup;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

pub(super) use self::setup::Progress;
use super::api::{Api, Error};
use super::behavior::Behavior;
use super::scenario::{Range, Scenario};
use super::tokens::{Stale, Token, Tokens};
use crate::protocol::api::{ACCOUNTS_PER_CALL_MAX, ConversationKind};
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::protocol::{ConversationId, DeviceName, UserId};
use crate::runtime::clock;

pub(super) const PASSWORD: &str = "simulated user";

/// Largest population that is drawn only to be looked at.
const LOOKED_AT_USERS_MAX: u32 = 100_000;

/// Whether anybody can send, of the population that the scenario's seed draws: a talker may have been drawn into no conversation of
/// the kind that it talks in. Larger populations are not looked at: of many somebody can.
///
/// # Errors
/// Says that nobody can.
pub fn check_talkers(scenario: &Scenario) -> Result<(), String> {
    let asked = scenario.phases.iter().any(|phase| phase.rate > 0.0 || phase.rate_to.is_some_and(|rate| rate > 0.0));
    if !asked || scenario.population.users > LOOKED_AT_USERS_MAX {
        return Ok(());
    }
    let world = World::draw(scenario, 0);
    let talks = |user: u32| {
        let talks = world.users[user as usize].behavior.spec().talks;
        let mut kinds = world.conversations_of(user).iter().map(|c| world.conversations[*c as usize].kind);
        kinds.any(|kind| talks.talks_in(kind))
    };
    if (0..scenario.population.users).any(talks) {
        return Ok(());
    }
    Err(format!(
        "with seed {} none of {} users talks and has a conversation to talk in: give talkers more weight, add conversations, or \
         change the seed",
        scenario.seed, scenario.population.users
    ))
}

/// A simulated user.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) id: UserId,
    pub(super) behavior: Behavior,
    /// Index of the user's first device among the clients; the others follow it.
    clients_at: u32,
    /// Where the user's part of [`World::user_conversations`] begins.
    conversations_at: u32,
}

/// A simulated device.
#[derive(Debug, Clone)]
pub(super) struct ClientSpec {
    pub(super) user: u32,
    /// What login returned during the setup; empty before. [`World::token`] has the one that is good now.
    pub(super) token: Box<str>,
}

/// A conversation.
#[derive(Debug, Clone)]
pub(super) struct ConversationSpec {
    pub(super) id: ConversationId,
    pub(super) kind: ConversationKind,
    pub(super) owner: u32,
    /// Where the conversation's part of [`World::members`] begins, and how long it is.
    members_at: u32,
    members: u32,
}

impl ConversationSpec {
    /// True above the size that is fanned out on write.
    pub(super) const fn is_large(&self) -> bool {
        self.members as usize > FANOUT_ON_WRITE_MEMBERS_MAX
    }
}

/// Everybody and everything of a run. Lists of lists are kept flat: there may be millions of them.
#[derive(Debug, Default)]
pub(super) struct World {
    run: u32,
    pub(super) users: Vec<User>,
    pub(super) clients: Vec<ClientSpec>,
    pub(super) conversations: Vec<ConversationSpec>,
    pub(super) friends: Vec<(u32, u32)>,
    /// Indexes of users, rising by conversation.
    members: Vec<u32>,
    /// Indexes of conversations, rising by user.
    user_conversations: Vec<u32>,
    /// Sorted by id.
    by_conversation: Vec<(ConversationId, u32)>,
    /// Sorted by id.
    by_user: Vec<(UserId, u32)>,
    /// Which try of each call for many accounts was answered: it stands in the names. Empty where accounts were made one by one.
    bulk_tries: Vec<u16>,
    /// Tokens that were renewed.
    tokens: Tokens,
    /// Whether the scenario has faults.
    has_faults: bool,
}

impl World {
    /// Draws a world from the scenario's seed; nothing has an id yet.
    pub(super) fn draw(scenario: &Scenario, run: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(scenario.seed);
        let population = &scenario.population;
        let mut world = Self { run, has_faults: !scenario.faults.is_empty(), ..Self::default() };
        for user in 0..population.users {
            let clients_at = world.clients.len() as u32;
            let devices = draw(&mut rng, population.devices_per_user);
            world.clients.extend((0..devices).map(|_| ClientSpec { user, token: Box::default() }));
            let behavior = draw_behavior(&mut rng, scenario);
            world.users.push(User { id: UserId(0), behavior, clients_at, conversations_at: 0 });
        }
        world.friends = draw_pairs(&mut rng, population.users, population.friends_per_user);
        for (a, b) in draw_pairs(&mut rng, population.users, population.direct_per_user) {
            world.add_conversation(ConversationKind::Direct, &[a, b], a);
        }
        for groups in &population.groups {
            for _ in 0..groups.count {
                let size = draw(&mut rng, groups.members) as usize;
                let members = rand::seq::index::sample(&mut rng, population.users as usize, size);
                let mut members: Vec<u32> = members.into_iter().map(|n| n as u32).collect();
                let owner = members[0];
                members.sort_unstable();
                world.add_conversation(ConversationKind::Group, &members, owner);
            }
        }
        world.index_users();
        world
    }

    fn add_conversation(&mut self, kind: ConversationKind, members: &[u32], owner: u32) {
        let members_at = self.members.len() as u32;
        self.members.extend_from_slice(members);
        let members = members.len() as u32;
        self.conversations.push(ConversationSpec { id: ConversationId(0), kind, owner, members_at, members });
    }

    /// Lists each user's conversations, from the conversations' members.
    fn index_users(&mut self) {
        let mut counts = vec![0_u32; self.users.len()];
        for member in &self.members {
            counts[*member as usize] += 1;
        }
        let mut at = 0;
        for (user, count) in self.users.iter_mut().zip(&counts) {
            user.conversations_at = at;
            at += count;
        }
        let mut next: Vec<u32> = self.users.iter().map(|user| user.conversations_at).collect();
        self.user_conversations = vec![0; at as usize];
        for index in 0..self.conversations.len() as u32 {
            for member in members_of(&self.conversations, &self.members, index) {
                let place = &mut next[*member as usize];
                self.user_conversations[*place as usize] = index;
                *place += 1;
            }
        }
    }

    /// Number of the run.
    #[cfg(test)]
    pub(super) const fn run(&self) -> u32 {
        self.run
    }

    /// Gives everything an id, as `create` does.
    #[cfg(test)]
    pub(super) fn number_for_tests(&mut self) {
        for (n, user) in (1..).zip(&mut self.users) {
            user.id = UserId(n);
        }
        for (n, conversation) in (1..).zip(&mut self.conversations) {
            conversation.id = ConversationId(n);
        }
        self.index_ids();
    }

    /// Indexes what has an id now.
    fn index_ids(&mut self) {
        self.by_user = (0..).zip(&self.users).map(|(n, user)| (user.id, n)).collect();
        self.by_user.sort_unstable();
        self.by_conversation = (0..).zip(&self.conversations).map(|(n, c)| (c.id, n)).collect();
        self.by_conversation.sort_unstable();
    }

    /// Indexes of a conversation's first members, rising. The first need not be the owner.
    pub(super) fn members(&self, conversation: u32) -> &[u32] {
        members_of(&self.conversations, &self.members, conversation)
    }

    /// Indexes of a user's conversations, rising.
    pub(super) fn conversations_of(&self, user: u32) -> &[u32] {
        let from = self.users[user as usize].conversations_at as usize;
        let next = self.users.get(user as usize + 1);
        &self.user_conversations[from..next.map_or(self.user_conversations.len(), |u| u.conversations_at as usize)]
    }

    /// Indexes of a user's devices among the clients.
    pub(super) fn clients_of(&self, user: u32) -> std::ops::Range<u32> {
        let next = self.users.get(user as usize + 1);
        self.users[user as usize].clients_at..next.map_or(self.clients.len() as u32, |u| u.clients_at)
    }

    /// The name that a user signs up and logs in with.
    fn user_name(&self, user: u32) -> String {
        let name = format!("u-{:08x}-{user}", self.run);
        match self.bulk_tries.get(user as usize / ACCOUNTS_PER_CALL_MAX) {
            Some(number) => format!("{name}-{number}"),
            None => name,
        }
    }

    /// What a device is called.
    pub(super) fn device_name(&self, client: u32) -> DeviceName {
        let user = self.clients[client as usize].user;
        let number = client - self.users[user as usize].clients_at + 1;
        format!("device-{number}").parse().expect("a valid name")
    }

    pub(super) fn conversation_index(&self, id: ConversationId) -> Option<u32> {
        let at = self.by_conversation.binary_search_by_key(&id, |entry| entry.0).ok()?;
        Some(self.by_conversation[at].1)
    }

    pub(super) fn user_index(&self, id: UserId) -> Option<u32> {
        let at = self.by_user.binary_search_by_key(&id, |entry| entry.0).ok()?;
        Some(self.by_user[at].1)
    }

    /// Whether a user was a member when the run began.
    pub(super) fn is_original_member(&self, conversation: u32, user: u32) -> bool {
        self.members(conversation).binary_search(&user).is_ok()
    }

    pub(super) fn conversation_name(&self, conversation: u32) -> String {
        self.conversations[conversation as usize].id.to_string()
    }

    /// Index of a user's first device among the clients: it acts for the user where no device in particular does.
    pub(super) fn first_client(&self, user: u32) -> u32 {
        self.users[user as usize].clients_at
    }

    /// A device's token.
    pub(super) fn token(&self, client: u32) -> Token<'_> {
        self.tokens.get(client, &self.clients[client as usize].token)
    }

    /// Tokens that were replaced during the run.
    pub(super) fn tokens_renewed(&self) -> u64 {
        self.tokens.renewed()
    }

    /// When the token was issued that a device has now.
    pub(super) fn token_issued_us(&self, client: u32) -> u64 {
        self.tokens.issued_us(client)
    }

    /// Whether a token that was issued at a time may have come to its end.
    pub(super) fn token_may_have_expired(&self, issued_us: u64, now_us: u64) -> bool {
        self.tokens.may_have_expired(issued_us, now_us)
    }

    /// Whether a server may call a device's token invalid that was issued at a time: it may have come to its end, a login may
    /// have replaced it, or a fault may have taken what it was signed with.
    pub(super) fn may_refuse_token(&self, client: u32, issued_us: u64, now_us: u64) -> bool {
        self.has_faults || self.token_issued_us(client) != issued_us || self.token_may_have_expired(issued_us, now_us)
    }

    /// Requests that were refused for a token, or a password, that was good.
    pub(super) fn tokens_refused(&self) -> u64 {
        self.tokens.refused()
    }

    /// As a login at which the server told a token's end, in seconds since 1970.
    #[cfg(test)]
    pub(super) fn note_login_for_tests(&self, expires_s: u64) {
        self.tokens.note_login(expires_s);
    }

    /// How often a device's token was replaced during the run.
    pub(super) fn renewals(&self, client: u32) -> u32 {
        self.tokens.renewals(client)
    }

    /// Logs a device in again, since its token `stale` is not good any more. Callers with the same stale token share one login.
    pub(super) async fn renew(&self, client: u32, stale: Stale<'_>, api: &Api) -> Result<Token<'static>, Error> {
        let user = self.clients[client as usize].user;
        let login = || async {
            let login = api.login(&self.user_name(user), PASSWORD, &self.device_name(client)).await;
            if login.as_ref().is_err_and(Error::is_unauthorized) && !self.has_faults {
                // A password has no end.
                self.tokens.note_refused();
            }
            let login = login?;
            let expected = self.users[user as usize].id;
            if login.user != expected {
                return Err(Error::Unreadable(format!("a login of user {expected} was answered as {}", login.user)));
            }
            self.tokens.note_login(login.expires_at);
            Ok(login.token.into_boxed_str())
        };
        self.tokens.renew(client, stale, login).await
    }

    /// A request with a device's token; with a new one where the server calls it invalid.
    pub(super) async fn authorized<'a, T, F>(
        &'a self,
        client: u32,
        api: &Api,
        call: impl Fn(Token<'a>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        // In this order: one that is replaced in between is of the earlier time.
        let issued_us = self.token_issued_us(client);
        let token = self.token(client);
        let result = self.noting_refusal(client, issued_us, call(token.clone())).await;
        if !result.as_ref().is_err_and(Error::is_unauthorized) {
            return result;
        }
        let token = self.renew(client, Stale::Token(&token), api).await?;
        let issued_us = self.token_issued_us(client);
        self.noting_refusal(client, issued_us, call(token)).await
    }

    /// Makes a call with a token that was issued at a time; counts where it is refused for that token without a reason.
    async fn noting_refusal<T>(
        &self,
        client: u32,
        issued_us: u64,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let result = call.await;
        let is_refused = result.as_ref().is_err_and(Error::is_unauthorized);
        if is_refused && !self.may_refuse_token(client, issued_us, clock::now_us()) {
            self.tokens.note_refused();
        }
        result
    }
}

fn members_of<'a>(conversations: &[ConversationSpec], members: &'a [u32], index: u32) -> &'a [u32] {
    let spec = &conversations[index as usize];
    &members[spec.members_at as usize..][..spec.members as usize]
}

fn draw(rng: &mut StdRng, range: Range) -> u32 {
    rng.random_range(range.min..=range.max)
}

fn draw_behavior(rng: &mut StdRng, scenario: &Scenario) -> Behavior {
    let total: u32 = scenario.behaviors.values().sum();
    let mut at = rng.random_range(0..total.max(1));
    for (behavior, weight) in &scenario.behaviors {
        if at < *weight {
            return *behavior;
        }
        at -= weight;
    }
    // No weights at all.
    Behavior::Lurker
}

/// Pairs of different users, so that each user is in about `per_user` of them.
fn draw_pairs(rng: &mut StdRng, users: u32, per_user: u32) -> Vec<(u32, u32)> {
    let mut pairs = std::collections::BTreeSet::new();
    let mut order: Vec<u32> = (0..users).collect();
    for _ in 0..per_user.div_ceil(2) {
        // A ring over a random order gives every user two partners.
        order.shuffle(rng);
        for (n, a) in order.iter().enumerate() {
            let b = order[(n + 1) % order.len()];
            if *a != b {
                pairs.insert((*a.min(&b), *a.max(&b)));
            }
        }
    }
    pairs.into_iter().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two users, one device each, one conversation.
    pub(in crate::loadgen) fn tiny_world() -> World {
        let scenario = Scenario::parse(
            "{name: t, population: {users: 2, direct_per_user: 1}, behaviors: {one-to-one: 1}, \
             phases: [{phase: steady, duration: 1s, rate: 0}]}",
            "t",
        );
        let mut world = World::draw(&scenario.expect("valid"), 1);
        for (n, user) in world.users.iter_mut().enumerate() {
            user.id = UserId(n as u64 + 1);
        }
        world.conversations[0].id = ConversationId(1);
        world
    }

    #[test]
    fn a_seed_that_draws_no_talker_is_noticed() {
        let text = "{name: t, population: {users: 40, groups: [{count: 1, members: {min: 2, max: 2}}]}, \
                    behaviors: {lurker: 1000000, group-talker: 1}, phases: [{phase: steady, duration: 1s, rate: 9}]}";
        let scenario = Scenario::parse(text, "t").expect("valid");
        let refused = check_talkers(&scenario).expect_err("nobody talks");
        assert!(refused.contains("with seed 1 none of 40 users"), "{refused}");
        let all = text.replace("lurker: 1000000, ", "");
        assert_eq!(check_talkers(&Scenario::parse(&all, "t").expect("valid")), Ok(()));
        let silent = text.replace("rate: 9", "rate: 0");
        assert_eq!(check_talkers(&Scenario::parse(&silent, "t").expect("valid")), Ok(()));
    }

    #[test]
    fn a_seed_draws_the_same_world_twice() {
        let text = "{name: t, population: {users: 50, direct_per_user: 3, friends_per_user: 4, \
                    groups: [{count: 3, members: {min: 5, max: 20}}]}, behaviors: {lurker: 1, group-talker: 1}, \
                    phases: [{phase: steady, duration: 1s, rate: 0}]}";
        let scenario = Scenario::parse(text, "t").expect("valid");
        let (a, b) = (World::draw(&scenario, 1), World::draw(&scenario, 1));
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
        assert!(a.conversations.iter().filter(|c| c.kind == ConversationKind::Group).count() == 3);
        for user in 0..50 {
            let own: Vec<u32> = (0..a.conversations.len() as u32).filter(|c| a.is_original_member(*c, user)).collect();
            assert_eq!(a.conversations_of(user), own);
        }
        assert_eq!((0..50).map(|user| a.clients_of(user).len()).sum::<usize>(), a.clients.len());
    }
}

//! The setup: accounts, friends and conversations made through the API.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{PASSWORD, World};
use crate::loadgen::api::{Api, Error};
use crate::loadgen::recorder::Recorder;
use crate::protocol::api::{
    ACCOUNTS_PER_CALL_MAX, ConversationKind, MadeAccounts, NewAccount, NewConversation, Placement,
};
use crate::protocol::limits::MEMBERS_PER_CALL_MAX;
use crate::protocol::{ConversationId, ErrorCode, UserId};
use crate::runtime::clock;
use crate::telemetry::LatencyPath;
use crate::telemetry::human::counted;

/// API calls under way during setup.
const CALLS_AT_ONCE: usize = 32;

/// Calls for many accounts under way during setup. There may be fifty generators.
const LARGE_CALLS_AT_ONCE: usize = 2;

/// Users from which on accounts are made many at a time, where the deployment does that. Below, every account signs up and logs
/// in as a person would, and `login` is measured.
const MANY_USERS: usize = 3_000;

impl World {
    /// Makes accounts, friends and conversations through the API. Returns where login placed each device.
    pub(in crate::loadgen) async fn create(
        &mut self,
        api: &Api,
        recorder: &Recorder,
        progress: &Progress,
    ) -> Result<Vec<Placement>, Error> {
        let placements = match self.create_many(api, progress).await? {
            Some(placements) => placements,
            None => self.create_one_by_one(api, recorder, progress).await?,
        };
        self.by_user = (0..).zip(&self.users).map(|(n, user)| (user.id, n)).collect();
        self.by_user.sort_unstable();
        progress.begin("friendships", self.friends.len());
        let world = &*self;
        each(world.friends.iter(), progress, |(a, b)| async move {
            let friend = world.users[*b as usize].id;
            let client = world.first_client(*a);
            let befriend =
                |_| world.authorized(client, api, |token| async move { api.add_friend(&token, friend).await });
            api.retrying(seed(*a, *b), befriend).await
        })
        .await?;
        progress.begin("conversations", self.conversations.len());
        let ids =
            each(0..world.conversations.len() as u32, progress, |index| world.create_conversation(api, index)).await?;
        for (spec, id) in self.conversations.iter_mut().zip(ids) {
            spec.id = id;
        }
        self.index_ids();
        Ok(placements)
    }

    /// Makes all accounts and logs all devices in, many per call; `None` where that is not to be had, or not worth it.
    async fn create_many(&mut self, api: &Api, progress: &Progress) -> Result<Option<Vec<Placement>>, Error> {
        if self.users.len() < MANY_USERS {
            return Ok(None);
        }
        progress.begin("accounts", self.users.len());
        let world = &*self;
        let starts = (0..world.users.len() as u32).step_by(ACCOUNTS_PER_CALL_MAX);
        let calls = starts.map(|start| async move {
            let end = (start + ACCOUNTS_PER_CALL_MAX as u32).min(world.users.len() as u32);
            let call = |number: u16| async move {
                let account = |user| NewAccount {
                    // A try without an answer may have taken the names.
                    name: format!("{}-{number}", world.user_name(user)),
                    password: PASSWORD.to_owned(),
                    devices: world.clients_of(user).map(|client| world.device_name(client)).collect(),
                };
                let Some(made) = api.accounts((start..end).map(account).collect()).await? else { return Ok(None) };
                world.check_made(start..end, &made)?;
                Ok(Some((number, made)))
            };
            let made = api.retrying(seed(start, end), call).await?;
            progress.steps((end - start) as usize);
            Ok::<_, Error>(made)
        });
        let calls: Vec<_> = stream::iter(calls).buffered(LARGE_CALLS_AT_ONCE).try_collect().await?;
        let Some(made) = calls.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let (tries, made): (Vec<u16>, Vec<_>) = made.into_iter().unzip();
        self.bulk_tries = tries;
        Ok(Some(self.take_made(made)))
    }

    /// Whether a target made what it was asked for: these users' accounts, each with a login for every device.
    fn check_made(&self, users: Range<u32>, made: &MadeAccounts) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Unreadable(format!("/accounts made {what}")));
        if made.accounts.len() != users.len() {
            return wrong(format!("{} of {}", made.accounts.len(), counted(users.len() as u64, "account")));
        }
        for (user, logins) in users.zip(&made.accounts) {
            let devices = self.clients_of(user).len();
            if logins.len() != devices {
                return wrong(format!("{} of {} of an account", logins.len(), counted(devices as u64, "login")));
            }
        }
        Ok(())
    }

    /// Takes the accounts of all users, which were checked. Returns where each device is placed.
    fn take_made(&mut self, made: Vec<MadeAccounts>) -> Vec<Placement> {
        let mut placements = Vec::with_capacity(self.clients.len());
        for (user, logins) in made.into_iter().flat_map(|made| made.accounts).enumerate() {
            for (client, login) in self.clients_of(user as u32).zip(logins) {
                self.users[user].id = login.user;
                self.tokens.note_login(login.expires_at);
                self.clients[client as usize].token = login.token.into_boxed_str();
                placements.push(login.placement);
            }
        }
        placements
    }

    /// The same with a call for each account and each login, as people would.
    async fn create_one_by_one(
        &mut self,
        api: &Api,
        recorder: &Recorder,
        progress: &Progress,
    ) -> Result<Vec<Placement>, Error> {
        progress.begin("accounts", self.users.len());
        let world = &*self;
        let ids = each(0..world.users.len() as u32, progress, |user| world.sign_up(api, user)).await?;
        for (user, id) in self.users.iter_mut().zip(ids) {
            user.id = id;
        }
        progress.begin("logins", self.clients.len());
        let world = &*self;
        let clients = 0..world.clients.len() as u32;
        let logins = each(clients, progress, |client| world.log_in(api, recorder, client)).await?;
        let mut placements = Vec::with_capacity(logins.len());
        for (client, (token, placement)) in self.clients.iter_mut().zip(logins) {
            client.token = token;
            placements.push(placement);
        }
        Ok(placements)
    }

    /// Logs a device in. That took from the first try on: one that failed is part of it.
    async fn log_in(&self, api: &Api, recorder: &Recorder, client: u32) -> Result<(Box<str>, Placement), Error> {
        let (name, device) = (&self.user_name(self.clients[client as usize].user), &self.device_name(client));
        let started = clock::now_us();
        let login = |_| api.login(name, PASSWORD, device);
        let login = api.retrying(seed(client, 0), login).await?;
        recorder.record(LatencyPath::Login, started, clock::now_us() - started);
        self.tokens.note_login(login.expires_at);
        Ok((login.token.into_boxed_str(), login.placement))
    }

    /// Makes a user's account. Where an earlier try was done although its answer was lost, the name is taken: by this user.
    async fn sign_up(&self, api: &Api, user: u32) -> Result<UserId, Error> {
        let name = &self.user_name(user);
        let device = &self.device_name(self.first_client(user));
        let call = |number: u16| async move {
            match api.signup(name, PASSWORD).await {
                Ok(made) => Ok(made.user),
                Err(error) if number > 0 && error.code() == Some(ErrorCode::Conflict) => {
                    api.login(name, PASSWORD, device).await.map(|login| login.user)
                }
                Err(error) => Err(error),
            }
        };
        api.retrying(seed(user, 1), call).await
    }

    /// Makes a conversation. A try that was done although its answer was lost leaves a conversation that nobody here knows or
    /// uses; a direct one is the same however often it is made. Adding members again changes nothing.
    async fn create_conversation(&self, api: &Api, index: u32) -> Result<ConversationId, Error> {
        let spec = &self.conversations[index as usize];
        let owner = self.first_client(spec.owner);
        let others = self.members(index).iter().filter(|m| **m != spec.owner);
        let others: Vec<UserId> = others.map(|m| self.users[*m as usize].id).collect();
        let mut chunks = others.chunks(MEMBERS_PER_CALL_MAX - 1);
        let new = &NewConversation {
            kind: spec.kind,
            members: chunks.next().unwrap_or_default().to_vec(),
            name: if spec.kind == ConversationKind::Group { "simulated".to_owned() } else { String::new() },
        };
        let create = |_| self.authorized(owner, api, |token| async move { api.create(&token, new).await });
        let made = api.retrying(seed(index, 2), create).await?.conversation;
        for chunk in chunks {
            let add = |_| {
                self.authorized(owner, api, |token| async move { api.add_members(&token, made, chunk.to_vec()).await })
            };
            api.retrying(seed(index, 3), add).await?;
        }
        Ok(made)
    }
}

/// The seed of a call's jitter.
const fn seed(a: u32, b: u32) -> u64 {
    ((a as u64) << 32) | b as u64
}

/// Runs a call for each item, several at a time; results come in the items' order.
async fn each<I, T, R, F>(items: I, progress: &Progress, call: impl Fn(T) -> F) -> Result<Vec<R>, Error>
where
    I: Iterator<Item = T>,
    F: Future<Output = Result<R, Error>>,
{
    let calls = items.map(|item| {
        let call = call(item);
        async {
            let result = call.await?;
            progress.step();
            Ok(result)
        }
    });
    stream::iter(calls).buffered(CALLS_AT_ONCE).try_collect().await
}

/// How far the setup is. Written by the setup, read by whoever shows it.
#[derive(Default)]
pub(in crate::loadgen) struct Progress {
    what: std::sync::Mutex<&'static str>,
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Progress {
    pub(in crate::loadgen) fn begin(&self, what: &'static str, total: usize) {
        *self.what.lock().expect("no panic while held") = what;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(in crate::loadgen) fn step(&self) {
        self.steps(1);
    }

    pub(in crate::loadgen) fn steps(&self, count: usize) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }

    /// The share done, and a text such as `accounts 120/500`.
    pub(in crate::loadgen) fn show(&self) -> (f64, String) {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let what = *self.what.lock().expect("no panic while held");
        match (what, total) {
            ("", _) => (0.0, "begins".to_owned()),
            (_, 0) => (1.0, format!("no {what}")),
            _ => (done as f64 / total as f64, format!("{what} {done}/{total}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::loadgen::tokens::Token;
    use crate::protocol::api::LoggedIn;

    #[test]
    fn what_has_not_begun_is_not_done_and_none_is_no_fraction() {
        let progress = Progress::default();
        assert_eq!(progress.show(), (0.0, "begins".to_owned()));
        progress.begin("friendships", 0);
        assert_eq!(progress.show(), (1.0, "no friendships".to_owned()));
        progress.begin("accounts", 4);
        progress.steps(1);
        assert_eq!(progress.show(), (0.25, "accounts 1/4".to_owned()));
    }

    /// Four users of two devices each.
    fn world() -> World {
        let text = "{name: t, population: {users: 4, devices_per_user: {min: 2, max: 2}}, behaviors: {lurker: 1}, \
                    phases: [{phase: steady, duration: 9s}]}";
        World::draw(&crate::loadgen::Scenario::parse(text, "t").expect("valid"), 1)
    }

    fn login() -> LoggedIn {
        LoggedIn {
            user: UserId(7),
            device: "device-1".parse().expect("a name"),
            token: "t".to_owned(),
            expires_at: 4_000_000_000,
            placement: Placement { server: "chat-1".parse().expect("a name"), url: "ws://x/".to_owned() },
        }
    }

    #[test]
    fn accounts_that_are_not_those_that_were_asked_for_are_an_error() {
        let mut world = world();
        let made = |accounts: usize, logins: usize| {
            let account = || (0..logins).map(|_| login()).collect();
            MadeAccounts { accounts: (0..accounts).map(|_| account()).collect() }
        };
        let problem = |accounts, logins| world.check_made(0..4, &made(accounts, logins)).err().map(|e| e.to_string());
        assert_eq!(problem(5, 2).as_deref(), Some("/accounts made 5 of 4 accounts"));
        assert_eq!(problem(3, 2).as_deref(), Some("/accounts made 3 of 4 accounts"));
        assert_eq!(problem(4, 3).as_deref(), Some("/accounts made 3 of 2 logins of an account"));
        assert_eq!(problem(4, 2), None);
        assert_eq!(world.take_made(vec![made(2, 2), made(2, 2)]).len(), 8);
    }

    /// Answers one request.
    async fn answer(listener: &tokio::net::TcpListener, status: &str, body: &str) {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut request = [0; 4_096];
        let read = stream.read(&mut request).await.expect("reads");
        assert!(request[..read].starts_with(b"POST /login"));
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.expect("writes");
    }

    #[tokio::test]
    async fn a_login_counts_from_its_first_try() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let api = Api::new(&format!("http://{}", listener.local_addr().expect("has one"))).expect("an address");
        let (world, recorder) = (world(), Recorder::new());
        let busy = r#"{"code":"overloaded","message":"busy","retry_after_ms":300}"#;
        let login = serde_json::to_string(&login()).expect("writes");
        let answers = async {
            answer(&listener, "503 Service Unavailable", busy).await;
            answer(&listener, "200 OK", &login).await;
        };
        let (logged_in, ()) = futures_util::future::join(world.log_in(&api, &recorder, 0), answers).await;
        assert_eq!(&*logged_in.expect("the second try").0, "t");
        let took = recorder.overall().remove(&LatencyPath::Login).expect("it is measured");
        assert!(took.count() == 1 && took.max_us() >= 300_000, "{} us", took.max_us());
    }

    #[tokio::test]
    async fn a_token_that_is_refused_without_a_reason_is_counted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let api = Api::new(&format!("http://{}", listener.local_addr().expect("has one"))).expect("an address");
        let again = serde_json::to_string(&login()).expect("writes");
        let refused = || Error::Refused {
            status: hyper::StatusCode::UNAUTHORIZED,
            code: None,
            text: String::new(),
            retry_after: None,
        };
        // The life of the first token, and whether something was done to the servers.
        for (life_s, has_faults, counts) in [(3_600, false, 1), (3_600, true, 0), (1, false, 0)] {
            let mut world = world();
            (world.users[0].id, world.has_faults) = (UserId(7), has_faults);
            world.tokens.note_login(clock::unix_ms() / 1_000 + life_s);
            let call = |token: Token<'_>| {
                let is_first = token.is_empty();
                async move { if is_first { Err(refused()) } else { Ok(()) } }
            };
            let (result, ()) =
                futures_util::future::join(world.authorized(0, &api, call), answer(&listener, "200 OK", &again)).await;
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(
                (world.tokens_refused(), world.tokens_renewed()),
                (counts, 1),
                "{life_s} s, faults {has_faults}"
            );
        }
    }
}

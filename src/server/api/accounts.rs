//! Signup, login, placement, logout, profiles and friends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::extract::{Body, Caller, ClientAddress, Earlier, InPath, Signed};
use super::logins::Place;
use super::names;
use super::{ApiServer, App};
use crate::backends::directory::NewUser;
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::api::{
    ACCOUNTS_PER_CALL_MAX, Friends, LoggedIn, Login, MadeAccounts, NewAccount, NewAccounts, Placement, Profile,
    ProfileChange, Signup, UserRef,
};
use crate::protocol::limits::FRIENDS_MAX;
use crate::protocol::{CHAT_PATH, DeviceName, ErrorCode, ServerName, UserId};
use crate::server::access::auth::PasswordError;
use crate::server::access::rate::customer_of;
use crate::server::cluster::peer::Call;
use crate::server::cluster::placement;
use crate::server::http::extract::Params;
use crate::server::http::status::Failure;
use crate::telemetry::Counter;

/// Most devices of an account that is made with others.
const DEVICES_PER_ACCOUNT_MAX: usize = 8;
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=256;

type Answer<T> = Result<T, Failure>;

/// The name and display name of a new account, as they are kept.
fn new_names(name: &str) -> Answer<(String, String)> {
    let refused = |invalid| Failure::new(ErrorCode::BadRequest, format!("name {invalid}"));
    let kept = names::account(name).map_err(refused)?;
    // As it was given, capitals and all; joiners that some scripts write with are in the kept form only.
    let display_name = names::shown(name, names::DISPLAY_CHARS_MAX).unwrap_or_else(|_| kept.clone());
    Ok((kept, display_name))
}

fn password_failure(error: PasswordError) -> Failure {
    match error {
        PasswordError::Busy => Failure::retry_later(ErrorCode::Overloaded, error.to_string(), 1_000),
        PasswordError::Failed(text) => Failure::new(ErrorCode::Internal, text),
    }
}

fn check_password(password: &str) -> Answer<()> {
    if PASSWORD_BYTES.contains(&password.len()) {
        return Ok(());
    }
    Err(Failure::new(ErrorCode::BadRequest, "password has 8 to 256 bytes"))
}

/// Makes accounts and logs their devices in. Accounts of one call that have the same password share its hash: they are
/// there for a test.
pub(super) async fn bulk(
    server: App,
    ClientAddress(address): ClientAddress,
    Body(body): Body<NewAccounts>,
) -> Answer<(StatusCode, Json<MadeAccounts>)> {
    if !server.config.bulk_accounts {
        let message = "many accounts at once are off: set api.bulk_accounts to true on a stack that is there for tests";
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    if !(1..=ACCOUNTS_PER_CALL_MAX).contains(&body.accounts.len()) {
        let message = format!("{} accounts: valid are 1 to {ACCOUNTS_PER_CALL_MAX}", body.accounts.len());
        return Err(Failure::new(ErrorCode::BadRequest, message));
    }
    let mut hashes: HashMap<&str, String> = HashMap::new();
    let mut kept = Vec::with_capacity(body.accounts.len());
    for account in &body.accounts {
        kept.push(new_names(&account.name)?);
        check_password(&account.password)?;
        if account.devices.len() > DEVICES_PER_ACCOUNT_MAX {
            let message = format!("{} devices: at most {DEVICES_PER_ACCOUNT_MAX}", account.devices.len());
            return Err(Failure::new(ErrorCode::BadRequest, message));
        }
        if !hashes.contains_key(account.password.as_str()) {
            let hash = server.passwords.hash(account.password.clone(), address).await;
            hashes.insert(&account.password, hash.map_err(password_failure)?);
        }
    }
    let row = |((name, display_name), account): ((String, String), &NewAccount)| NewUser {
        name,
        display_name,
        password_hash: hashes[account.password.as_str()].clone(),
    };
    let rows: Vec<NewUser> = kept.into_iter().zip(&body.accounts).map(row).collect();
    let users = server.deps.backends.directory.add_users(&rows).await.map_err(|error| {
        if error.kind == crate::backends::error::ErrorKind::Conflict {
            return Failure::new(ErrorCode::Conflict, "one of the names is taken, or stands twice in the list");
        }
        error.into()
    })?;
    let mut accounts = Vec::with_capacity(users.len());
    for (user, account) in users.into_iter().zip(&body.accounts) {
        let mut logins = Vec::with_capacity(account.devices.len());
        for device in &account.devices {
            logins.push(log_in(&server, user, device).await?);
        }
        accounts.push(logins);
    }
    Ok((StatusCode::CREATED, Json(MadeAccounts { accounts })))
}

pub(super) async fn signup(
    server: App,
    ClientAddress(address): ClientAddress,
    Body(body): Body<Signup>,
) -> Answer<(StatusCode, Json<UserRef>)> {
    let (name, display_name) = new_names(&body.name)?;
    check_password(&body.password)?;
    // A stack that is there for a test has its users made by one machine.
    if !server.config.bulk_accounts {
        let taken = server.signups.take(customer_of(address));
        taken.map_err(|wait| rate_limited(&server, "too many signups from this address", wait))?;
    }
    let password_hash = server.passwords.hash(body.password, address).await.map_err(password_failure)?;
    let new = NewUser { name, display_name, password_hash };
    let user = server.deps.backends.directory.add_user(&new).await.map_err(|error| {
        if error.kind == crate::backends::error::ErrorKind::Conflict {
            return Failure::new(ErrorCode::Conflict, format!("the name {} is taken", new.name));
        }
        error.into()
    })?;
    Ok((StatusCode::CREATED, Json(UserRef { user })))
}

pub(super) async fn login(
    server: App,
    ClientAddress(address): ClientAddress,
    Earlier(earlier): Earlier,
    Body(body): Body<Login>,
) -> Answer<Json<LoggedIn>> {
    let wrong = || Failure::new(ErrorCode::Unauthorized, "name or password is wrong");
    // No account has another one: there is nothing to count and nothing to look up. (One from before names had a form may.)
    let kept = names::account(&body.name).ok();
    let is_possible = body.name.chars().count() <= names::ACCOUNT_CHARS_MAX && !body.name.contains('\0');
    let Some(name) = kept.or_else(|| is_possible.then(|| body.name.clone())) else { return Err(wrong()) };
    if !PASSWORD_BYTES.contains(&body.password.len()) {
        return Err(wrong());
    }
    let directory = &server.deps.backends.directory;
    let find = async || {
        // As it was given first: an account from before names had one form.
        let exact = if name != body.name && is_possible { directory.credentials(&body.name).await? } else { None };
        if exact.is_some() { Ok(exact) } else { directory.credentials(&name).await }
    };
    // Who shows a token is looked up before the try is counted, everybody else after it.
    let early = if earlier.is_some() { find().await? } else { None };
    let place = match (&earlier, &early) {
        (Some(earlier), Some(found)) if found.user == earlier.sub => Place::Device(earlier.dev.clone()),
        _ => Place::of(address),
    };
    server.logins.take(&name, &place).map_err(|wait| rate_limited(&server, "too many logins for this name", wait))?;
    let found = if earlier.is_some() { early } else { find().await? };
    let hash = found.as_ref().map(|c| c.password_hash.clone());
    let fits = server.passwords.verify(body.password, hash, address).await.map_err(password_failure)?;
    let Some(found) = found.filter(|_| fits) else { return Err(wrong()) };
    server.logins.succeeded(&name, Place::of(address));
    log_in(&server, found.user, &body.device).await.map(Json)
}

/// A token and a place for a device of a user who has proved to be one.
async fn log_in(server: &ApiServer, user: UserId, device: &DeviceName) -> Answer<LoggedIn> {
    let placement = place(server, user, None).await?;
    let (token, claims) = server.deps.tokens.issue(user, device);
    server.deps.metrics.count(Counter::Logins);
    Ok(LoggedIn { user, device: claims.dev, token, expires_at: claims.exp, placement })
}

fn rate_limited(server: &ApiServer, message: &str, wait: Duration) -> Failure {
    server.deps.metrics.count(Counter::RateLimited);
    Failure::retry_later(ErrorCode::RateLimited, message, wait.as_millis() as u64)
}

/// Picks a chat server for a user: none whose last probe failed, and another one than `avoid`, where there is a choice.
async fn place(server: &ApiServer, user: UserId, avoid: Option<&ServerName>) -> Answer<Placement> {
    let servers = server.cluster.look_for(Role::Chat).await;
    // Looked at once: what is known of a server may change meanwhile.
    let rank = |s: &ServerEntry| (server.detector.has_failed(s), Some(&s.name) == avoid);
    let ranked: Vec<_> = servers.iter().filter(|s| !s.draining).map(|s| (rank(s), s)).collect();
    let best = ranked.iter().map(|(rank, _)| *rank).min();
    let servers: Vec<_> =
        ranked.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, server)| server.clone()).collect();
    let partition = server.deps.backends.log.partition_of(user.0);
    let chosen = placement::choose(server.config.placement, &servers, partition, |s| server.cluster.load(s));
    let Some(chosen) = chosen else {
        let message = "no chat server takes users now";
        return Err(Failure::retry_later(ErrorCode::Unavailable, message, 1_000));
    };
    server.cluster.note_placed(&chosen.name);
    Ok(Placement { server: chosen.name.clone(), url: chat_url(server, chosen) })
}

/// Where a client connects to be on a chat server: through the balancer of the configuration, through the gateway with the
/// fewest connections (one that drains only where there is no other), or straight.
fn chat_url(server: &ApiServer, chosen: &ServerEntry) -> String {
    if let Some(balancer) = &server.config.public_chat_url {
        return format!("{}/{}", balancer.trim_end_matches('/'), chosen.name);
    }
    let gateways = server.cluster.servers(Role::Gateway);
    let rank =
        |gateway: &&ServerEntry| (server.detector.has_failed(gateway), gateway.draining, server.cluster.load(gateway));
    match gateways.iter().min_by_key(rank) {
        Some(gateway) => {
            server.cluster.note_placed(&gateway.name);
            format!("ws://{}{CHAT_PATH}/{}", gateway.address, chosen.name)
        }
        None => format!("ws://{}{CHAT_PATH}", chosen.address),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Avoid {
    /// A server that the client could not reach: the registry may not know yet that it is gone.
    avoid: Option<ServerName>,
}

pub(super) async fn placement(
    server: App,
    Caller(claims): Caller,
    Params(params): Params<Avoid>,
) -> Answer<Json<Placement>> {
    if let Some(avoid) = &params.avoid {
        // What did not answer may have been the gateway before it.
        let gateways = server.cluster.servers(Role::Gateway);
        for reported in server.cluster.find(Role::Chat, avoid).iter().chain(gateways.iter()) {
            server.detector.report(reported);
        }
    }
    place(&server, claims.sub, params.avoid.as_ref()).await.map(Json)
}

/// Ends a token, also one that has been ended before: then only who might not know is told.
pub(super) async fn logout(server: App, Signed(claims): Signed) -> Answer<StatusCode> {
    let ended = server.carry_out(async move |server: Arc<ApiServer>| {
        server.deps.backends.directory.revoke_token(claims.jti, claims.exp).await?;
        server.tell(&[Role::Chat, Role::Api], Call::LogOut(claims.jti)).await
    });
    ended.await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn profile(server: &ApiServer, user: UserId) -> Answer<Profile> {
    let mut profiles = server.deps.backends.directory.profiles(&[user]).await?;
    profiles.pop().ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("there is no user {user}")))
}

pub(super) async fn me(server: App, Caller(claims): Caller) -> Answer<Json<Profile>> {
    profile(&server, claims.sub).await.map(Json)
}

pub(super) async fn change_me(
    server: App,
    Caller(claims): Caller,
    Body(body): Body<ProfileChange>,
) -> Answer<Json<Profile>> {
    let display_name = names::shown(&body.display_name, names::DISPLAY_CHARS_MAX)
        .map_err(|invalid| Failure::new(ErrorCode::BadRequest, format!("display_name {invalid}")))?;
    server.deps.backends.directory.set_display_name(claims.sub, &display_name).await?;
    profile(&server, claims.sub).await.map(Json)
}

pub(super) async fn user(server: App, _: Caller, InPath(user): InPath<UserId>) -> Answer<Json<Profile>> {
    profile(&server, user).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByName {
    name: String,
}

pub(super) async fn find_user(server: App, _: Caller, Params(params): Params<ByName>) -> Answer<Json<Profile>> {
    let nobody = || Failure::new(ErrorCode::NotFound, "nobody has this name");
    let directory = &server.deps.backends.directory;
    if params.name.contains('\0') {
        return Err(nobody());
    }
    let kept = names::account(&params.name).ok().filter(|kept| *kept != params.name);
    if let Some(exact) = directory.find_user(&params.name).await? {
        return Ok(Json(exact));
    }
    let Some(kept) = kept else { return Err(nobody()) };
    directory.find_user(&kept).await?.map(Json).ok_or_else(nobody)
}

pub(super) async fn friends(server: App, Caller(claims): Caller) -> Answer<Response> {
    let turn = server.pages.turn(claims.sub)?;
    let friends = server.deps.backends.directory.friends(claims.sub).await?;
    server.pages.answer(turn, &Friends { friends })
}

pub(super) async fn add_friend(
    server: App,
    Caller(claims): Caller,
    Body(body): Body<UserRef>,
) -> Answer<(StatusCode, Json<UserRef>)> {
    if body.user == claims.sub {
        return Err(Failure::new(ErrorCode::BadRequest, "nobody is a friend of oneself"));
    }
    profile(&server, body.user).await?;
    check_friends(&server, claims.sub, body.user, FRIENDS_MAX).await?;
    set_friends(&server, claims.sub, body.user, true).await?;
    Ok((StatusCode::CREATED, Json(body)))
}

pub(super) async fn remove_friend(
    server: App,
    Caller(claims): Caller,
    InPath(friend): InPath<UserId>,
) -> Answer<StatusCode> {
    set_friends(&server, claims.sub, friend, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Fails where one of two has as many friends as may be, unless they are friends already.
pub(super) async fn check_friends(server: &ApiServer, a: UserId, b: UserId, most: usize) -> Answer<()> {
    let directory = &server.deps.backends.directory;
    for (user, other, who) in [(a, b, "you have"), (b, a, "the other one has")] {
        if directory.friend_count(user, most).await? >= most as u64 && !directory.are_friends(user, other).await? {
            let message = format!("{who} {most} friends, which is the most");
            return Err(Failure::new(ErrorCode::TooLarge, message));
        }
    }
    Ok(())
}

async fn set_friends(server: &Arc<ApiServer>, a: UserId, b: UserId, friends: bool) -> Answer<()> {
    let set = server.carry_out(async move |server: Arc<ApiServer>| {
        server.deps.backends.directory.set_friends(a, b, friends).await?;
        server.tell(&[Role::Chat], Call::Friends { a, b, friends }).await
    });
    set.await
}

//! Holds the rooms to the import table of ARCHITECTURE.md, the roles of a server to the rule that none names another, and
//! the owners of a chat server to their order: reads the `use` lines and paths of each file.

use std::path::{Path, PathBuf};

/// Which rooms a room may name.
const TABLE: [(&str, &[&str]); 10] = [
    ("protocol", &[]),
    ("telemetry", &[]),
    ("runtime", &["telemetry"]),
    ("backends", &["protocol", "runtime", "telemetry"]),
    ("server", &["protocol", "telemetry", "runtime", "backends"]),
    ("stack", &["protocol", "telemetry", "runtime", "backends", "server"]),
    ("loadgen", &["protocol", "runtime", "telemetry"]),
    ("report", &["loadgen", "telemetry", "runtime"]),
    ("run", &["protocol", "telemetry", "runtime", "backends", "server", "stack", "loadgen", "report"]),
    ("tui", &["telemetry", "runtime"]),
];

/// Folders of `src/server/` that are equals: what they share lies beside them.
const ROLES: [&str; 5] = ["api", "chat", "gateway", "presence", "push"];

/// Files of `src/server/chat/` that own a part of the server. Each may name those before it.
const CHAT_OWNERS: [&str; 12] = [
    "hub",
    "outbound",
    "publisher",
    "shared",
    "rights",
    "subscriptions",
    "presence_feed",
    "unheard",
    "delivery",
    "unannounced",
    "fanout",
    "sender",
];

/// Files of `src/server/chat/` that may name the whole server.
const CHAT_SERVER: [&str; 6] = ["mod", "echo", "figures", "handshake", "inbound", "poll"];

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Rooms that a text names as `crate::room`, or in a list `crate::{…}`.
fn named_rooms(text: &str) -> Vec<&'static str> {
    let code = without_comments(text);
    let named: Vec<&str> = code.split("crate::").skip(1).flat_map(first_names).collect();
    TABLE.iter().map(|(room, _)| *room).filter(|room| named.contains(room)).collect()
}

/// The names that a path goes on with: one, or those of a list, without what is below each of them.
fn first_names(path: &str) -> Vec<&str> {
    let name = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let Some(list) = path.strip_prefix('{') else { return vec![&path[..name(path)]] };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0_usize, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                names.push(&list[at..at + name(&list[at..])]);
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn violations(room: &str, allowed: &[&str], text: &str) -> Vec<&'static str> {
    named_rooms(text).into_iter().filter(|named| *named != room && !allowed.contains(named)).collect()
}

/// Roles that a file of `src/server/` names, other than its own. A path counts when it goes on from `server`, or from
/// as many `super` as lead there from the file or from a module inside of it.
fn named_roles(file: &Path, text: &str) -> Vec<&'static str> {
    let code = without_comments(text);
    let folders: Vec<_> = file.parent().into_iter().flat_map(Path::iter).collect();
    let depth = folders.len() + usize::from(file.file_stem().is_some_and(|stem| stem != "mod"));
    let from_server = code.split("server::").skip(1);
    let from_super =
        paths_up(&code).into_iter().filter(|(ups, _)| (depth..=depth + 1).contains(ups)).map(|(_, path)| path);
    let named: Vec<&str> = from_server.chain(from_super).flat_map(first_names).collect();
    let is_own = |role: &str| folders.first().is_some_and(|folder| *folder == role);
    ROLES.into_iter().filter(|role| named.contains(role) && !is_own(role)).collect()
}

/// Paths that begin with `super`: how many of them there are, and what follows.
fn paths_up(code: &str) -> Vec<(usize, &str)> {
    let (mut paths, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find("super::") {
        rest = &rest[at..];
        let mut ups = 0;
        while let Some(below) = rest.strip_prefix("super::") {
            (rest, ups) = (below, ups + 1);
        }
        paths.push((ups, rest));
    }
    paths
}

#[test]
fn roles_know_nothing_of_each_other_and_what_they_share_knows_nothing_of_them() {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    assert!(ROLES.iter().all(|role| server.join(role).join("mod.rs").is_file()), "each role has a folder");
    let (mut paths, mut found) = (Vec::new(), Vec::new());
    files(&server, &mut paths);
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        let file = path.strip_prefix(&server).expect("below");
        found.extend(named_roles(file, &text).into_iter().map(|role| format!("{} names {role}", path.display())));
    }
    assert!(found.is_empty(), "what roles share lies beside them:\n{}", found.join("\n"));
}

/// What a file of `src/server/chat/` names that it may not: the whole server, or an owner that stands after it.
fn named_above(file: &str, text: &str) -> Vec<&'static str> {
    let code = without_comments(text);
    let mut named: Vec<&str> = paths_up(&code).into_iter().flat_map(|(_, path)| first_names(path)).collect();
    named.extend(code.split("crate::server::chat::").skip(1).flat_map(first_names));
    let at = CHAT_OWNERS.iter().position(|owner| *owner == file);
    let after = at.map_or(&[][..], |at| &CHAT_OWNERS[at + 1..]);
    let server = if CHAT_SERVER.contains(&file) { &[][..] } else { &["ChatServer"] };
    after.iter().chain(server).copied().filter(|name| named.contains(name)).collect()
}

#[test]
fn the_owners_of_a_chat_server_use_only_those_before_them_and_none_has_the_server() {
    let chat = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/chat");
    assert!(CHAT_OWNERS.iter().chain(&CHAT_SERVER).all(|name| chat.join(name).with_extension("rs").is_file()));
    let (mut paths, mut found) = (Vec::new(), Vec::new());
    files(&chat, &mut paths);
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        let name = path.file_stem().expect("a name").to_string_lossy();
        found.extend(named_above(&name, &text).into_iter().map(|named| format!("{} names {named}", path.display())));
    }
    assert!(found.is_empty(), "owners form no circle:\n{}", found.join("\n"));
}

#[test]
fn an_owner_that_is_named_from_below_is_seen() {
    assert_eq!(named_above("outbound", "use super::{connection::Connection, delivery::Delivery};"), ["delivery"]);
    assert_eq!(
        named_above("delivery", "fn f(_: &super::sender::Sender, _: &super::ChatServer) {}"),
        ["sender", "ChatServer"]
    );
    assert_eq!(
        named_above("sender", "use crate::server::chat::ChatServer;\nuse super::delivery::Delivery;"),
        ["ChatServer"]
    );
    assert_eq!(named_above("poll", "use super::{ChatServer, sender::Sender};"), [""; 0], "no owner");
}

#[test]
fn a_role_that_is_named_is_seen() {
    let named = |file: &str, text: &str| named_roles(Path::new(file), text);
    assert_eq!(named("gateway/polls.rs", "use crate::server::api::status::Failure;"), ["api"]);
    assert_eq!(named("push/mod.rs", "use super::{Deps, chat::InboxHeader};"), ["chat"]);
    assert_eq!(named("presence/mod.rs", "fn start() -> Result<(), super::chat::ChatError> {}"), ["chat"]);
    assert_eq!(named("chat/poll.rs", "use super::super::gateway;"), ["gateway"]);
    assert_eq!(
        named("chat/mod.rs", "mod tests {\n    use super::super::push::run;\n}"),
        ["push"],
        "a module in a file"
    );
    assert_eq!(named("http/mod.rs", "use super::api::status::Failure;"), ["api"], "what is shared names none");
    assert_eq!(named("cluster/peer/wire.rs", "use crate::{runtime, server::{Deps, presence}};"), ["presence"]);
    assert_eq!(named("inbox.rs", "use super::chat;"), ["chat"]);
    assert_eq!(named("mod.rs", "use self::error::StartError;\npub mod chat;"), [""; 0], "modules are declared");
}

#[test]
fn what_only_looks_like_another_role_is_not_one() {
    let named = |file: &str, text: &str| named_roles(Path::new(file), text);
    assert_eq!(named("api/mod.rs", "// as crate::server::chat does\nuse crate::server::api::pages;"), [""; 0]);
    assert_eq!(named("chat/poll.rs", "use super::presence::Beats;"), [""; 0], "a file of chat");
    assert_eq!(
        named("chat/mod.rs", "use crate::backends::presence::Beat;\nuse crate::protocol::api::PollAnswer;"),
        [""; 0]
    );
    assert_eq!(named("api/mod.rs", "use super::{Deps, http, inbox};\nuse crate::server::presence_feed;"), [""; 0]);
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for (room, allowed) in TABLE {
        let mut paths = Vec::new();
        files(&src.join(room), &mut paths);
        assert!(!paths.is_empty(), "room {room} has no files");
        for path in paths {
            let text = std::fs::read_to_string(&path).expect("readable");
            found.extend(
                violations(room, allowed, &text).into_iter().map(|named| format!("{} names {named}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "forbidden imports:\n{}", found.join("\n"));
}

#[test]
fn every_folder_is_a_room_of_the_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(src).expect("readable") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let is_known = name == "bin" || name == "lib.rs" || TABLE.iter().any(|(room, _)| *room == name);
        assert!(is_known, "{name} is not in the import table");
    }
}

#[test]
fn the_table_is_the_one_in_the_architecture_document() {
    let doc = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("is there");
    for (room, allowed) in TABLE {
        let names = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
        let row = format!("| `{room}` | {names} |");
        assert!(doc.contains(&row), "ARCHITECTURE.md lacks the row {row}");
    }
}

#[test]
fn a_forbidden_import_is_seen() {
    assert_eq!(violations("loadgen", &["protocol"], "use crate::server::auth;"), ["server"]);
    assert_eq!(violations("protocol", &[], "let x = crate::runtime::clock::now_us();"), ["runtime"]);
    assert_eq!(violations("tui", &["telemetry"], "use crate::{stack, telemetry};"), ["stack"]);
    assert!(violations("tui", &["telemetry"], "// crate::stack::Stack is not for us").is_empty());
}

#[test]
fn lists_name_whole_rooms_at_every_place_and_not_what_is_below_them() {
    assert!(violations("loadgen", &["runtime"], "use crate::{runtime, runtime::Tasks};").is_empty(), "not `run`");
    assert_eq!(violations("loadgen", &["runtime"], "use crate::{runtime::{Tasks, net}, run};"), ["run"]);
    assert_eq!(
        violations("tui", &[], "use crate::{\n    loadgen::{self, scenario::{Phase, World}},\n    stack as s,\n};"),
        ["stack", "loadgen"]
    );
    assert!(
        violations("report", &["loadgen"], "use crate::{loadgen::{run, server::Thing}};").is_empty(),
        "below a room"
    );
    assert_eq!(violations("tui", &[], "pub use crate::run as other;"), ["run"]);
    assert_eq!(violations("tui", &[], "use crate::run;"), ["run"]);
}

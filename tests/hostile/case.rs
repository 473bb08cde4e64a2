//! A case, and the table of them.

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::bench::{Bench, Siege};
use crate::{deaf, flood, halves, odd, peers, single, smuggling};

/// Something that hostile clients do.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What it proves, in a line.
    pub(crate) proves: &'static str,
    /// Most memory that the process may have above that of the case's start.
    pub(crate) memory_mib: u64,
    /// Does it; returns what is held and goes on while others are served.
    pub(crate) run: for<'a> fn(&'a Bench) -> LocalBoxFuture<'a, Siege>,
}

/// What some hundred connections may cost, with everything that the allocator keeps.
const USUAL_MIB: u64 = 96;

macro_rules! cases {
    ($( $name:literal, $memory_mib:expr, $run:path, $proves:literal; )*) => {
        &[$( Case { name: $name, proves: $proves, memory_mib: $memory_mib, run: |bench| $run(bench).boxed_local() } ),*]
    };
}

/// All of them, in the order in which they run.
pub(crate) const CASES: &[Case] = cases![
    "half::request_line", USUAL_MIB, halves::request_line, "a request line that does not end holds up nobody";
    "half::head", USUAL_MIB, halves::head, "a head that does not end holds up nobody";
    "half::body", USUAL_MIB, halves::body, "a body that does not come is 408 and holds up nobody";
    "half::poll_body", USUAL_MIB, halves::poll_body, "half a poll of one user takes nobody's seat";
    "half::tls", USUAL_MIB, halves::tls, "TLS where none is spoken ends, whole and half";
    "half::slow_body", USUAL_MIB, halves::slow_body, "a body of a byte a second is 408, however long it goes on";
    "half::slow_heads", USUAL_MIB, halves::slow_heads, "2,000 heads of a byte a second leave room for users";
    "half::tunnels", USUAL_MIB, halves::tunnels, "half heads for more tunnels than there are leave users a way in";
    "half::answered", USUAL_MIB, halves::answered, "who has its answer and does not close keeps no tunnel";
    "deaf::metrics", USUAL_MIB, deaf::metrics, "200 pages of figures on each of 80 sockets are not kept for them";
    "deaf::pages", 192, deaf::pages, "pages of large messages that nobody reads are few";
    "deaf::subscribers", USUAL_MIB, deaf::subscribers, "who stops reading under load is cut";
    "flood::connects", USUAL_MIB, flood::connects, "connections without a handshake keep no user out";
    "flood::kept", USUAL_MIB, flood::kept, "more connections than places, each asking now and then, leave users a place";
    "flood::logins", USUAL_MIB, flood::logins, "guessed passwords keep no login of another name out";
    "flood::frames", USUAL_MIB, flood::frames, "who sends far above the rate is cut with 4008";
    "flood::pings", USUAL_MIB, flood::pings, "who pings and does not read is cut";
    "flood::large_frames", USUAL_MIB, flood::large_frames, "a frame of 4 GiB is 1009 by its head";
    "flood::fragments", USUAL_MIB, flood::fragments, "fragments without end are 1009, empty ones cost nothing";
    "flood::bodies", USUAL_MIB, flood::bodies, "63 MiB from strangers are 413, said or in chunks";
    "flood::heads", USUAL_MIB, flood::heads, "a head of 1,000 lines or of 1 MiB is refused";
    "flood::lists", USUAL_MIB, flood::lists, "lists and calls above their limits are refused";
    "odd::deep_json", USUAL_MIB, odd::deep_json, "JSON of any depth is refused and ends no server";
    "odd::texts", USUAL_MIB, odd::texts, "texts that are none, and giant names, are refused; NUL passes as it is";
    "odd::tokens", USUAL_MIB, odd::tokens, "a token that is forged, expired or in the query is none";
    "odd::upgrades", USUAL_MIB, odd::upgrades, "upgrades to other things, and Expect, are answered as HTTP/1.1";
    "smuggling::lengths", USUAL_MIB, smuggling::lengths, "what has two lengths holds no second request";
    "smuggling::lines", USUAL_MIB, smuggling::lines, "folded and broken lines hold no second request";
    "smuggling::chunks", USUAL_MIB, smuggling::chunks, "chunks that are none, and their extensions, are refused";
    "smuggling::targets", USUAL_MIB, smuggling::targets, "targets of other hosts lead nowhere else";
    "single::sockets", USUAL_MIB, single::sockets, "one user can't take every seat of a server";
    "single::calls", USUAL_MIB, single::calls, "all calls of one user at once are too many for that user only";
    "single::subscriptions", USUAL_MIB, single::subscriptions, "1,000 subscriptions with their closes leave nothing";
    "single::logouts", USUAL_MIB, single::logouts, "a logout ends what comes up meanwhile";
    "peers::garbage", USUAL_MIB, peers::garbage, "bytes on a port of peer links end their own connection";
    "peers::half_handshakes", USUAL_MIB, peers::half_handshakes, "strangers who say nothing end, and links go on";
    "peers::relayed_hello", USUAL_MIB, peers::relayed_hello, "a hello for another server, or once more, admits nobody";
];

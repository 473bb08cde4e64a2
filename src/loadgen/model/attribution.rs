//! What counts against the target, and what does not: tokens that end, answers to nobody's messages, limits of the generator's
//! machine, calls that wait for the generator.

use super::sim::S;
use super::waits::Alone;
use crate::loadgen::client::{Action, CallError, Command, ConnectError, Event, LinkError};
use crate::loadgen::ledger::Kind;
use crate::loadgen::stats::get;
use crate::protocol::frames::ErrorFrame;
use crate::protocol::{ClientFrame, CloseCode, ErrorCode, ServerFrame};
use crate::runtime::clock;

/// How the transports tell that a token is not good any more: by a close, and by the refusal of a request.
fn refusals() -> [LinkError; 2] {
    let refused = LinkError::Refused { status: 401, text: String::new(), retry_after: None };
    [LinkError::Closed(CloseCode::Unauthorized.code()), refused]
}

#[test]
fn a_connection_that_ends_with_its_token_is_not_lost_and_gets_another_one() {
    let ended_after = |life_s: u64| {
        refusals().map(|error| {
            let mut alone = Alone::new();
            alone.run.world.note_login_for_tests(clock::unix_ms() / 1_000 + 20);
            alone.now_us = clock::now_us().max(S);
            alone.come();
            alone.now_us += life_s * S;
            let actions = alone.on(Event::Closed(error));
            assert!(actions.iter().any(|action| matches!(action, Action::LogIn)), "{actions:?}");
            get(&alone.run.stats.disconnects)
        })
    };
    assert_eq!(ended_after(20), [0; 2]);
    assert_eq!(ended_after(5), [1; 2], "a good token is no reason");
}

#[test]
fn an_error_belongs_to_what_its_device_sent() {
    let mut alone = Alone::new();
    alone.come();
    let conversation = alone.conversation();
    let sent = alone.on(Event::Command(Command::Send { conversation, intended_us: alone.now_us, bytes: 90 }));
    let uuid = sent.iter().find_map(|action| match action {
        Action::Write(ClientFrame::Send(frame)) => Some(frame.uuid),
        _ => None,
    });
    let mut wrong = |uuid, code| {
        let error = ErrorFrame { uuid, code, message: String::new(), retry_after_ms: Some(500) };
        alone.hears(ServerFrame::Error(error));
        alone.run.ledger.count(Kind::AckWrong)
    };
    assert!(uuid.is_some(), "{sent:?}");
    assert_eq!([wrong(None, ErrorCode::Overloaded), wrong(uuid, ErrorCode::Forbidden)], [0, 0]);
    assert_eq!(wrong(uuid, ErrorCode::Overloaded), 0, "of a try before");
    assert_eq!(wrong(Some(uuid::Uuid::nil()), ErrorCode::Forbidden), 1, "nobody's");
    assert_eq!(wrong(Some(uuid::Uuid::new_v4()), ErrorCode::Overloaded), 2, "that it asks for time is no excuse");
}

#[test]
fn who_has_not_caught_up_may_have_waited_for_the_generator() {
    // `turn_us`: when a call had its turn that had waited for so long, after the connect or the loss of the connection.
    let not_caught_up = |after_us: u64, (turn_us, call_lag_us): (u64, u64)| {
        [false, true].map(|is_lost| {
            let mut alone = Alone::new();
            alone.on(Event::Command(Command::Online(alone.now_us)));
            alone.connect();
            if is_lost {
                alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
            }
            let turn_us = alone.now_us + turn_us;
            alone.run.stats.own_call_lags.note(turn_us - call_lag_us, turn_us);
            alone.now_us += after_us;
            alone.on(Event::Command(Command::Finish(alone.now_us + S)));
            get(&alone.run.stats.not_caught_up)
        })
    };
    assert_eq!(not_caught_up(9 * S, (0, 0)), [0; 2]);
    assert_eq!(not_caught_up(12 * S, (0, 0)), [1; 2]);
    assert_eq!(not_caught_up(12 * S, (8 * S, 5 * S)), [0; 2], "five of the twelve are the generator's");
    assert_eq!(not_caught_up(16 * S, (8 * S, 5 * S)), [1; 2], "eleven are not");
    assert_eq!(not_caught_up(12 * S, (0, S)), [1; 2], "what calls waited before says nothing of this wait");
}

#[test]
fn a_connect_is_refused_for_a_good_token_or_for_one_that_may_have_ended() {
    let failed = |life_s: u64| {
        let mut alone = Alone::new();
        alone.run.world.note_login_for_tests(clock::unix_ms() / 1_000 + 20);
        alone.now_us = clock::now_us().max(S);
        alone.on(Event::Command(Command::Online(alone.now_us)));
        alone.now_us += life_s * S;
        let [_, cause] = refusals();
        let actions = alone.on(Event::ConnectFailed(ConnectError { cause, server: None, retry_after: None }));
        assert!(actions.iter().any(|action| matches!(action, Action::LogIn)), "{actions:?}");
        get(&alone.run.stats.connects_failed)
    };
    assert_eq!([20, 5].map(failed), [0, 1]);
}

/// A device that loses its connection with a message unanswered, and ends with what an error kept it from.
fn ended<const N: usize>(errors: [LinkError; N]) -> [u64; 3] {
    let mut alone = Alone::new();
    alone.come();
    let conversation = alone.conversation();
    alone.on(Event::Command(Command::Send { conversation, intended_us: alone.now_us, bytes: 90 }));
    let mut errors = errors.into_iter();
    alone.on(Event::Closed(errors.next().expect("a loss")));
    for cause in errors {
        alone.on(Event::ConnectFailed(ConnectError { cause, server: None, retry_after: None }));
    }
    alone.now_us += 15 * S;
    alone.on(Event::Command(Command::Finish(alone.now_us + S)));
    let stats = &alone.run.stats;
    assert_eq!((get(&stats.unresolved), get(&stats.not_caught_up)), (1, 1));
    [&stats.disconnects, &stats.unresolved_local, &stats.not_caught_up_local].map(get)
}

#[test]
fn a_device_that_this_machine_keeps_from_a_connection_is_told_apart() {
    let here = || LinkError::Local("EADDRNOTAVAIL".to_owned());
    let there = || LinkError::Lost("cut".to_owned());
    assert_eq!(ended([here(), here()]), [0, 1, 1]);
    assert_eq!(ended([there(), here()]), [1, 1, 1], "the loss is the target's");
    assert_eq!(ended([here(), there()]), [0, 0, 0], "it is the target that does not let it in");
    let refused_before = ended([there(), there(), here()]);
    assert_eq!(refused_before, [1, 0, 0], "one failure here does not undo those of the target");
}

#[test]
fn a_device_whose_last_sync_fails_by_this_machine_alone_is_told_apart() {
    let is_undrained_here = |errors: &[CallError]| {
        let mut alone = Alone::new();
        alone.come();
        let mut actions = alone.on(Event::Command(Command::Finish(alone.now_us + 600 * S)));
        for error in errors {
            alone.list(&actions, Err(error.clone()));
            actions = alone.until(alone.now_us + 30 * S).into_iter().map(|(_, action)| action).collect();
        }
        let by_us = alone.now_us + 600 * S;
        alone.until(by_us);
        let state = alone.device.into_state();
        assert!(!state.is_drained);
        state.is_undrained_here
    };
    let (here, there) = (CallError::Local("EMFILE".to_owned()), CallError::Failed("http_500".to_owned()));
    assert!(is_undrained_here(&[here.clone(), here.clone()]));
    assert!(!is_undrained_here(&[here, there]), "the target does not answer either");
    assert!(!is_undrained_here(&[]), "nothing failed here");
}

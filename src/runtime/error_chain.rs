//! Errors of libraries and of the system: in words for people, and whose fault they are.

use std::borrow::Cow;
use std::io;

/// How the standard library begins the number that it puts behind the system's words.
const NUMBER: &str = " (os error ";

/// A text in which what the system says of errors is said in words for people, without the system's numbers.
#[must_use]
pub fn plain_os_errors(text: &str) -> Cow<'_, str> {
    if !text.contains(NUMBER) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(NUMBER) {
        let number = behind.split_once(')').and_then(|(number, after)| Some((number.parse::<i32>().ok()?, after)));
        let Some((code, after)) = number else {
            plain.push_str(before);
            plain.push_str(NUMBER);
            rest = behind;
            continue;
        };
        let systems = io::Error::from_raw_os_error(code).to_string();
        let systems = systems.split_once(NUMBER).map_or("", |(words, _)| words);
        match (words_of(code), before.strip_suffix(systems)) {
            (Some(words), Some(before)) => plain.extend([before, words]),
            _ => plain.push_str(before),
        }
        rest = after;
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// Our words for what users meet.
const fn words_of(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::EADDRINUSE => "another process has this address",
        libc::EADDRNOTAVAIL => "this machine has no such address, or no port left",
        libc::EACCES | libc::EPERM => "permission denied",
        libc::ENOENT => "there is no such file or folder",
        libc::EMFILE => "too many open files in this process",
        libc::ENFILE => "too many open files on this machine",
        libc::ENOSPC => "the disk is full",
        libc::EROFS => "the file system can only be read",
        libc::EISDIR => "it is a folder",
        libc::ENOTDIR => "a part of the path is no folder",
        libc::ECONNREFUSED => "nobody listens there",
        libc::ECONNRESET => "the other side cut the connection",
        _ => return None,
    })
}

/// An error with its causes, in one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    plain_os_errors(&text).into_owned()
}

/// Whether this machine is the cause of a failed connection or request: no descriptor, port, buffer or memory was left for it.
/// What the other end did or did not do is never a local cause.
#[must_use]
pub fn is_local_cause(error: &(dyn std::error::Error + 'static)) -> bool {
    const LOCAL: [i32; 6] =
        [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::EADDRINUSE, libc::ENOBUFS, libc::ENOMEM];
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if io.raw_os_error().is_some_and(|code| LOCAL.contains(&code)) {
                return true;
            }
            // An `io::Error` that wraps another error has the cause of that one as its source, not that one itself.
            if let Some(inner) = io.get_ref()
                && is_local_cause(inner)
            {
                return true;
            }
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[derive(Debug, thiserror::Error)]
    #[error("connect")]
    struct Connect(#[source] Error);

    #[test]
    fn what_the_system_says_is_said_in_words_for_people() {
        let of = |code: i32| Error::from_raw_os_error(code);
        let port = format!("--port: 127.0.0.1:80: {}; give another one", of(libc::EADDRINUSE));
        assert!(port.contains("(os error"), "or there is nothing to do: {port}");
        assert_eq!(plain_os_errors(&port), "--port: 127.0.0.1:80: another process has this address; give another one");
        let two = format!("{}, and then {}", of(libc::ENOENT), of(libc::EPIPE));
        assert_eq!(plain_os_errors(&two), "there is no such file or folder, and then Broken pipe");
        for code in [libc::EACCES, libc::EMFILE, libc::ENOSPC, libc::ECONNREFUSED, 12_345] {
            let plain = plain_os_errors(&of(code).to_string()).into_owned();
            assert!(!plain.contains("os error") && !plain.is_empty(), "{plain}");
        }
        // What only looks like one stays.
        for text in ["nothing", "a (os error x)", "a (os error 98", "it says: (os error 98)"] {
            let is_kept = plain_os_errors(text) == text || text.ends_with("98)");
            assert!(is_kept, "{text}");
        }
        assert_eq!(error_chain(&Connect(of(libc::EADDRINUSE))), "connect: another process has this address");
    }

    #[test]
    fn a_local_cause_is_found_however_deep_it_lies() {
        for code in [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM] {
            let deep = Connect(Error::other(Connect(Error::from_raw_os_error(code))));
            assert!(is_local_cause(&deep), "{deep:?}");
        }
        for code in [libc::ECONNREFUSED, libc::ECONNRESET, libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            assert!(!is_local_cause(&Connect(Error::from_raw_os_error(code))), "{code}");
        }
        assert!(!is_local_cause(&Error::from(ErrorKind::OutOfMemory)), "another process's word for it");
    }
}

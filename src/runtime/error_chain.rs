//! Errors of libraries: in words for people, and whose fault they are.

/// An error with its causes, in one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
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

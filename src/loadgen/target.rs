//! The address of the stack that a load is aimed at: checked before anything runs, and free of secrets in whatever shows it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::telemetry::printable;

/// An address of the form `http://host:port`, without anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(String);

/// Longest name of a host. Source: RFC 1035.
const HOST_BYTES_MAX: usize = 253;

impl Target {
    /// Reads an address. One slash at its end is dropped.
    ///
    /// # Errors
    /// Says what is wrong with the address, and shows it without the name, the password and the query that it may contain.
    pub fn parse(text: &str) -> Result<Self, String> {
        authority(text)
            .map(|authority| Self(format!("http://{authority}")))
            .map_err(|problem| format!("{:?} is no address of a stack: {problem}", redacted(text)))
    }

    /// `http://host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only this machine reaches it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let authority = self.0.trim_start_matches("http://");
        let host =
            authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(authority, |(host, _)| host);
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        address.map_or_else(|| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address as it may be shown: without what stands before `@` or behind `?` and `#`.
fn redacted(text: &str) -> String {
    let (before, text) = text.rsplit_once('@').map_or(("", text), |(_, host)| ("…@", host));
    let end = text.find(['?', '#']).unwrap_or(text.len());
    let after = if end < text.len() { "…" } else { "" };
    format!("{before}{}{after}", printable(&text[..end]))
}

/// The part between `http://` and the path.
fn authority(text: &str) -> Result<&str, String> {
    let form = "write http://host:port";
    let Some((scheme, rest)) = text.split_once("://") else { return Err(format!("it has no scheme: {form}")) };
    if text.contains('@') {
        return Err(format!("a name or password does not belong in it, and the API asks for none: {form}"));
    }
    if scheme.eq_ignore_ascii_case("https") {
        return Err("TLS is not spoken: give the address of the API itself, or of a proxy that speaks http".to_owned());
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(format!("its scheme is not http: {form}"));
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !matches!(rest, "" | "/") {
        return Err(format!("it has a path, a query or a fragment: {form}"));
    }
    let (host, port) = match authority.rfind(']') {
        Some(end) => (&authority[..=end], authority[end + 1..].strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    check_host(authority, host)?;
    let is_valid =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(port) = port.filter(|port| !is_valid(port)) {
        return Err(format!("port {:?}: valid are 1 to 65535", printable(port)));
    }
    // Anything else behind the bracket of an IPv6 address.
    if host.len() + port.map_or(0, |port| port.len() + 1) != authority.len() {
        return Err(format!("there is something behind the host: {form}"));
    }
    Ok(authority)
}

fn check_host(authority: &str, host: &str) -> Result<(), String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.trim_end_matches(']').parse::<Ipv6Addr>();
        return address.map(|_| ()).map_err(|_| format!("{:?} is no IPv6 address", printable(host)));
    }
    if authority.matches(':').count() > 1 {
        return Err("an IPv6 address stands in brackets, as http://[::1]:7100".to_owned());
    }
    if host.is_empty() {
        return Err("it has no host".to_owned());
    }
    let is_numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("{host:?} is no IPv4 address"));
    }
    let is_name = host.len() <= HOST_BYTES_MAX
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if is_name { Ok(()) } else { Err(format!("{:?} is no name of a host", printable(host))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_form_are_taken() {
        for (text, taken) in [
            ("http://127.0.0.1:7100", "http://127.0.0.1:7100"),
            ("http://localhost:7100/", "http://localhost:7100"),
            ("HTTP://chat.example", "http://chat.example"),
            ("http://[::1]:7100", "http://[::1]:7100"),
            ("http://[fd00::7]", "http://[fd00::7]"),
        ] {
            assert_eq!(Target::parse(text).map(|t| t.to_string()), Ok(taken.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, problem) in [
            ("127.0.0.1:7100", "no scheme"),
            ("http://127.0.0.1:99999", "\"99999\": valid are 1 to 65535"),
            ("http://127.0.0.1:0", "\"0\": valid are"),
            ("http://127.0.0.1:", "\"\": valid are"),
            ("http://127.0.0.1:+80", "\"+80\": valid are"),
            ("http://", "no host"),
            ("http://:7100", "no host"),
            ("http://127.0.0.1:7100/api", "a path"),
            ("http://127.0.0.1:7100//", "a path"),
            ("http://127.0.0.1:7100?token=a", "a query"),
            ("https://127.0.0.1:7100", "TLS"),
            ("ftp://127.0.0.1", "scheme is not http"),
            ("http://::1:7100", "stands in brackets"),
            ("http://[::1", "no IPv6 address"),
            ("http://[::g]:7100", "no IPv6 address"),
            ("http://[::1]7100", "behind the host"),
            ("http://1.2.3:7100", "no IPv4 address"),
            ("http://999.0.0.1:7100", "no IPv4 address"),
            ("http://a b:7100", "no name of a host"),
            ("http://\u{1b}[2J:7100", "no name of a host"),
            ("", "no scheme"),
        ] {
            let refused = Target::parse(text).expect_err(text);
            assert!(refused.contains(problem) && !refused.chars().any(char::is_control), "{text}: {refused}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        for text in [
            "http://user:hunter2@127.0.0.1:7100",
            "http://user:p@hunter2@127.0.0.1:7100",
            "user:hunter2@127.0.0.1",
            "https://hunter2@host/path",
            "http://user:hunter2/?#@127.0.0.1:99999",
            "http://host/?token=hunter2",
            "http://host#hunter2",
        ] {
            let refused = Target::parse(text).expect_err(text);
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        assert!(Target::parse("http://u:p@h:1").expect_err("refused").contains("password does not belong"));
    }

    #[test]
    fn loopback_is_recognized() {
        let is_loopback = |text: &str| Target::parse(text).expect(text).is_loopback();
        for text in
            ["http://127.0.0.1:1", "http://127.9.9.9", "http://localhost:7100", "http://[::1]:1", "http://[::1]"]
        {
            assert!(is_loopback(text), "{text}");
        }
        for text in ["http://10.0.0.1:1", "http://127.example:1", "http://[fd00::1]:1", "http://localhost.example:1"] {
            assert!(!is_loopback(text), "{text}");
        }
    }
}

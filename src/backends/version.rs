//! Versions of engines: what a stack relies on is asked for at start.

/// The first two numbers of a version.
pub(super) type Version = (u32, u32);

/// The first two numbers of texts such as `3.4.23` or `10.11.6-MariaDB`; `None` where there is no number.
pub(super) fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

/// `3.4`.
pub(super) fn text((major, minor): Version) -> String {
    format!("{major}.{minor}")
}

/// Checks what a server said of its version.
///
/// # Errors
/// Names product, version found, version needed and the fix.
pub(super) fn at_least(product: &str, found: &str, needed: Version) -> Result<(), String> {
    match parse(found) {
        Some(version) if version >= needed => Ok(()),
        Some(_) => Err(format!("it is {product} {found}: at least {} is needed, upgrade it", text(needed))),
        None => Err(format!("it is {product} of an unknown version ({found:?}): at least {} is needed", text(needed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_told_from_a_new_one() {
        assert_eq!(parse("10.11.6-MariaDB-0+deb12u1"), Some((10, 11)));
        assert_eq!((parse("v3.4"), parse("17"), parse("beta"), parse("")), (Some((3, 4)), Some((17, 0)), None, None));
        assert_eq!(at_least("Redis", "7.0.15", (6, 2)), Ok(()));
        assert_eq!(at_least("Redis", "10.0", (6, 2)), Ok(()));
        let error = at_least("Redis", "6.0.1", (6, 2)).expect_err("too old");
        assert_eq!(error, "it is Redis 6.0.1: at least 6.2 is needed, upgrade it");
        assert!(at_least("Redis", "", (6, 2)).is_err());
    }
}

//! Names that people give: what they may be made of, and the one form in which they are kept and compared.
//!
//! An account's name follows the PRECIS profile `UsernameCaseMapped` (RFC 8265, section 3.3; several parts with single spaces
//! between them as in its section 3.5): no invisible characters, no symbols, one form for composed and decomposed, wide and
//! narrow, upper and lower case. Beyond the profile, a name mixes scripts no more than the level "highly restrictive" of UTS #39
//! allows, so that a Cyrillic letter does not hide among Latin ones. (Whole words that look alike in two scripts stay two names.)
//!
//! What is only shown (display names, names of groups) follows the profile `Nickname` (RFC 8266) but for two things: emoji keep
//! their joiners, and a name is kept as it looks (NFC, not NFKC). The library's tables are those of Unicode 6.3, as the profiles'
//! registry is, so these rules are read from the categories of Unicode today.

use std::ops::RangeInclusive;

use precis_core::profile::PrecisFastInvocation;
use precis_profiles::UsernameCaseMapped;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};
use unicode_security::RestrictionLevelDetection;
use unicode_security::restriction_level::RestrictionLevel;

/// Longest name of an account, in characters.
pub(super) const ACCOUNT_CHARS_MAX: usize = 64;

/// Longest display name, in characters.
pub(super) const DISPLAY_CHARS_MAX: usize = 64;

/// Longest name of a conversation, in characters.
pub(super) const CONVERSATION_CHARS_MAX: usize = 128;

/// How many times as many characters a name may have before they are composed.
const GIVEN_TIMES_MAX: usize = 4;

/// U+200D and U+FE0F: what makes one emoji of several characters.
const EMOJI_JOINERS: [char; 2] = ['\u{200d}', '\u{fe0f}'];

/// A name that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidName {
    /// Too short or too long.
    #[error("has 1 to {most} characters")]
    Length {
        /// Characters that it may have.
        most: usize,
    },
    /// A character that a name can't have.
    #[error(
        "has letters and digits of any script and ASCII punctuation, with single spaces between: no control, invisible or \
         compatibility characters and no symbols (RFC 8265, UsernameCaseMapped)"
    )]
    Account,
    /// Letters of several scripts.
    #[error(
        "has letters of scripts that are not written together, or that names are not written with: use those of one script in common use"
    )]
    MixedScripts,
    /// A character that can't be shown.
    #[error("has no control or invisible characters (RFC 8266)")]
    Shown,
}

/// The form in which an account's name is kept and compared.
pub(super) fn account(text: &str) -> Result<String, InvalidName> {
    let length = InvalidName::Length { most: ACCOUNT_CHARS_MAX };
    // A letter may come in several characters: what counts is the form that is kept.
    if text.is_empty() || text.chars().count() > GIVEN_TIMES_MAX * ACCOUNT_CHARS_MAX {
        return Err(length);
    }
    let mut parts = Vec::new();
    for part in text.split(' ') {
        parts.push(UsernameCaseMapped::enforce(part).map_err(|_| InvalidName::Account)?);
    }
    let name = parts.join(" ");
    if name.is_empty() || name.chars().count() > ACCOUNT_CHARS_MAX {
        return Err(length);
    }
    let letters: String = name.chars().filter(|c| c.is_alphanumeric()).collect();
    if letters.is_ascii() || letters.check_restriction_level(RestrictionLevel::HighlyRestrictive) {
        return Ok(name);
    }
    Err(InvalidName::MixedScripts)
}

/// The form in which a name that is only shown is kept; not empty.
pub(super) fn shown(text: &str, chars_max: usize) -> Result<String, InvalidName> {
    let length = InvalidName::Length { most: chars_max };
    if text.chars().count() > GIVEN_TIMES_MAX * chars_max {
        return Err(length);
    }
    let mut name = String::with_capacity(text.len());
    let mut before = None;
    for c in text.nfc() {
        let is_fit = if EMOJI_JOINERS.contains(&c) { before.is_some_and(is_joined) } else { is_shown(c) };
        if !is_fit {
            return Err(InvalidName::Shown);
        }
        if c.general_category() != GeneralCategory::SpaceSeparator {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with(' ') {
            name.push(' ');
        }
        before = Some(c);
    }
    name.truncate(name.trim_end().len());
    if (1..=chars_max).contains(&name.chars().count()) { Ok(name) } else { Err(length) }
}

/// Whether a character can be seen: the letters, marks, numbers, punctuation, symbols and spaces of the `FreeformClass` (RFC 8264,
/// 4.3), by the Unicode of today, so that new emoji are among them.
fn is_shown(c: char) -> bool {
    let is_visible = match c.general_category_group() {
        GeneralCategoryGroup::Other => false,
        GeneralCategoryGroup::Separator => c.general_category() == GeneralCategory::SpaceSeparator,
        _ => true,
    };
    is_visible && !IGNORABLE.iter().any(|range| range.contains(&c))
}

/// Letters and marks that show nothing by themselves. Source: `Default_Ignorable_Code_Point` of Unicode's
/// `DerivedCoreProperties.txt`, but for what is no letter or mark, and for the joiners of emoji; and the blank of Braille.
const IGNORABLE: [RangeInclusive<char>; 9] = [
    '\u{34f}'..='\u{34f}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0e}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Whether a character may stand before a joiner: an emoji or its joiner, a sign, a digit of a keycap.
fn is_joined(c: char) -> bool {
    matches!(c, '0'..='9' | '#' | '*' | '\u{a9}' | '\u{ae}' | '\u{fe0f}')
        || (c >= '\u{2000}' && c.general_category_group() == GeneralCategoryGroup::Symbol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_one_form() {
        for (given, kept) in [
            ("alice", "alice"),
            ("Alice", "alice"),
            ("Zoe\u{308}", "zoë"),
            ("ZOË", "zoë"),
            ("ａｂ", "ab"),
            ("Anna Maria", "anna maria"),
            ("load-17:u5@x.example", "load-17:u5@x.example"),
            ("李雷", "李雷"),
            ("Ωμέγα", "ωμέγα"),
            ("東京タワー", "東京タワー"),
            (&"e\u{301}".repeat(64), &"é".repeat(64)),
        ] {
            assert_eq!(account(given).as_deref(), Ok(kept), "{given:?}");
            assert_eq!(account(kept).as_deref(), Ok(kept), "once more changes nothing");
        }
    }

    #[test]
    fn what_can_not_be_seen_or_told_apart_is_no_name() {
        for given in [
            "a\u{200b}b",
            "a\u{0}",
            "\u{202e}x",
            "\u{feff}a",
            "\u{ad}a",
            " a",
            "a ",
            "a  b",
            "a\u{a0}b",
            "a\tb",
            "①",
            "👍",
            "a\u{fe0f}",
            "\u{e0041}",
        ] {
            assert_eq!(account(given), Err(InvalidName::Account), "{given:?}");
        }
        for given in ["аlice", "pаypal", "ΑΒcd"] {
            assert_eq!(account(given), Err(InvalidName::MixedScripts), "{given:?}");
        }
        for given in ["", &"x".repeat(65), &"x".repeat(60_000)] {
            assert_eq!(account(given), Err(InvalidName::Length { most: 64 }), "{given:?}");
        }
    }

    #[test]
    fn a_shown_name_has_spaces_and_emoji_and_nothing_invisible() {
        for (given, kept) in [
            ("Team 1", "Team 1"),
            ("  a  b ", "a b"),
            ("Cafe\u{301}", "Café"),
            ("❤\u{fe0f} Anna", "❤\u{fe0f} Anna"),
            ("👨\u{200d}👩\u{200d}👧", "👨\u{200d}👩\u{200d}👧"),
            ("🏳\u{fe0f}\u{200d}🌈 🫡 1\u{fe0f}\u{20e3}", "🏳\u{fe0f}\u{200d}🌈 🫡 1\u{fe0f}\u{20e3}"),
            ("Müller & Söhne: \"x\" <b>", "Müller & Söhne: \"x\" <b>"),
        ] {
            assert_eq!(shown(given, 64).as_deref(), Ok(kept), "{given:?}");
        }
        for given in [
            "a\u{0}b",
            "a\nb",
            "\u{1b}[2J",
            "a\u{200b}",
            "\u{202e}abc",
            "a\u{200d}b",
            "\u{fe0f}",
            "\u{200d}x",
            "\u{3164}",
            "a\u{e0041}",
            "\u{2028}",
            "x\u{7f}",
        ] {
            assert_eq!(shown(given, 64), Err(InvalidName::Shown), "{given:?}");
        }
        for given in ["", " ", &"x".repeat(65)] {
            assert_eq!(shown(given, 64), Err(InvalidName::Length { most: 64 }), "{given:?}");
        }
    }
}

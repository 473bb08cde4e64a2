//! Text of strangers on its way to a terminal or a file.

use std::borrow::Cow;

/// A text in which every character that a terminal obeys or that reorders others is replaced by its code, as `\u{1b}`: control
/// characters (line breaks too), overrides of the writing direction, invisible ones. The text of names, of servers and of
/// results of unknown origin passes through here before it is shown or written.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_obeyed(character) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// The same line by line: line breaks stay.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|character| character != '\n' && is_obeyed(character)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.split('\n').map(printable).collect::<Vec<_>>().join("\n"))
}

/// Whether a character does something else than to stand where it is.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{fe00}'..='\u{fe0e}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{fffe}'..='\u{ffff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_by_its_code() {
        assert_eq!(printable("\u{1b}[2Jgone\r\n"), "\\u{1b}[2Jgone\\u{d}\\u{a}");
        assert_eq!(printable("\u{9b}31m"), "\\u{9b}31m", "eight-bit controls too");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(printable("\u{ffff}\0"), "\\u{ffff}\\u{0}", "what XML can't hold");
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["", "fanout-saturation", "Grüße, 世界", "👩‍💻 ❤️", "<b> & \"quotes\" \\"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable_lines("one\ntwo\u{7}\n"), "one\ntwo\\u{7}\n");
    }
}

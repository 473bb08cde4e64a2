//! Brackets and quotes of a YAML text that are opened and not closed: its parser tells where it gave up, which may be far behind.

/// What is not closed, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unclosed {
    /// `[`, `{`, `"` or `'`.
    pub(super) mark: char,
    /// Its line, from 1.
    pub(super) line: usize,
    /// Its column, from 1.
    pub(super) column: usize,
    /// The closing bracket of another kind that stands where its own is due, with line and column.
    pub(super) instead: Option<(char, usize, usize)>,
}

/// The scan of a text.
struct Scan {
    /// Brackets that are open, the innermost last.
    open: Vec<Unclosed>,
    /// The quote that is open.
    quote: Option<Unclosed>,
    /// Whether a value may begin here: brackets and quotes inside of one are only text.
    may_begin: bool,
    /// Whether a plain text has begun, which may go on in the next line.
    is_in_text: bool,
}

/// The outermost bracket, or the quote, that a text leaves open; `None` where each is closed.
pub(super) fn unclosed(text: &str) -> Option<Unclosed> {
    let mut scan = Scan { open: Vec::new(), quote: None, may_begin: true, is_in_text: false };
    // Indentation of the key whose text begins on the next line (`|`, `>`).
    let mut block: Option<usize> = None;
    // The same of a key or an entry whose plain text has begun: what is indented more is more of it.
    let mut plain: Option<usize> = None;
    for (n, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if block.is_some_and(|of| line.trim().is_empty() || indent > of) {
            continue;
        }
        block = None;
        if plain.is_some() && line.trim().is_empty() {
            continue;
        }
        let goes_on = plain.filter(|of| indent > *of);
        if let Some(wrong) = scan.line(line, n + 1, goes_on.is_some()) {
            return Some(wrong);
        }
        plain = scan.is_in_text.then(|| goes_on.unwrap_or_else(|| indent_of_node(line)));
        if scan.open.is_empty() && scan.quote.is_none() && begins_block(line) {
            block = Some(indent);
        }
    }
    scan.quote.or_else(|| scan.open.first().copied())
}

/// Indentation of the innermost key or entry of a line: `- a: text` has one of 2, `- text` of 0.
fn indent_of_node(line: &str) -> usize {
    let mut rest = line.trim_start_matches(' ');
    let mut indent = line.len() - rest.len();
    while let Some(entry) = rest.strip_prefix("- ") {
        let entry = entry.trim_start_matches(' ');
        if !entry.contains(": ") && !entry.starts_with("- ") {
            break;
        }
        indent += rest.len() - entry.len();
        rest = entry;
    }
    // Whose value a line without either is stands above it, and is indented less.
    let has_node = rest.contains(": ") || rest.starts_with("- ");
    if has_node { indent } else { indent.saturating_sub(1) }
}

/// Whether a line ends with the sign of a text that follows it, such as `description: |`.
fn begins_block(line: &str) -> bool {
    let code = line.split(" #").next().unwrap_or_default();
    let last = code.trim_end().rsplit(' ').next().unwrap_or_default();
    let signs = last.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
    matches!(signs, "|" | ">")
}

impl Scan {
    /// Reads a line, which may be more of the plain text before it; returns a bracket that is closed by one of another kind.
    fn line(&mut self, line: &str, number: usize, is_more_text: bool) -> Option<Unclosed> {
        let chars: Vec<char> = line.chars().collect();
        let mut at = 0;
        self.may_begin |= self.quote.is_none() && !is_more_text;
        self.is_in_text = is_more_text;
        while at < chars.len() {
            let (c, next) = (chars[at], chars.get(at + 1).copied());
            if let Some(quote) = self.quote {
                at += self.in_quote(quote.mark, c, next);
                continue;
            }
            let is_remark = c == '#' && (at == 0 || chars[at - 1].is_whitespace());
            if is_remark {
                // Behind it a plain text is over.
                self.is_in_text = false;
                break;
            }
            let here = Unclosed { mark: c, line: number, column: at + 1, instead: None };
            if let Some(wrong) = self.outside(here, next) {
                return Some(wrong);
            }
            at += 1;
        }
        None
    }

    /// A character of a quoted text; returns how many are read.
    fn in_quote(&mut self, quote: char, c: char, next: Option<char>) -> usize {
        let is_escape = (quote == '"' && c == '\\') || (quote == '\'' && c == '\'' && next == Some('\''));
        if is_escape {
            return 2;
        }
        if c == quote {
            self.quote = None;
            self.may_begin = false;
        }
        1
    }

    /// A character outside of quotes.
    fn outside(&mut self, here: Unclosed, next: Option<char>) -> Option<Unclosed> {
        let is_flow = !self.open.is_empty();
        let is_end = next.is_none_or(char::is_whitespace);
        match here.mark {
            '[' | '{' if self.may_begin || is_flow => {
                self.open.push(here);
                (self.may_begin, self.is_in_text) = (true, false);
            }
            ']' | '}' if is_flow => {
                let opened = self.open.pop()?;
                if (opened.mark == '[') != (here.mark == ']') {
                    return Some(Unclosed { instead: Some((here.mark, here.line, here.column)), ..opened });
                }
                self.may_begin = false;
            }
            '"' | '\'' if self.may_begin => self.quote = Some(here),
            ',' if is_flow => self.may_begin = true,
            ':' if is_end || is_flow => (self.may_begin, self.is_in_text) = (true, false),
            // Behind the beginning of a text they are part of it.
            '-' | '?' if is_end && self.may_begin => {}
            c if c.is_whitespace() => {}
            // What stands behind a quoted text is no text that may go on.
            _ => (self.may_begin, self.is_in_text) = (false, !is_flow && (self.may_begin || self.is_in_text)),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_bracket_that_is_open_is_found() {
        for (text, mark, line, column) in [
            ("a: [\n", '[', 1, 4),
            ("a: [b, c\nd: [e]\nf: {g: h}\n", '[', 1, 4),
            ("a:\n  - {b: [c, d}\n", '[', 2, 9),
            ("a: {b: 1\n", '{', 1, 4),
            ("# [\na: \"x\n", '"', 2, 4),
            ("a: 'it''s\n", '\'', 1, 4),
            ("\u{e9}: [x\n", '[', 1, 4),
            ("a:\n  [b\n", '[', 2, 3),
            ("a: text\nb: [c\n", '[', 2, 4),
            ("- text\n- [b\n", '[', 2, 3),
            ("a: text # over\n  [b\n", '[', 2, 3),
            ("a: \"text\"\n  [b\n", '[', 2, 3),
        ] {
            let found = unclosed(text).unwrap_or_else(|| panic!("{text:?}"));
            assert_eq!((found.mark, found.line, found.column), (mark, line, column), "{text:?}");
        }
        assert_eq!(unclosed("a: [b, c}\n").and_then(|found| found.instead), Some(('}', 1, 9)));
    }

    #[test]
    fn what_is_only_text_opens_nothing() {
        for text in [
            "a: b[1\nc: it's {\n",
            "a: \"[\"\nb: '{'\n",
            "a: [b] # [\n",
            "a: |\n  [\n  {\nb: 1\n",
            "- a: >-\n    it's [\n\n    \"x\n- b\n",
            "a: \"\\\"[\"\n",
            "thresholds: [\"lost == 0\", 'a[0]', b c]\n",
            "a: some text\n  [that goes on\n\n  {and on\n  \"and on\nb: 1\n",
            "- a: text\n    'more\n- text\n  [more\n- - b: it\n      {is\n",
            "a: one - [two\n  [three\n",
            "a:\n  some text\n  [that goes on\nb: 1\n",
            "",
        ] {
            assert_eq!(unclosed(text), None, "{text:?}");
        }
    }
}

//! Names that become part of a path: folders of results, histories, temporary folders (which are deleted with all they hold).

use crate::telemetry::printable;

/// Longest name, in characters. With an ending it stays below the 255 bytes of a file's name in every script.
pub const NAME_CHARS_MAX: usize = 60;

/// Whether a name can stand for one file or folder and nothing else. Every name and label is held to it before it becomes part
/// of a path.
///
/// # Errors
/// Says what is wrong with it, and what is valid.
pub fn check_name(name: &str) -> Result<(), String> {
    let valid = format!(
        "valid are 1 to {NAME_CHARS_MAX} letters, digits, spaces and other characters but / \\ : * ? \" < > |, \
         with a letter or digit first and no space or dot last"
    );
    let shown: String = name.chars().take(NAME_CHARS_MAX + 1).collect();
    let is_bad = |character: char| r#"/\:*?"<>|"#.contains(character);
    let problem = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.chars().count() > NAME_CHARS_MAX {
        format!("it has {} characters", name.chars().count())
    } else if printable(name) != name {
        "it has control or invisible characters".to_owned()
    } else if let Some(bad) = name.chars().find(|c| is_bad(*c)) {
        format!("it contains {bad:?}, and it names files and folders")
    } else if !name.starts_with(char::is_alphanumeric) || name.ends_with([' ', '.']) {
        "it begins or ends with a character that names of files should not".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("{:?}: {problem}: {valid}", printable(&shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_file_and_nothing_else() {
        for name in ["quickstart", "idle-1m", "kill chat-2", "a", "7 Zwerge", "世界", "a.b", "x (2)", "c++"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc",
            "a\\b",
            "c:",
            ".hidden",
            "-rf",
            " a",
            "a ",
            "a.",
            "~",
            "a\nb",
            "a\0b",
            "\u{1b}[2J",
            "a\u{202e}b",
            "a\u{7f}",
            "what?",
        ] {
            let refused = check_name(name).expect_err(name);
            assert!(refused.contains("valid are") && !refused.chars().any(char::is_control), "{refused}");
        }
        assert!(check_name(&"x".repeat(NAME_CHARS_MAX)).is_ok());
        assert!(check_name(&"x".repeat(NAME_CHARS_MAX + 1)).is_err());
    }
}

//! The texts of `--help` as a terminal shows them: those of the flags are doc comments, whose backticks are for the documentation.

use clap::{Arg, Command};

/// The command with plain texts, and all verbs below it.
pub(crate) fn plain(command: Command) -> Command {
    let about = command.get_about().map(without_backticks);
    let long_about = command.get_long_about().map(without_backticks);
    let mut command = command.mut_args(plain_arg).mut_subcommands(plain);
    if let Some(about) = about {
        command = command.about(about);
    }
    if let Some(about) = long_about {
        command = command.long_about(about);
    }
    command
}

fn plain_arg(arg: Arg) -> Arg {
    let help = arg.get_help().map(without_backticks);
    let long_help = arg.get_long_help().map(without_backticks);
    let arg = if let Some(help) = help { arg.help(help) } else { arg };
    if let Some(help) = long_help { arg.long_help(help) } else { arg }
}

fn without_backticks(text: &clap::builder::StyledStr) -> String {
    text.to_string().replace('`', "")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::Args;

    fn helps(command: &mut Command, all: &mut Vec<String>) {
        all.push(command.render_help().to_string() + &command.render_long_help().to_string());
        command.get_subcommands_mut().for_each(|verb| helps(verb, all));
    }

    #[test]
    fn no_help_has_a_backtick() {
        let mut all = Vec::new();
        helps(&mut plain(Args::command()), &mut all);
        assert!(all.len() > 15 && all.iter().any(|help| help.contains("--workers")), "{}", all.len());
        for help in all {
            assert!(!help.contains('`'), "{help}");
        }
    }
}

//! From arguments and environment to a command; from what is wrong with them to one line that names it.

use super::{Cli, Failure};
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, CommandFactory as _, FromArgMatches as _};
use std::env;
use std::error::Error as _;
use std::ffi::OsString;

/// `None` where help or the version was asked for, and printed.
pub(super) fn parse(args: Vec<OsString>) -> Result<Option<Cli>, Failure> {
    let command = ignore_empty_variables(Cli::command());
    refuse_unreadable_variables(&command)?;
    let parsed =
        command.clone().try_get_matches_from(&args).and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let error = match parsed {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            super::print(&error.render().to_string())?;
            Ok(None)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::Usage(format!("a command is needed\n\n{}", error.render())))
        }
        _ => Err(Failure::Usage(one_line(&command, &args, &error))),
    }
}

/// The arguments of a command and of all commands below it.
fn arguments(command: &clap::Command) -> Vec<&Arg> {
    command.get_arguments().chain(command.get_subcommands().flat_map(arguments)).collect()
}

fn ignore_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(ignore_empty_variable).mut_subcommands(ignore_empty_variables)
}

/// An empty variable is as good as an unset one.
fn ignore_empty_variable(arg: Arg) -> Arg {
    let empty = arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
    if empty { arg.env(Resettable::Reset) } else { arg }
}

fn refuse_unreadable_variables(command: &clap::Command) -> Result<(), Failure> {
    for name in arguments(command).into_iter().filter_map(Arg::get_env) {
        // clap would refuse it, too, but without its name.
        if let Some(value) = env::var_os(name)
            && value.to_str().is_none()
        {
            return Err(Failure::Usage(format!("{}={value:?}: it has to be UTF-8", name.display())));
        }
    }
    Ok(())
}

fn one_line(command: &clap::Command, args: &[OsString], error: &clap::Error) -> String {
    let of_value = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
    if of_value
        && let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) =
            (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    {
        let name = source_of(command, args, arg, value);
        let expected = match (error.source(), error.get(ContextKind::ValidValue)) {
            (Some(allowed), _) => allowed.to_string(),
            (None, Some(ContextValue::Strings(choices))) => choices.join(", "),
            (None, _) => "another value; see nexus --help".to_owned(),
        };
        // Secrets are not quoted.
        return if is_secret(command, arg) {
            format!("{name}: expected {expected}")
        } else {
            format!("{name}={value:?}: expected {expected}")
        };
    }
    let rendered = error.render().to_string();
    let first = rendered.lines().next().unwrap_or_default();
    // Some messages go on below: which arguments are missing.
    let more: Vec<&str> = rendered.lines().skip(1).take_while(|line| line.starts_with("  ")).map(str::trim).collect();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let space = if more.is_empty() { "" } else { " " };
    format!("{first}{space}{}; see nexus --help", more.join(" "))
}

/// The argument that clap calls `shown` (`--port <PORT>`).
fn argument<'a>(command: &'a clap::Command, shown: &str) -> Option<&'a Arg> {
    let flag = shown.split_whitespace().next()?.strip_prefix("--")?;
    arguments(command).into_iter().find(|arg| arg.get_long() == Some(flag))
}

fn is_secret(command: &clap::Command, shown: &str) -> bool {
    argument(command, shown).is_some_and(Arg::is_hide_env_values_set)
}

/// What the user wrote to set the argument that clap calls `shown` (`--port <PORT>`): the variable or the flag.
fn source_of(command: &clap::Command, args: &[OsString], shown: &str, value: &str) -> String {
    let flag = shown.split_whitespace().next().unwrap_or(shown);
    let given = args.iter().any(|arg| {
        arg.to_str().is_some_and(|arg| arg == flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
    });
    let variable = argument(command, shown)
        .and_then(Arg::get_env)
        .and_then(|name| name.to_str())
        .filter(|name| !given && env::var(name).is_ok_and(|set| set == value));
    variable.unwrap_or(flag).to_owned()
}

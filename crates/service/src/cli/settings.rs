//! `nexus settings`: every setting with its variable, flag and default, as their declarations have them.

use super::{Cli, Failure};
use clap::{Arg, Args, CommandFactory as _};
use std::fmt::Write as _;

#[derive(Args, Debug)]
pub(super) struct SettingsArgs {
    /// Print the table of the README
    #[arg(long)]
    markdown: bool,
}

struct Row {
    variable: String,
    flag: String,
    default: Option<String>,
    values: String,
    help: String,
}

pub(super) fn run(args: &SettingsArgs) -> Result<(), Failure> {
    let rows = rows();
    super::print(&if args.markdown { markdown(&rows) } else { plain(&rows) })
}

/// The settings of `serve`, which are all there are.
fn rows() -> Vec<Row> {
    let command = Cli::command();
    let serve = command.find_subcommand("serve");
    serve.into_iter().flat_map(clap::Command::get_arguments).filter_map(row).collect()
}

fn row(arg: &Arg) -> Option<Row> {
    Some(Row {
        variable: arg.get_env()?.to_str()?.to_owned(),
        flag: format!("--{}", arg.get_long()?),
        default: arg.get_default_values().first().map(|value| value.display().to_string()),
        values: arg.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect(),
        help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
    })
}

fn markdown(rows: &[Row]) -> String {
    let mut out = "| variable | flag | default | meaning |\n|---|---|---|---|\n".to_owned();
    for Row { variable, flag, default, help, .. } in rows {
        let default = default.as_ref().map_or("unset".to_owned(), |value| format!("`{value}`"));
        // Writing into a string does not fail.
        let _ = writeln!(out, "| `{variable}` | `{flag}` | {default} | {} |", help.replace('|', "\\|"));
    }
    out
}

fn plain(rows: &[Row]) -> String {
    let mut out = String::new();
    for Row { variable, flag, default, values, help } in rows {
        let default = default.as_ref().map_or("unset".to_owned(), |value| format!("default {value}"));
        let _ = writeln!(out, "{variable}, {flag} <{values}> ({default})\n    {}", help.replace('`', ""));
    }
    out
}

//! The command line: one file per command. Data goes to stdout, logs and progress to stderr.
//!
//! To add a command: a file with a `clap::Args` type (help text and an example in it) and its
//! `run(self, &mut Context) -> Result<Exit, CliError>`, and one variant of `Command`.
//!
//! Owns arguments, exit codes and what is printed. Must not hold logic that a library user would miss.

mod bench;
mod completion;
mod config;
mod demo;
mod dev;
mod directory;
mod exit;
mod get;
mod init;
mod inspect;
mod keys;
mod latency;
mod man;
mod node;
mod output;
mod progress;
mod quote;
mod say;
mod send;
mod session;
mod signals;
mod size;
mod status;
mod topic;
mod watch;

pub use exit::{CliError, Exit};
pub use output::{Format, Output, Row};

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::seams::Seams;

/// Says which format is meant where no flag does.
const FORMAT_VARIABLE: &str = "SEALCAST_FORMAT";

/// Moves transactions through a Kafka that nobody needs to trust: sealed, split, committed by a majority of nodes.
#[derive(Debug, Parser)]
#[command(
    name = "sealcast",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 unknown (timed out, attach again),
4 rejected or expired by consensus, 5 unavailable (try again).

Examples:
  sealcast demo
  sealcast dev trial
  sealcast init shop --kafka localhost:9092 --nodes a,b,c --destination orders --sender web"
)]
struct Cli {
    /// How data, errors and log lines are printed: for people, data as a table; or one JSON object a line
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, env = FORMAT_VARIABLE)]
    format: Format,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Demo(demo::Demo),
    Dev(dev::Dev),
    Init(init::Init),
    Keys(keys::Keys),
    Directory(directory::DirectoryCommand),
    Config(config::ConfigCommand),
    Topic(topic::TopicCommand),
    Node(node::NodeCommand),
    Send(send::Send),
    Status(status::Status),
    Get(get::Get),
    Watch(watch::Watch),
    Bench(bench::Bench),
    Inspect(inspect::Inspect),
    Completion(completion::Completion),
    Man(man::Man),
}

/// What every command gets.
pub struct Context {
    /// The machine.
    pub seams: Seams,
    /// Where data is printed.
    pub output: Output,
}

/// Runs the command of these arguments (the program's name first) and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &args),
    };
    let mut context = Context { seams: Seams::real(), output: Output::new(cli.format) };
    let outcome = match cli.command {
        Command::Demo(command) => command.run(&mut context),
        Command::Dev(command) => command.run(&mut context),
        Command::Init(command) => command.run(&mut context),
        Command::Keys(command) => command.run(&mut context),
        Command::Directory(command) => command.run(&mut context),
        Command::Config(command) => command.run(&mut context),
        Command::Topic(command) => command.run(&mut context),
        Command::Node(command) => command.run(&mut context),
        Command::Send(command) => command.run(&mut context),
        Command::Status(command) => command.run(&mut context),
        Command::Get(command) => command.run(&mut context),
        Command::Watch(command) => command.run(&mut context),
        Command::Bench(command) => command.run(&mut context),
        Command::Inspect(command) => command.run(&mut context),
        Command::Completion(command) => command.run(&mut context),
        Command::Man(command) => command.run(&mut context),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) if error.is_closed_output() => Exit::Done.into(),
        Err(error) => {
            error.print(cli.format);
            error.exit().into()
        }
    }
}

/// Wrong arguments, or a request for help or version. JSON was asked for when the arguments say so, readable or not.
fn usage(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let asked = |pair: &[OsString]| {
        pair.first().is_some_and(|arg| arg == "--format") && pair.last().is_some_and(|arg| arg == "json")
    };
    let json = args.iter().any(|arg| arg == "--format=json")
        || args.windows(2).any(asked)
        || std::env::var_os(FORMAT_VARIABLE).is_some_and(|format| format == "json");
    let format = wants_format(error);
    if error.use_stderr() && json {
        let text = error.to_string();
        let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        let message = message.split("\n\n").next().unwrap_or(message);
        CliError::usage(message).print(Format::Json);
    } else if error.print().is_err() {
        return Exit::Failed.into();
    } else if format {
        eprintln!("\n  tip: '--format json' prints one JSON object a line");
    }
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
}

/// Whether somebody looks for `--format` under the name that other tools give it.
fn wants_format(error: &clap::Error) -> bool {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let named = error.get(ContextKind::InvalidArg);
    error.kind() == ErrorKind::UnknownArgument
        && matches!(named, Some(ContextValue::String(name)) if name == "--output" || name == "--json")
}

/// The whole command line, for completion, manual pages and the tests of help texts.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

//! `sealcast completion`: completion scripts for shells.

use super::{CliError, Context, Exit};

/// Prints the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(sealcast completion bash)
  sealcast completion zsh > _sealcast")]
pub(super) struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "sealcast", &mut script);
        context.output.raw(&script)?;
        Ok(Exit::Done)
    }
}

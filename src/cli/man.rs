//! `sealcast man`: manual pages.

use std::path::{Path, PathBuf};

use super::{CliError, Context, Exit};

/// Prints the manual page, or writes the pages of all commands into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sealcast man | man -l -\n  sealcast man -o ~/.local/share/man/man1")]
pub(super) struct Man {
    /// Folder for one page per command; without it, the main page goes to stdout
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let mut command = super::command();
        command.build();
        match self.output {
            None => context.output.raw(&page(command)?)?,
            Some(folder) => {
                std::fs::create_dir_all(&folder).map_err(|error| CliError::file(&folder, &error))?;
                write(command, "sealcast", &folder)?;
            }
        }
        Ok(Exit::Done)
    }
}

fn page(command: clap::Command) -> Result<Vec<u8>, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

/// The pages of a command and of all below it, named as git names its own: `sealcast-keys-generate.1`.
fn write(command: clap::Command, name: &str, folder: &Path) -> Result<(), CliError> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        write(inner.clone(), &format!("{name}-{}", inner.get_name()), folder)?;
    }
    let path = folder.join(format!("{name}.1"));
    // Pages are named by this string for the life of the process, which ends after writing them.
    let page = page(command.name(name.to_owned().leak() as &'static str))?;
    std::fs::write(&path, page).map_err(|error| CliError::file(&path, &error))
}

//! `config check`: everything that is wrong with the configuration, at once.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::process::ExitCode;

use clap::Subcommand;

use super::Settings;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration and say everything that is wrong with it; exits with 78 if anything is
    Check(Settings),
}

pub(super) fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let ConfigCommand::Check(settings) = command;
    let config = settings.load()?;
    println!(
        "the configuration is good: listens on {}, data in {}",
        config.server.listen,
        config.server.data.display()
    );
    Ok(ExitCode::SUCCESS)
}

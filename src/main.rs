//! The `sealcast` command.

fn main() -> std::process::ExitCode {
    sealcast::cli::run(std::env::args_os())
}

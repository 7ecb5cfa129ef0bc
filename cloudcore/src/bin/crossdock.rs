//! `crossdock`: parse, run, exit code. Everything else is in `cloudcore::cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use cloudcore::cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => ExitCode::from(runtime.block_on(cli::main(cli))),
        Err(error) => {
            eprintln!("error: could not start: {error}");
            ExitCode::FAILURE
        }
    }
}

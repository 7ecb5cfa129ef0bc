//! Crossdock's edge agent: the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The hidden helpers come first: they must stay small and must not start a runtime.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|a| a.to_str()) {
        Some("shim") => return edgecore::driver::shim::main(args),
        Some("exec") => return edgecore::driver::exec::main(args),
        _ => {}
    }
    ExitCode::FAILURE
}

//! The `colink` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    colink::cli::main()
}

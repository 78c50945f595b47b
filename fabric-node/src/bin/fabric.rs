//! `fabric`, the operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    fabric_node::cli::main()
}

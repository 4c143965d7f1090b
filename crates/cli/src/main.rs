//! Binary `millpond`. Everything is in the library, where the tests reach it too.

fn main() -> std::process::ExitCode {
    millpond_cli::main()
}

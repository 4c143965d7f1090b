//! Binary `millpond`. Everything is in the library, where the tests reach it too.

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` tells).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    millpond_cli::main()
}

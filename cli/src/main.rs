//! Binary `millpond`. Everything is in the library, where the tests reach it too.

/// The C library's allocator takes a fifth of a busy worker's time (`millpond bench` shows it).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    millpond_cli::main()
}

//! Says so when a release is built without its allocator.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_release = std::env::var_os("PROFILE").is_some_and(|profile| profile == "release");
    if is_release && std::env::var_os("CARGO_FEATURE_JEMALLOC").is_none() {
        println!("cargo::warning=without `--features jemalloc` a busy worker of a release build is a fifth slower");
    }
}

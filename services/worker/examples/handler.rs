//! A worker with handlers of its own: one that waits, one that computes, and one that runs in a process of its own.
//!
//!     millpond up -- cargo run --example handler
//!     millpond submit resize '{"file": "cat.png", "width": 640}' --wait

use std::process::ExitCode;

use millpond_worker::{State, TaskContext, TaskError, Worker};
use serde::Deserialize;

#[derive(Deserialize)]
struct Resize {
    file: String,
    width: u32,
}

struct Folder(String);

async fn resize(args: Resize, folder: State<Folder>, task: TaskContext) -> Result<String, TaskError> {
    if args.width == 0 {
        // Trying again cannot help.
        return Err(TaskError::dead("an image has a width").kind("bad_width"));
    }
    task.progress(0.5, "half of it");
    Ok(format!("{}/{}-{}, in attempt {}", folder.0, args.width, args.file, task.attempt()))
}

fn primes((from, to): (u64, u64), task: TaskContext) -> Result<usize, TaskError> {
    let is_prime = |n: &u64| *n > 1 && (2..*n).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    Ok((from..=to).take_while(|_| !task.is_cancelled()).filter(is_prime).count())
}

fn main() -> ExitCode {
    Worker::builder()
        .state(Folder("images".to_owned()))
        .handle("resize", resize)
        .handle_blocking("primes", primes)
        .isolate("primes")
        .main()
}

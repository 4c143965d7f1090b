//! Submits a task and waits for its result, as a type.
//!
//!     millpond up -- cargo run --example wait

#![expect(clippy::print_stdout, reason = "an example shows what comes")]

use std::time::Duration;

use millpond::client::WaitError;
use millpond::{Client, NewTask};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::from_env().await?;
    let task = NewTask::json("default", "square", &12)?.awaited();
    let mut task = client.submit(&task, Duration::from_secs(5)).await?;
    match task.wait::<u64>(Duration::from_secs(30)).await {
        Ok(squared) => println!("12 * 12 = {squared}"),
        Err(WaitError::NotDone { .. }) => println!("not yet: {}", task.status().await?.sentence),
        Err(ended) => println!("{ended}"),
    }
    client.close().await;
    Ok(())
}

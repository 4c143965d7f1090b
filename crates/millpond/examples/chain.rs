//! A chain: each step gets the result of the one before, and the wait is for the last.
//!
//!     millpond up -- cargo run --example chain

#![expect(clippy::print_stdout, reason = "an example shows what comes")]

use std::time::Duration;

use millpond::{Client, NewTask};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::from_env().await?;
    let task = NewTask::json("default", "square", &3)?.continuation("square".parse()?).continuation("echo".parse()?);
    let mut chain = client.submit(&task.awaited(), Duration::from_secs(5)).await?;
    let last: u64 = chain.wait(Duration::from_secs(30)).await?;
    println!("3, squared twice, is {last}");
    client.close().await;
    Ok(())
}

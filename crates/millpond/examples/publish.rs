//! Publishes tasks and does not wait for them: one with much said about it, and then many.
//!
//!     millpond up -- cargo run --example publish

#![expect(clippy::print_stdout, reason = "an example shows what comes")]

use std::time::Duration;

use futures_util::{StreamExt, stream};
use millpond::{Client, NewTask};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::from_env().await?;
    let task = NewTask::json("default", "square", &12)?
        .id("square/12")
        .delay(Duration::from_secs(1))
        .timeout(Duration::from_secs(30))
        .attempts(5);
    let stored = client.submit(&task, Duration::from_secs(5)).await?;
    println!("{} is stored{}", stored.id, if stored.duplicate { ", and was before" } else { "" });

    let tasks = (1..=1000).map(|n| NewTask::json("default", "square", &n)).collect::<Result<Vec<_>, _>>()?;
    let mut answers = std::pin::pin!(client.submit_all(stream::iter(tasks), Duration::from_secs(30)));
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        answer?;
        count += 1;
    }
    println!("{count} more are stored");
    client.close().await;
    Ok(())
}

//! Runs a kind over many values, in order, as a job that another program can look at by its name.
//!
//!     millpond up -- cargo run --example map

#![expect(clippy::print_stdout, reason = "an example shows what comes")]

use std::time::Duration;

use millpond::Client;
use millpond::client::{IfJobExists, MapSpec, json_values};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::from_env().await?;
    let spec = MapSpec {
        job: Some("squares".to_owned()),
        if_exists: IfJobExists::StartAnew,
        ordered: true,
        ..MapSpec::new("default", "square")
    };
    let mut run = client.map(spec, json_values(1..=100)).await?;
    let mut sum = 0;
    while let Some(item) = run.next().await {
        sum += item?.end?.json::<u64>()?;
    }
    println!("the squares of 1 to 100 are {sum} together");

    let ended = client.job("squares").wait(Duration::from_secs(30)).await?;
    println!("{} of {:?} are done", ended.done, ended.total);
    client.close().await;
    Ok(())
}

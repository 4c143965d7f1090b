//! `task restore`: publishes again what `setup --tasks-anew` has written down.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use millpond::bus::operate::restore::SavedTask;
use millpond::bus::publish::RetryDeadline;
use millpond::client::Client;
use millpond::config::{ConnectArgs, SigningArgs};

use crate::cluster_env::ClusterEnv;
use crate::exit::usage;

/// `task restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The file that `setup --tasks-anew` has written.
    file: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Publishes each line, but for tasks that have ended. When it is cut short it can be run again.
pub(super) async fn restore(args: RestoreArgs, env: &ClusterEnv) -> anyhow::Result<()> {
    let open = |e: std::io::Error| usage(format!("{}: {e}", args.file.display()));
    let lines = BufReader::new(File::open(&args.file).map_err(open)?).lines();
    let client = env.publisher("restore", args.connect.check()?, &args.signing).await?;
    let (mut published, mut ended) = (0_u64, 0_u64);
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(open)?;
        let saved: SavedTask = serde_json::from_str(&line)
            .map_err(|e| usage(format!("line {number} of {} is no saved task: {e}", args.file.display())))?;
        let is_published = publish(&client, &saved).await.with_context(|| format!("line {number}"))?;
        *if is_published { &mut published } else { &mut ended } += 1;
    }
    note!("{published} tasks are published again, {ended} have ended already");
    client.close().await;
    Ok(())
}

async fn publish(client: &Client, saved: &SavedTask) -> anyhow::Result<bool> {
    Ok(client.publish_again(saved, RetryDeadline::Unlimited).await?)
}

//! `producer run`, `collector run` and `worker run`: the services as their own programs run them, with settings that are
//! not given taken from the state folder, so that a worker joins the cluster of `up` without flags.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use millpond::config::LogArgs;
use millpond_service::program::Service;

use super::interrupt;
use crate::cluster_env::{COLLECTOR_NATS_URL, ClusterEnv, PRODUCER_NATS_URL, TOKEN, VIEWER_TOKEN, WORKER_NATS_URL};

/// Settings that can be completed from the state folder.
pub(crate) trait FromStateFolder: Service {
    /// Takes the settings that were not given from the state folder.
    fn complete(self, env: &ClusterEnv) -> Self;
}

/// What to do with a service.
#[derive(Subcommand, Debug)]
pub enum ServiceCommand<C: Args> {
    /// Run it in the foreground.
    Run(RunArgs<C>),
}

/// A service's settings.
#[derive(Args, Debug)]
pub struct RunArgs<C: Args> {
    #[command(flatten)]
    config: C,
    /// Drain when standard input ends, because the process that started this one is gone.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl<C: FromStateFolder> RunArgs<C> {
    /// The name and the instance under which the process logs, and how.
    pub(crate) fn telemetry(&self) -> (&'static str, Option<String>, LogArgs) {
        (C::NAME, self.config.instance(), self.config.args().log.clone())
    }

    /// Runs the service until a signal ends it.
    ///
    /// # Errors
    /// When a setting does not fit or NATS cannot be reached.
    pub(crate) async fn run(self, env: &ClusterEnv) -> anyhow::Result<ExitCode> {
        let shutdown = interrupt::on_signal()?;
        if self.exit_with_parent {
            millpond::shutdown::on_stdin_end(&shutdown);
        }
        self.config.complete(env).run(shutdown).await?;
        Ok(ExitCode::SUCCESS)
    }
}

impl FromStateFolder for millpond_producer::Config {
    fn complete(mut self, env: &ClusterEnv) -> Self {
        self.nats_url = self.nats_url.or_else(|| env.get(PRODUCER_NATS_URL));
        self.token.token = env.secret(self.token.token, self.token.token_file.as_ref(), TOKEN);
        self.signing = env.signing(&self.signing);
        self
    }
}

impl FromStateFolder for millpond_collector::Config {
    fn complete(mut self, env: &ClusterEnv) -> Self {
        self.nats_url = self.nats_url.or_else(|| env.get(COLLECTOR_NATS_URL));
        self.token.token = env.secret(self.token.token, self.token.token_file.as_ref(), TOKEN);
        self.viewer_token = env.secret(self.viewer_token, self.viewer_token_file.as_ref(), VIEWER_TOKEN);
        self
    }
}

impl FromStateFolder for millpond_worker::Config {
    fn complete(mut self, env: &ClusterEnv) -> Self {
        self.nats_url = self.nats_url.or_else(|| env.get(WORKER_NATS_URL));
        self.signing = env.signing(&self.signing);
        self
    }
}

//! What the three services have in common: how one runs as a program, and where its HTTP is reached (`listen`), and
//! free ports for those that are started on one machine (`reserved_port`). //! Not here: what a service does.

pub mod listen;
pub mod reserved_port;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use millpond::config::LogArgs;
use tokio_util::sync::CancellationToken;

/// How long a thread that never ends, such as a handler's, may keep the process at its end.
const THREADS_END_WITHIN: Duration = Duration::from_millis(100);

/// Runs a service until a signal ends it: telemetry under the service's name, a runtime, then `service`.
///
/// # Errors
/// What `service` ends with, or why telemetry, the runtime or the signals cannot be set up.
pub fn run<F>(
    name: &'static str,
    instance: Option<&str>,
    log: &LogArgs,
    service: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let telemetry = millpond::telemetry::start(name, instance, log)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let shutdown = millpond::shutdown::on_signal().context("cannot listen for signals")?;
        service(shutdown).await
    });
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    telemetry.flush();
    result
}

/// The exit code of a service's program; an error is printed here, and nowhere else.
#[must_use]
pub fn exit_code(name: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

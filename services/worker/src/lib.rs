//! The worker: takes tasks, runs their handlers in slots, settles them. As a library it runs handlers of your own:
//! [`Worker::builder`]. This file puts a worker together, starts and ends it; `process.rs` shows what happens to one task.
//! Not here: storage, any API but the tasks themselves.

#![warn(missing_docs)]

/// The programs of docs/rust.md compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/rust.md")]
struct RustPage;

mod admit;
mod announced_kinds;
mod attempt;
mod builder;
mod call;
mod call_end;
mod call_server;
mod cancellations;
mod child_main;
pub mod config;
mod container_name;
mod context;
mod handlers;
mod outbox;
mod panics;
mod prepare;
mod process;
mod report;
mod run;
mod run_loop;
mod settle;
#[cfg(test)]
#[path = "../../../tests/storm.rs"]
mod storm;
mod supervisor;
pub mod testing;
mod trial;
mod typed;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use millpond::bus::consume::lease::Leases;
use millpond::bus::consume::name_claim::{NameClaim, NameError, NameHolder};
use millpond::bus::consume::pull::Puller;
use millpond::bus::topology::{ElectionWait, await_setup};
use millpond::bus::{Bus, Role};
use millpond::telemetry::Metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use builder::WorkerBuilder;
pub use call::{ARGUMENTS_DECODED_BYTES_MAX, Call, Reply, reply};
pub use child_main::child_main;
pub use config::{Config, Settings};
pub use trial::{Trial, TrialEnd, try_handler};
pub use typed::error::{HandlerError, TaskError};
pub use typed::extract::{FromTask, MissingState, State, States, TaskContext};
pub use typed::{AsyncHandler, BlockingHandler};

use call_server::CallServer;
use cancellations::Cancellations;
use context::WorkerContext;
use handlers::{Handler, Handlers, PipeHandler};
use report::heartbeat::Heartbeat;
use report::http;
use run_loop::{RunLoop, drain_requests};
use supervisor::{ChildProgram, ChildSpec, ChildUser, Children};

/// A worker with handlers, ready to run. [`Worker::builder`] makes one.
pub struct Worker {
    settings: Settings,
    handlers: Handlers,
    isolated: Vec<String>,
    env_pass: Vec<String>,
}

impl Worker {
    /// Begins a worker: its handlers first, then its settings.
    ///
    /// ```no_run
    /// use millpond_worker::{TaskContext, TaskError, Worker};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Resize {
    ///     file: String,
    ///     width: u32,
    /// }
    ///
    /// async fn resize(args: Resize, task: TaskContext) -> Result<String, TaskError> {
    ///     if args.width == 0 {
    ///         return Err(TaskError::dead("an image needs a width"));
    ///     }
    ///     Ok(format!("{} at {} in attempt {}", args.file, args.width, task.attempt()))
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Worker::builder().handle("resize", resize).main()
    /// }
    /// ```
    #[must_use]
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder::default()
    }

    /// Takes and runs tasks until `shutdown`, or until it was idle for as long as it was told; then drains.
    ///
    /// # Errors
    /// When a kind has no handler, NATS cannot be reached at the start, or setup has not run.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        panics::note_panics();
        child_main::check_child_main()?;
        if let Some(kind) = child_main::own_kind() {
            // This process is a child of a worker.
            let mut handlers = handlers::built_in(false);
            handlers.extend(self.handlers);
            return child_main::serve_lines(&kind, &handlers).await;
        }
        let Self { settings, mut handlers, isolated, env_pass } = self;
        let children = child_kinds(&settings, &mut handlers, isolated, &env_pass)?;
        if http::is_measured(settings.listen) {
            // Before anything counts.
            let _ = Metrics::start();
        }
        let connecting = Bus::connect(&settings.nats_url, Role::Worker, &settings.name, settings.access.clone());
        let Some(bus) = shutdown.run_until_cancelled(connecting).await.transpose()? else { return Ok(()) };
        let bus = bus.with_signer(settings.signer.clone());
        let set_up = shutdown.run_until_cancelled(await_setup(&bus, settings.access.timeout)).await;
        let Some(()) = set_up.transpose()? else { return Ok(()) };
        let starting = Started::start(&bus, &settings, handlers, children, &shutdown);
        let Some(started) = shutdown.run_until_cancelled(starting).await.transpose()? else { return Ok(()) };
        let Started { name, leases, puller, context, shutdown, calls, heartbeat, mut background } = started;
        background.spawn(heartbeat.clone().beat_for_ever());
        log_start(&settings, &context);
        let mut run_loop = RunLoop::new(&settings, &context, &leases);
        // A task of its own: on the thread that waits in `block_on`, each wake-up would cost a system call.
        let mut taking = JoinSet::new();
        taking.spawn(async move {
            let puller = run_loop.take_tasks(puller, &shutdown).await;
            (run_loop, puller)
        });
        let (run_loop, puller) = tokio::select! {
            taken = taking.join_next() => taken.context("the worker's loop was not started")??,
            // At once, without a drain: nothing can be stored or acknowledged any more, or the streams' version misreads it.
            failure = bus.failed() => {
                context.supervisor.close().await;
                return Err(failure.into());
            }
            // What this one held was lost with its pause.
            taken = name.lost() => {
                warn_of_name(&taken);
                context.supervisor.close().await;
                return Err(taken.into());
            }
        };
        context.draining.cancel();
        heartbeat.beat().await.ok();
        tokio::join!(run_loop.drain(puller), calls.drain(&context, settings.drain_time));
        context.supervisor.close().await;
        // A beat under way must not come after the end of the record.
        background.shutdown().await;
        heartbeat.leave().await;
        bus.close().await;
        context.failures.count_anew();
        tracing::info!("worker drained");
        Ok(())
    }
}

/// A worker whose record is written, before its first task.
struct Started {
    name: NameClaim,
    leases: Leases,
    puller: Puller,
    context: Arc<WorkerContext>,
    /// The shutdown of the program, or an operator's request to drain.
    shutdown: CancellationToken,
    calls: CallServer,
    heartbeat: Heartbeat,
    background: JoinSet<()>,
}

impl Started {
    /// Claims the name, opens what the worker reads and pulls from, and writes its record. A cluster that elects leaders meanwhile is
    /// waited for.
    async fn start(
        bus: &Bus,
        settings: &Settings,
        handlers: Handlers,
        children: Vec<Arc<Children>>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut elections = ElectionWait::new(settings.access.timeout);
        let nonce = millpond::random_token();
        let me = NameHolder { nonce: nonce.clone(), host: millpond::host(), pid: std::process::id(), again: false };
        let name = bus.claim_name(&settings.name, me).await.inspect_err(warn_of_name)?;
        let mut background = JoinSet::new();
        let leases = loop {
            match Leases::start(bus, &settings.name, &nonce, &mut background).await {
                Ok(leases) => break leases,
                Err(error) => elections.after(error).await?,
            }
        };
        let puller = loop {
            match Puller::start(bus, &leases, &settings.queues).await {
                Ok(puller) => break puller,
                Err(error) => elections.after(error).await?,
            }
        };
        let cancellations = loop {
            match Cancellations::load(bus, &mut background).await {
                Ok(cancellations) => break cancellations,
                Err(error) => elections.after(error).await?,
            }
        };
        let (context, refused) =
            WorkerContext::start(bus, settings, &nonce, handlers, children, cancellations, &mut background);
        background.spawn(settle::settle_refused(context.clone(), refused));
        let http = http::start(settings.listen, settings.http.clone(), bus, &context, &leases, &mut background).await?;
        let shutdown =
            drain_requests::drained_on_request(bus, (&settings.name, &nonce), shutdown, &mut background).await?;
        // Before its record: whoever sees that may call.
        let calls = CallServer::start(bus, settings, &context).await?;
        let heartbeat = Heartbeat::new(bus, settings, &nonce, &context, &leases, http);
        while let Err(error) = heartbeat.beat().await {
            elections.after(error).await?;
        }
        Ok(Self { name, leases, puller, context, shutdown, calls, heartbeat, background })
    }
}

/// Makes the kinds that run in children: those of `handlers.toml`, and those that the program itself isolates.
fn child_kinds(
    settings: &Settings,
    handlers: &mut Handlers,
    isolated: Vec<String>,
    env_pass: &[String],
) -> anyhow::Result<Vec<Arc<Children>>> {
    let mut specs: BTreeMap<String, ChildSpec> = match &settings.handlers {
        Some(path) => supervisor::read_handlers_toml(path)?,
        None => BTreeMap::new(),
    };
    for kind in isolated {
        let spec = specs.entry(kind.clone()).or_insert_with(|| ChildSpec::own(&kind));
        if let ChildProgram::Own { built_in } = &mut spec.program {
            *built_in = false;
        }
        for pattern in env_pass {
            supervisor::check_env_pattern(pattern).map_err(anyhow::Error::msg).context("env_pass")?;
        }
        spec.table.env_pass.extend_from_slice(env_pass);
    }
    if !settings.xargs.is_empty() {
        let spec = ChildSpec::xargs(&settings.xargs, &settings.xargs_env_pass);
        specs.insert(spec.kind.clone(), spec);
    }
    let kinds = specs.into_values().map(|spec| {
        if let Some(Err(refused)) = spec.user.as_ref().map(ChildUser::check_allowed) {
            anyhow::bail!("handler [{}]: {refused}", spec.kind);
        }
        // Whoever isolates a built-in kind has named it.
        if matches!(spec.program, ChildProgram::Own { .. })
            && !handlers.contains_key(&spec.kind)
            && let Some(handler) = handlers::built_in(settings.fetch_local).remove(&spec.kind)
        {
            handlers.insert(spec.kind.clone(), handler);
        }
        if matches!(spec.program, ChildProgram::Own { .. }) && !handlers.contains_key(&spec.kind) {
            let known: Vec<&str> = handlers.keys().map(String::as_str).collect();
            anyhow::bail!(
                "handler [{}]: `isolate` is for kinds that this worker knows: {}",
                spec.kind,
                known.join(", ")
            );
        }
        if matches!((&spec.program, handlers.get(&spec.kind)), (ChildProgram::Own { .. }, Some(Handler::Pipe(_)))) {
            anyhow::bail!("handler [{}]: a Rust handler that converses cannot be isolated", spec.kind);
        }
        let children = Children::new(spec, &settings.name);
        let converses = children.spec.table.pipe;
        let handler = if converses {
            Handler::Pipe(PipeHandler::Child(children.clone()))
        } else {
            Handler::Child(children.clone())
        };
        handlers.insert(children.spec.kind.clone(), handler);
        Ok(children)
    });
    kinds.collect()
}

/// Two workers of one name are worth more than the line with which this one ends: the other one may be the wrong one.
fn warn_of_name(taken: &NameError) {
    tracing::warn!("{taken}");
}

fn log_start(settings: &Settings, context: &WorkerContext) {
    tracing::info!(
        worker = %settings.name,
        nats = %millpond::bus::without_password(&settings.nats_url),
        queues = ?settings.queues,
        slots = settings.slots,
        io_slots = settings.io_slots,
        handlers = settings.handlers.as_ref().map(|path| path.display().to_string()),
        drain_time = ?settings.drain_time,
        task_timeout = ?settings.task_timeout,
        idle_exit = ?settings.idle_exit,
        retry = ?settings.retry,
        signing_keys = settings.signer.as_ref().map(|signer| signer.key_ids().join(",")),
        kinds = ?context.handlers.keys().collect::<Vec<_>>(),
        "worker ready"
    );
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[test]
    fn isolated_handlers_get_the_variables_that_their_program_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handlers.toml");
        std::fs::write(&path, "[square]\nisolate = true\nenv_pass = [\"OWN_*\"]\n").unwrap();
        let typed = ["worker", "--nats-url", "nats://worker:x@127.0.0.1:1", "--built-in", "square", "--handlers"];
        let typed = typed.into_iter().map(Into::into).chain([path.into_os_string()]);
        let matches = Config::augment_args(clap::Command::new("worker")).get_matches_from(typed);
        let settings = Config::from_arg_matches(&matches).unwrap().check().unwrap();
        let worker = |builder: WorkerBuilder| builder.build(settings.clone()).unwrap();
        let children = |worker: Worker| {
            let Worker { settings, mut handlers, isolated, env_pass } = worker;
            child_kinds(&settings, &mut handlers, isolated, &env_pass)
        };
        let isolated = worker(Worker::builder().isolate("square").env_pass(["APP_*", "MODE"]));
        let wrong = worker(Worker::builder().isolate("square").env_pass(["A*B"]));
        let kinds = children(isolated).unwrap();
        assert_eq!(kinds[0].spec.table.env_pass, ["OWN_*", "APP_*", "MODE"]);
        assert!(format!("{:#}", children(wrong).err().unwrap()).contains("env_pass: \"A*B\""));
    }
}

//! `submit`: publish one task; with `--wait`, its result.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use millpond::bus::publish::queue_limits::QueueFill;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::chain::ChainStep;
use millpond::client::{Client, NewTask, NoResult, SubmitError, Submitted, TaskEnd};
use millpond::config::{ConnectArgs, SigningArgs, duration};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::EXIT_TASK_FAILED;
use crate::api::{Api, text};
use crate::output::json_line;
use crate::state::{Env, SIGNING_KEY, publisher};

/// How long a person waits for the server's ack.
const ACK_WITHIN: Duration = Duration::from_secs(30);
/// When a hint is given that nobody takes the task.
const HINT_AFTER: Duration = Duration::from_secs(3);

/// What to publish.
#[derive(clap::Args, Debug)]
pub struct SubmitArgs {
    /// Which handler runs it.
    kind: String,
    /// Its arguments, one JSON value; `-` or nothing reads standard input.
    #[arg(default_value = "-", allow_hyphen_values = true)]
    args: String,
    /// A file whose bytes are its arguments, of any size and kind; `-` is standard input. What is large or not JSON goes
    /// to the store of payloads, and the handler gets it from there.
    #[arg(long, conflicts_with = "args")]
    file: Option<PathBuf>,
    /// Who runs it.
    #[arg(long, default_value = "default")]
    queue: String,
    /// Wait for its end and print its result.
    #[arg(long)]
    wait: bool,
    /// When its queue is bounded and full, wait for room this long and then give up with exit code 75; 0s: do not wait.
    /// When absent, it waits until there is room.
    #[arg(long, value_parser = duration)]
    wait_room: Option<Duration>,
    /// Its id; a task with the same id in the same queue is kept once.
    #[arg(long)]
    id: Option<String>,
    /// Timeout of one attempt, such as 30s.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Attempts before it is a dead letter.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts_max: Option<u32>,
    /// It must not start earlier than this from now, such as 10s; it waits at the server.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// The same, as a time: RFC 3339, such as 2030-01-31T09:00:00Z or 2030-01-31T09:00:00+01:00.
    #[arg(long, value_parser = time, conflicts_with = "delay")]
    at: Option<jiff::Timestamp>,
    /// It must not start later than this from now, such as 5m.
    #[arg(long, value_parser = duration)]
    expires: Option<Duration>,
    /// Tell its end on this subject too, reply.<x>: `nats sub reply.<x>` hears it.
    #[arg(long, value_parser = reply_subject)]
    reply_to: Option<String>,
    /// When it is done, run this kind with its result, KIND or QUEUE.KIND; again for one more step. --wait then waits for
    /// the last step, or for the one that ended the chain.
    #[arg(long, value_name = "KIND")]
    then: Vec<ChainStep>,
    /// One task of this key at a time: refused, with exit code 1, while another of this kind and queue waits or runs.
    #[arg(long, value_name = "KEY")]
    unique: Option<String>,
    /// Print a JSON object with the id and how it ended.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn time(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|e| format!("{e}; write a time such as 2030-01-31T09:00:00Z"))
}

fn reply_subject(text: &str) -> Result<String, String> {
    let fits = millpond::task::is_reply_subject(text);
    fits.then(|| text.to_owned()).ok_or_else(|| "must be reply.<x> without wildcards, such as reply.job1".to_owned())
}

/// Publishes the task.
///
/// # Errors
/// When it cannot be published.
pub async fn run(args: SubmitArgs, env: &Env) -> anyhow::Result<ExitCode> {
    let payload = match (&args.file, args.args.as_str()) {
        (Some(_), _) => String::new(),
        (None, "-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("cannot read the arguments")?;
            text.trim().to_owned()
        }
        (None, text) => text.to_owned(),
    };
    if args.file.is_none() {
        check_json(&payload)?;
    }
    let after = |time: Duration| {
        let at = jiff::Timestamp::now().checked_add(time);
        at.with_context(|| format!("{} from now is too far away", humantime::format_duration(time)))
    };
    let expires = args.expires.map(after).transpose()?;
    let at = args.delay.map(after).transpose()?.or(args.at);
    if let (Some(at), Some(expires)) = (at, expires)
        && expires <= at
    {
        bail!("it would expire before its time has come: make --expires longer than --delay");
    }
    let mut task = NewTask {
        queue: args.queue,
        kind: args.kind,
        payload: Bytes::from(payload),
        id: Some(args.id.unwrap_or_else(millpond::random_token)),
        timeout: args.timeout,
        attempts_max: args.attempts_max,
        expires: expires.map(|at| at.to_string()),
        at_ms: at.map(jiff::Timestamp::as_millisecond),
        reply_to: args.reply_to,
        then: args.then,
        unique: args.unique,
        ..Default::default()
    };
    let client = publisher(env, "submit", args.connect.check()?, &args.signing).await?;
    if let Some(path) = &args.file {
        crate::payloads::attach(&mut task, path, &client, RetryDeadline::Unlimited).await?;
    }
    if !args.wait {
        let submitted = match store(&client, &task, args.wait_room).await {
            Err(refused @ SubmitError::UniqueKeyTaken { .. }) => return already_there(&refused, args.json),
            submitted => submitted?,
        };
        let Submitted { id, duplicate } = submitted;
        if args.json {
            json_line(&json!({ "id": id, "duplicate": duplicate }))?;
        } else {
            writeln!(std::io::stdout().lock(), "{id}")?;
        }
        client.close().await;
        return Ok(ExitCode::SUCCESS);
    }
    let waiter = client.waiter(&mut task).await?;
    let submitted = match store(&client, &task, args.wait_room).await {
        Err(refused @ SubmitError::UniqueKeyTaken { .. }) => return already_there(&refused, args.json),
        submitted => submitted?,
    };
    let mut waiting = std::pin::pin!(waiter.end(&submitted));
    let (id, end) = tokio::select! {
        ended = &mut waiting => ended,
        () = hint(env, &task.queue, &task.kind) => waiting.await,
    };
    client.close().await;
    print_end(&id, end, args.json)
}

/// Another task of its unique key waits or runs: nothing was published.
fn already_there(refused: &SubmitError, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        json_line(&json!({ "id": Value::Null, "already_there": true }))?;
    }
    eprintln!("millpond: {refused}");
    Ok(ExitCode::from(EXIT_TASK_FAILED))
}

/// Publishes it. For room in its queue it waits as long as it takes, or for `wait_room`.
async fn store(client: &Client, task: &NewTask, wait_room: Option<Duration>) -> Result<Submitted, SubmitError> {
    let deadline = RetryDeadline::Within(wait_room.unwrap_or(ACK_WITHIN));
    let mut storing = std::pin::pin!(async {
        loop {
            match client.submit(task, deadline).await {
                Err(SubmitError::Publish(PublishError::QueueFull { .. })) if wait_room.is_none() => {}
                ended => return ended,
            }
        }
    });
    tokio::select! {
        stored = &mut storing => stored,
        () = hint_full(client, &task.queue) => storing.await,
    }
}

/// Says once that a queue is full, when it is; then never ends.
pub async fn hint_full(client: &Client, queue: &str) {
    loop {
        tokio::time::sleep(HINT_AFTER).await;
        if let Ok(Some(QueueFill { waiting, max_waiting })) = client.fill(queue).await
            && waiting >= max_waiting
        {
            eprintln!(
                "millpond: queue {queue} is full: {waiting} tasks wait of at most {max_waiting}; waiting for room (`millpond queue ls` shows it)"
            );
            return std::future::pending().await;
        }
    }
}

/// Arguments must be JSON: says so, and what would be.
///
/// # Errors
/// The parser's words and a hint.
pub fn check_json(payload: &str) -> anyhow::Result<()> {
    if let Err(error) = serde_json::from_str::<&RawValue>(payload) {
        bail!("arguments {payload:?} are not JSON ({error}); a string needs quotes of its own: '\"text\"'");
    }
    Ok(())
}

fn print_end(id: &str, end: TaskEnd, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        json_line(&end_json(json!({ "id": id }), &end))?;
    }
    match end {
        Ok(value) => {
            if !json {
                writeln!(std::io::stdout().lock(), "{}", value.get())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(no_result) => {
            eprintln!("millpond: task {id} {}", describe(&no_result));
            Ok(ExitCode::from(EXIT_TASK_FAILED))
        }
    }
}

/// Adds how a task ended to what is known of it.
pub fn end_json(mut row: Value, end: &TaskEnd) -> Value {
    let (status, field, value) = match end {
        Ok(value) => ("done", "result", serde_json::from_str(value.get()).unwrap_or(Value::Null)),
        Err(NoResult::Dead(failure)) => ("dead", "failure", serde_json::to_value(failure).unwrap_or(Value::Null)),
        Err(NoResult::Cancelled) => ("cancelled", "failure", Value::Null),
        Err(NoResult::Lost(reason)) => ("done", "result_lost", json!(reason)),
    };
    if let Some(object) = row.as_object_mut() {
        object.insert("status".to_owned(), json!(status));
        object.insert(field.to_owned(), value);
    }
    row
}

/// Why there is no result, for a person.
pub fn describe(no_result: &NoResult) -> String {
    match no_result {
        NoResult::Dead(failure) => {
            format!("failed for good: {}: {} (`millpond dead show` has the evidence)", failure.kind, failure.message)
        }
        NoResult::Cancelled => "was cancelled".to_owned(),
        NoResult::Lost(reason) => format!("is done, but its result cannot be had: {reason}"),
    }
}

/// Says once, where the collector knows it, that nobody runs this kind; then never ends.
pub async fn hint(env: &Env, queue: &str, kind: &str) {
    tokio::time::sleep(HINT_AFTER).await;
    if let Some(message) = nobody(env, queue, kind).await {
        eprintln!("millpond: still waiting: {message}");
    }
    std::future::pending::<()>().await;
}

/// What is missing when no live worker runs a kind; none when one does, or the collector does not say.
pub async fn nobody(env: &Env, queue: &str, kind: &str) -> Option<String> {
    let workers = Api::new(env).ok()?.get("/api/v1/workers", &[]).await.ok()??;
    let rows = workers.get("rows")?.as_array()?;
    let has = |row: &Value, field: &str, wanted: &str| {
        row.get(field).and_then(Value::as_array).is_some_and(|list| list.iter().any(|v| v == wanted))
    };
    let serving: Vec<&Value> = rows.iter().filter(|r| text(r, "state") == "live" && has(r, "queues", queue)).collect();
    if serving.is_empty() {
        return Some(format!(
            "no live worker serves queue {queue}; start one with `millpond worker run --queues {queue}`"
        ));
    }
    if serving.iter().all(|r| r.get("signed_only") == Some(&Value::Bool(true))) && env.get(SIGNING_KEY).is_none() {
        let dead = "`millpond dead ls --reason unsigned` shows what they refused";
        return Some(format!(
            "the workers of queue {queue} run signed tasks only: set {SIGNING_KEY} as they do; {dead}"
        ));
    }
    if serving.iter().any(|r| has(r, "kinds", kind)) {
        return None;
    }
    let known = serving.first().and_then(|r| r.get("kinds")).map(ToString::to_string).unwrap_or_default();
    Some(format!("no live worker of queue {queue} knows kind {kind}; known: {known}"))
}

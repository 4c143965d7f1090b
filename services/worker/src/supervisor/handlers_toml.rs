//! `handlers.toml`: which command runs a kind, and within which limits. A table as the file has it ([`HandlerTable`]) is
//! checked and becomes a [`ChildSpec`]. docs/handlers.md explains each field to its users.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use millpond::config::{bytes, duration};
use millpond::retry::{RetryOverrides, parse_attempts_max, parse_jitter};
use millpond::wire::subject::check_token;
use serde::{Deserialize, Deserializer};

use super::child_environment::check_pattern;
use super::child_user::{ChildUser, UserName};
use super::once::xargs;
use super::stop_times::GRACE_DEFAULT;

/// Most children of one kind.
const SLOTS_MAX: usize = 1024;

/// How a child gets its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChildMode {
    /// A warm child gets a line of JSON for each task, and answers with a line.
    #[default]
    Stream,
    /// A process is started for each task: arguments on standard input, result on standard output.
    Once,
}

/// What the output of a process of one use is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResultForm {
    /// One JSON value.
    Json,
    /// A text.
    Text,
    /// Bytes of any kind.
    Bytes,
}

/// What runs in a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChildProgram {
    /// A program and its arguments.
    Command(Vec<String>),
    /// This program's own handler of the kind; `built_in`: a handler that every worker has.
    Own { built_in: bool },
    /// The command that the task names, if it is one of these.
    Xargs { allowed: Vec<String> },
}

/// One kind whose tasks run in children, checked.
#[derive(Debug, Clone)]
pub(crate) struct ChildSpec {
    pub(crate) kind: String,
    pub(crate) program: ChildProgram,
    /// The user that its processes run as; none: that of the worker.
    pub(crate) user: Option<ChildUser>,
    /// A person sits before its child: what is typed goes to the child, and what the child prints is shown as it comes.
    pub(crate) attached: bool,
    pub(crate) table: HandlerTable,
}

/// One table of `handlers.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HandlerTable {
    command: Option<Vec<String>>,
    isolate: bool,
    pub(crate) mode: ChildMode,
    /// Each process converses with one caller.
    pub(crate) pipe: bool,
    /// The number of children; without it the kind shares the worker's CPU slots, or its I/O slots.
    pub(crate) slots: Option<usize>,
    pub(crate) io: bool,
    /// When a task is asked to stop; without it a task is killed without a warning.
    #[serde(deserialize_with = "some_duration")]
    pub(crate) soft_timeout: Option<Duration>,
    /// When a task is killed; without it the worker's default counts.
    #[serde(deserialize_with = "some_duration")]
    pub(crate) timeout: Option<Duration>,
    /// The longest timeout that a task may bring; without it that is `timeout`.
    #[serde(deserialize_with = "some_duration")]
    pub(crate) timeout_max: Option<Duration>,
    /// Most resident memory of a child and all below it, in bytes.
    #[serde(deserialize_with = "some_bytes")]
    pub(crate) memory: Option<u64>,
    pub(crate) tasks_per_child: Option<u64>,
    /// How long a child may take to report that it is ready; without it no report is awaited.
    #[serde(deserialize_with = "some_duration")]
    pub(crate) start_within: Option<Duration>,
    #[serde(deserialize_with = "some_duration")]
    grace: Option<Duration>,
    attempts: Option<u32>,
    #[serde(deserialize_with = "some_duration")]
    retry_delay: Option<Duration>,
    #[serde(deserialize_with = "some_duration")]
    retry_delay_max: Option<Duration>,
    retry_jitter: Option<f64>,
    /// Words before the command.
    pub(crate) wrap: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Variables of the worker that a child gets beside those that every child gets.
    pub(crate) env_pass: Vec<String>,
    /// What the output of a process of one use is; without it what it looks like.
    pub(crate) result: Option<ResultForm>,
    pub(crate) directory: Option<PathBuf>,
    /// The user that its processes run as.
    user: Option<UserName>,
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn some_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    bytes(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

impl ChildSpec {
    /// A kind whose handler is in this program, with no limits of its own.
    pub(crate) fn own(kind: &str) -> Self {
        let program = ChildProgram::Own { built_in: false };
        Self::of(kind, program, None, HandlerTable::default())
    }

    /// The kind that runs the commands that its tasks name.
    pub(crate) fn xargs(allowed: &[String], env_pass: &[String]) -> Self {
        let program = ChildProgram::Xargs { allowed: allowed.to_vec() };
        let table = HandlerTable { mode: ChildMode::Once, env_pass: env_pass.to_vec(), ..HandlerTable::default() };
        Self::of(xargs::KIND, program, None, table)
    }

    fn of(kind: &str, program: ChildProgram, user: Option<ChildUser>, table: HandlerTable) -> Self {
        Self { kind: kind.to_owned(), program, user, attached: false, table }
    }
}

impl ChildSpec {
    /// What may be the reason when a child was given a task and writes nothing.
    pub(crate) fn silence_hint(&self) -> String {
        let is_python = match &self.program {
            ChildProgram::Command(words) => words.iter().any(|word| word.contains("python") || word.ends_with(".py")),
            _ => false,
        };
        let flush = if is_python { " (Python: print(…, flush=True))" } else { "" };
        format!("it was given the task and has written nothing since: does it flush each answer{flush}?")
    }
}

impl HandlerTable {
    /// How long a child may take after each step of being stopped.
    pub(crate) fn grace(&self) -> Duration {
        self.grace.unwrap_or(GRACE_DEFAULT)
    }

    /// What the tasks of the kind have instead of the worker's retry policy.
    pub(crate) fn retry(&self) -> RetryOverrides {
        RetryOverrides {
            attempts_max: self.attempts,
            delay: self.retry_delay,
            delay_max: self.retry_delay_max,
            jitter: self.retry_jitter,
        }
    }

    /// Checks the table; relative folders are below `folder`.
    fn check(mut self, kind: &str, folder: &Path) -> anyhow::Result<ChildSpec> {
        check_token("kind", kind)?;
        let program = self.program()?;
        if matches!(program, ChildProgram::Own { .. }) && self.mode == ChildMode::Once {
            bail!("`isolate` works with `mode = \"stream\"` only");
        }
        if self.pipe && self.mode != ChildMode::Once {
            bail!("`pipe = true` needs `mode = \"once\"`: a process for each conversation");
        }
        if self.result.is_some() && (self.mode != ChildMode::Once || self.pipe) {
            bail!("`result` says what the output of a process is: it needs `mode = \"once\"`");
        }
        for pattern in &self.env_pass {
            check_pattern(pattern).map_err(anyhow::Error::msg).context("`env_pass`")?;
        }
        if self.slots.is_some_and(|slots| !(1..=SLOTS_MAX).contains(&slots)) {
            bail!("`slots` must be a number from 1 to {SLOTS_MAX}");
        }
        if self.slots.is_some() && self.io {
            bail!("`slots` gives the kind children of its own, `io = true` the worker's I/O slots: choose one");
        }
        if self.tasks_per_child == Some(0) {
            bail!("`tasks_per_child` must be at least 1; leave it out to never recycle");
        }
        if let (Some(soft), Some(hard)) = (self.soft_timeout, self.timeout)
            && soft >= hard
        {
            bail!("`soft_timeout` must be shorter than `timeout`: a task is first asked to stop, then killed");
        }
        if let (Some(usual), Some(max)) = (self.timeout, self.timeout_max)
            && max < usual
        {
            bail!("`timeout_max` must not be shorter than `timeout`: it is the longest that a task may ask for");
        }
        if let Some(attempts) = self.attempts {
            parse_attempts_max(&attempts.to_string()).context("`attempts`")?;
        }
        if let Some(jitter) = self.retry_jitter {
            parse_jitter(&jitter.to_string()).context("`retry_jitter`")?;
        }
        let directory = self.directory.map_or_else(|| folder.to_owned(), |d| folder.join(d));
        if !directory.is_dir() {
            bail!("`directory` {} is not a folder", directory.display());
        }
        self.directory = Some(directory);
        let user = self.user.as_ref().map(ChildUser::find).transpose()?;
        Ok(ChildSpec::of(kind, program, user, self))
    }

    fn program(&mut self) -> anyhow::Result<ChildProgram> {
        match self.command.take() {
            Some(_) if self.isolate => bail!("`isolate` is for the worker's own kinds; a command is isolated anyway"),
            Some(command) if command.is_empty() => {
                bail!("`command` names no program, such as [\"python3\", \"resize.py\"]")
            }
            Some(command) => Ok(ChildProgram::Command(command)),
            None if self.isolate => Ok(ChildProgram::Own { built_in: true }),
            None => bail!(
                "it needs `command = [\"program\", \"argument\"]`, or `isolate = true` for a kind of the worker's own"
            ),
        }
    }
}

/// Reads `handlers.toml`. Commands run in its folder unless they name another.
///
/// # Errors
/// The kind and the field that do not fit, and what would.
pub(crate) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, ChildSpec>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read handlers from {}", path.display()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().with_context(|| format!("cannot find the folder of {}", path.display()))?;
    parse(&text, &folder).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str, folder: &Path) -> anyhow::Result<BTreeMap<String, ChildSpec>> {
    let tables: BTreeMap<String, HandlerTable> = toml::from_str(text)?;
    let specs = tables.into_iter().map(|(kind, table)| {
        let spec = table.check(&kind, folder).with_context(|| format!("handler [{kind}]"))?;
        Ok((kind, spec))
    });
    specs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<BTreeMap<String, ChildSpec>> {
        parse(text, Path::new("/"))
    }

    #[test]
    fn a_whole_handler_reads_back() {
        let text = r#"
            [resize]
            command = ["python3", "resize.py"]
            slots = 4
            soft_timeout = "50s"
            timeout = "1m"
            memory = "512MiB"
            tasks_per_child = 100
            attempts = 5
            retry_delay = "2s"
            wrap = ["nice"]
            env = { MODE = "fast" }
            directory = "tmp"

            [spin]
            isolate = true"#;
        let specs = read(text).unwrap();
        let (resize, spin) = (&specs["resize"], &specs["spin"]);
        assert_eq!(resize.program, ChildProgram::Command(vec!["python3".into(), "resize.py".into()]));
        let table = &resize.table;
        assert_eq!((table.slots, table.memory, table.tasks_per_child), (Some(4), Some(512 << 20), Some(100)));
        assert_eq!((table.soft_timeout, table.timeout), (Some(Duration::from_secs(50)), Some(Duration::from_secs(60))));
        let delay = Some(Duration::from_secs(2));
        assert_eq!(table.retry(), RetryOverrides { attempts_max: Some(5), delay, ..RetryOverrides::default() });
        assert_eq!(table.directory.as_deref(), Some(Path::new("/tmp")));
        assert_eq!(spin.program, ChildProgram::Own { built_in: true });
        let table = &spin.table;
        assert_eq!((table.slots, table.mode, table.retry()), (None, ChildMode::Stream, RetryOverrides::default()));
    }

    fn check(text: &str, expected: &str) {
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn a_field_that_does_not_fit_is_an_error() {
        check("[a]\n", "it needs `command");
        check("[a]\ncommand = []", "names no program");
        check("[a]\ncommand = [\"x\"]\nslots = 0", "from 1 to");
        check("[a]\ncommand = [\"x\"]\nattempts = 0", "`attempts`: \"0\" must be");
        check("[a]\ncommand = [\"x\"]\nretry_jitter = 1.5", "`retry_jitter`: \"1.5\" must be");
        check("[a]\ncommand = [\"x\"]\nmemory = \"5 apples\"", "size");
        check("[a]\ncommand = [\"x\"]\ntimeout = \"1s\"\nsoft_timeout = \"2s\"", "shorter");
        check("[a]\ncommand = [\"x\"]\ntimeout = \"2s\"\ntimeout_max = \"1s\"", "`timeout_max` must not");
        check("[a]\ncommand = [\"x\"]\ntimeuot = \"1s\"", "timeuot");
        check("[\"a b\"]\ncommand = [\"x\"]", "kind");
        check("[a]\nisolate = true\nmode = \"once\"", "stream");
        check("[a]\ncommand = [\"x\"]\npipe = true", "once");
        check("[a]\ncommand = [\"x\"]\nresult = \"text\"", "once");
        check("[a]\ncommand = [\"x\"]\nmode = \"once\"\nresult = \"png\"", "unknown variant");
        check("[a]\ncommand = [\"x\"]\nenv_pass = [\"A*B\"]", "`env_pass`: \"A*B\" is not");
        check("[a]\ncommand = \"x\"", "sequence");
        check("[a]\ncommand = [\"x\"]\nuser = \"no-such-user\"", "no user no-such-user");
    }
}

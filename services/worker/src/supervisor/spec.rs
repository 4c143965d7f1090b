//! `handlers.toml`: which command runs a kind, and within which limits. What is typed ([`Typed`]) becomes what the
//! supervisor uses ([`Spec`]). docs/handlers.md explains each field to its users.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use millpond::config::{bytes, duration};
use millpond::limits::CHILD_GRACE;
use millpond::retry::{RetryOverrides, parse_attempts_max, parse_jitter};
use millpond::wire::subject::check_token;
use serde::{Deserialize, Deserializer};

/// Most children of one kind.
const SLOTS_MAX: usize = 1024;

/// How a child gets its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// A warm child: a line of JSON for each task, a line for each result.
    #[default]
    Stream,
    /// A process for each task: arguments on standard input, result on standard output.
    Once,
}

/// What runs in a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// A program and its arguments.
    Command(Vec<String>),
    /// This program's own handler of the kind; `built_in`: one of those that every worker knows.
    Own { built_in: bool },
    /// What the task names, if it is one of these.
    Xargs { allowed: Vec<String> },
}

/// One kind whose tasks run in children, checked.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) kind: String,
    pub(crate) program: Program,
    pub(crate) mode: Mode,
    /// Each process converses with one caller.
    pub(crate) pipe: bool,
    /// Children of its own; none: it takes the worker's CPU slots, or its I/O slots.
    pub(crate) slots: Option<usize>,
    pub(crate) io: bool,
    /// When a task is asked to stop, and when it is killed; none for the second: the worker's default.
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    /// Resident memory of a child and all below it, in bytes.
    pub(crate) memory_max: Option<u64>,
    pub(crate) tasks_per_child: Option<u64>,
    /// How long a child may take to say that it is ready; none: it does not say so.
    pub(crate) start_within: Option<Duration>,
    /// How long it may take after each way of asking it to stop.
    pub(crate) grace: Duration,
    /// What its tasks have instead of the worker's retry policy.
    pub(crate) retry: RetryOverrides,
    pub(crate) wrap: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) directory: Option<PathBuf>,
}

impl Spec {
    /// One that runs this program's own handler with no limits of its own.
    pub(crate) fn own(kind: &str) -> Self {
        Self::unlimited(kind, Program::Own { built_in: false }, Mode::Stream)
    }

    /// One that runs the commands that its tasks name.
    pub(crate) fn xargs(allowed: &[String]) -> Self {
        Self::unlimited(super::xargs::KIND, Program::Xargs { allowed: allowed.to_vec() }, Mode::Once)
    }

    fn unlimited(kind: &str, program: Program, mode: Mode) -> Self {
        Self {
            kind: kind.to_owned(),
            program,
            mode,
            pipe: false,
            slots: None,
            io: false,
            soft_timeout: None,
            timeout: None,
            memory_max: None,
            tasks_per_child: None,
            start_within: None,
            grace: CHILD_GRACE,
            retry: RetryOverrides::default(),
            wrap: Vec::new(),
            env: BTreeMap::new(),
            directory: None,
        }
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn optional_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    bytes(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

/// One table of `handlers.toml`, as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Typed {
    command: Option<Vec<String>>,
    isolate: bool,
    mode: Mode,
    pipe: bool,
    slots: Option<usize>,
    io: bool,
    #[serde(deserialize_with = "optional_duration")]
    soft_timeout: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "optional_bytes")]
    memory: Option<u64>,
    tasks_per_child: Option<u64>,
    #[serde(deserialize_with = "optional_duration")]
    start_within: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    grace: Option<Duration>,
    attempts: Option<u32>,
    #[serde(deserialize_with = "optional_duration")]
    retry_delay: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    retry_delay_max: Option<Duration>,
    retry_jitter: Option<f64>,
    wrap: Vec<String>,
    env: BTreeMap<String, String>,
    directory: Option<PathBuf>,
}

impl Typed {
    fn check(self, kind: &str, folder: &Path) -> anyhow::Result<Spec> {
        check_token("kind", kind)?;
        let program = match self.command {
            Some(_) if self.isolate => bail!("`isolate` is for the worker's own kinds; a command is isolated anyway"),
            Some(command) if command.is_empty() => {
                bail!("`command` names no program, such as [\"python3\", \"resize.py\"]")
            }
            Some(command) => Program::Command(command),
            None if self.isolate => Program::Own { built_in: true },
            None => bail!(
                "it needs `command = [\"program\", \"argument\"]`, or `isolate = true` for a kind of the worker's own"
            ),
        };
        if matches!(program, Program::Own { .. }) && self.mode == Mode::Once {
            bail!("`isolate` works with `mode = \"stream\"` only");
        }
        if self.pipe && self.mode != Mode::Once {
            bail!("`pipe = true` needs `mode = \"once\"`: a process for each conversation");
        }
        if self.slots.is_some_and(|slots| !(1..=SLOTS_MAX).contains(&slots)) {
            bail!("`slots` must be a number from 1 to {SLOTS_MAX}");
        }
        if self.slots.is_some() && self.io {
            bail!("`slots` gives it children of its own, `io = true` the worker's I/O slots: choose one");
        }
        if self.tasks_per_child == Some(0) {
            bail!("`tasks_per_child` must be at least 1; leave it out to never recycle");
        }
        if let (Some(soft), Some(hard)) = (self.soft_timeout, self.timeout)
            && soft >= hard
        {
            bail!("`soft_timeout` must be shorter than `timeout`: first it is asked to stop, then it is killed");
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
        Ok(Spec {
            kind: kind.to_owned(),
            program,
            mode: self.mode,
            pipe: self.pipe,
            slots: self.slots,
            io: self.io,
            soft_timeout: self.soft_timeout,
            timeout: self.timeout,
            memory_max: self.memory,
            tasks_per_child: self.tasks_per_child,
            start_within: self.start_within,
            grace: self.grace.unwrap_or(CHILD_GRACE),
            retry: RetryOverrides {
                attempts_max: self.attempts,
                delay: self.retry_delay,
                delay_max: self.retry_delay_max,
                jitter: self.retry_jitter,
            },
            wrap: self.wrap,
            env: self.env,
            directory: Some(directory),
        })
    }
}

/// Reads `handlers.toml`. Commands run in its folder unless they name another.
///
/// # Errors
/// The kind and the field that do not fit, and what would.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Spec>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read handlers from {}", path.display()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().with_context(|| format!("cannot find the folder of {}", path.display()))?;
    parse(&text, &folder).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str, folder: &Path) -> anyhow::Result<Vec<Spec>> {
    let typed: BTreeMap<String, Typed> = toml::from_str(text)?;
    let specs = typed.into_iter().map(|(kind, typed)| {
        let spec = typed.check(&kind, folder);
        spec.with_context(|| format!("handler [{kind}]"))
    });
    specs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Vec<Spec>> {
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
        let [resize, spin] = specs.as_slice() else { panic!("two handlers") };
        assert_eq!(resize.program, Program::Command(vec!["python3".into(), "resize.py".into()]));
        assert_eq!((resize.slots, resize.memory_max, resize.tasks_per_child), (Some(4), Some(512 << 20), Some(100)));
        assert_eq!(
            (resize.soft_timeout, resize.timeout),
            (Some(Duration::from_secs(50)), Some(Duration::from_secs(60)))
        );
        let delay = Some(Duration::from_secs(2));
        assert_eq!(resize.retry, RetryOverrides { attempts_max: Some(5), delay, ..RetryOverrides::default() });
        assert_eq!(resize.directory.as_deref(), Some(Path::new("/tmp")));
        assert_eq!(spin.program, Program::Own { built_in: true });
        assert_eq!((spin.slots, spin.mode, spin.retry), (None, Mode::Stream, RetryOverrides::default()));
    }

    fn check(text: &str, expected: &str) {
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        check("[a]\n", "it needs `command");
        check("[a]\ncommand = []", "names no program");
        check("[a]\ncommand = [\"x\"]\nslots = 0", "from 1 to");
        check("[a]\ncommand = [\"x\"]\nattempts = 0", "`attempts`: \"0\" must be");
        check("[a]\ncommand = [\"x\"]\nretry_jitter = 1.5", "`retry_jitter`: \"1.5\" must be");
        check("[a]\ncommand = [\"x\"]\nmemory = \"5 apples\"", "size");
        check("[a]\ncommand = [\"x\"]\ntimeout = \"1s\"\nsoft_timeout = \"2s\"", "shorter");
        check("[a]\ncommand = [\"x\"]\ntimeuot = \"1s\"", "timeuot");
        check("[\"a b\"]\ncommand = [\"x\"]", "kind");
        check("[a]\nisolate = true\nmode = \"once\"", "stream");
        check("[a]\ncommand = [\"x\"]\npipe = true", "once");
        check("[a]\ncommand = \"x\"", "sequence");
    }
}

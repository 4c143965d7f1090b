//! Subjects: built and parsed here, so that nobody else writes a dot-separated string.
//! No I/O. docs/protocol.md has the table.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

/// Longest queue, kind, job or unique key, in characters of `[A-Za-z0-9_-]`.
const TOKEN_CHARS_MAX: usize = 64;
/// Characters of a token that is too long which an error repeats.
const TOKEN_SHOWN_CHARS: usize = 16;

/// Stands for "no job" where a subject has a place for one.
pub const NO_JOB: &str = "-";

/// Why a token or a subject is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// A queue, kind, job or key that does not fit.
    #[error("{what} {} must be 1 to {TOKEN_CHARS_MAX} characters of A-Z a-z 0-9 _ - and not a lone '-'", shown(.token))]
    Token {
        /// What the token was meant to be.
        what: &'static str,
        /// The token as given.
        token: String,
    },
    /// A subject of another shape than `tasks.<queue>.<kind>[.j-<job>|.u-<key>]`.
    #[error("subject {subject:?} is not <stream>.<queue>.<kind> with an optional .j-<job> or .u-<key>")]
    Shape {
        /// The subject as received.
        subject: String,
    },
}

/// A token for a message; of a long one the beginning and its size.
fn shown(token: &str) -> String {
    if token.len() <= TOKEN_CHARS_MAX {
        return format!("{token:?}");
    }
    let beginning: String = token.chars().take(TOKEN_SHOWN_CHARS).chain(['…']).collect();
    format!("{beginning:?} of {} bytes", token.len())
}

/// All schedules; their queue is none, so that no purge of a queue meets them.
pub const SCHEDULES: &str = "sched.-.*";
/// Where the last removal of a schedule is kept; no schedule has this name.
pub const SCHEDULES_REMOVED: &str = "sched.-.-";
/// Where the server is requested to look at a schedule that has no target: it answers what is wrong with it, and stores nothing.
pub const SCHEDULE_PROBE: &str = "sched.-.-.probe";

/// Where the server is asked whether TASKS takes messages: it answers that it stores none of these, and does not.
pub const TASKS_PROBE: &str = "tasks.-.-.probe";
/// In DUE, up to which message LATER has been moved there: stored in one step with what was moved.
pub const LATER_MOVED: &str = "moved";

/// Checks one token: a queue, a kind, a job or a key.
///
/// # Errors
/// [`SubjectError::Token`] names what is wrong.
pub fn check_token(what: &'static str, token: &str) -> Result<(), SubjectError> {
    let ok = !token.is_empty()
        && token.len() <= TOKEN_CHARS_MAX
        && token != NO_JOB
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if ok { Ok(()) } else { Err(SubjectError::Token { what, token: token.to_owned() }) }
}

/// Where a program without a record tells that its clock is off.
pub const EVENTS_CLOCK: &str = "events.clock";
/// Below it a worker tells, under its name, that it was connected again.
pub const EVENTS_RECONNECTED: &str = "events.reconnected";

/// Where a worker tells that it was connected again.
#[must_use]
pub fn worker_reconnected(worker: &str) -> String {
    format!("{EVENTS_RECONNECTED}.{worker}")
}

/// Where a worker publishes live what it and its children do.
#[must_use]
pub fn worker_event(worker: &str) -> String {
    format!("events.worker.{worker}")
}

/// Where the schedule of a name lies, whatever its queue and kind: so there is one, and a new one replaces it.
#[must_use]
pub fn schedule(name: &str) -> String {
    format!("sched.-.{name}")
}

/// Who runs a task (queue), which handler (kind), and the job or unique key it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskSubject {
    /// The second token: who runs it.
    pub queue: String,
    /// The third token: which handler runs it.
    pub kind: String,
    /// The job, where there is one.
    pub job: Option<String>,
    /// The unique key, where there is one (`u-<key>`); a task has a job or a key, not both.
    pub unique: Option<String>,
}

impl TaskSubject {
    /// A checked subject.
    ///
    /// # Errors
    /// [`SubjectError::Token`] for the first token that does not fit.
    pub fn new(queue: impl Into<String>, kind: impl Into<String>, job: Option<String>) -> Result<Self, SubjectError> {
        let (queue, kind) = (queue.into(), kind.into());
        check_token("queue", &queue)?;
        check_token("kind", &kind)?;
        if let Some(job) = &job {
            check_token("job", job)?;
        }
        Ok(Self { queue, kind, job, unique: None })
    }

    /// Reads `tasks.…`, `due.…` or `later.…`.
    ///
    /// # Errors
    /// [`SubjectError`] when a token or the shape does not fit.
    pub fn parse(subject: &str) -> Result<Self, SubjectError> {
        let shape = || SubjectError::Shape { subject: subject.to_owned() };
        let mut tokens = subject.split('.');
        if !matches!(tokens.next(), Some("tasks" | "due" | "later")) {
            return Err(shape());
        }
        let (queue, kind) = (tokens.next().ok_or_else(shape)?, tokens.next().ok_or_else(shape)?);
        let mut parsed = Self::new(queue, kind, None)?;
        if let Some(last) = tokens.next() {
            if let Some(job) = last.strip_prefix("j-") {
                check_token("job", job)?;
                parsed.job = Some(job.to_owned());
            } else if let Some(key) = last.strip_prefix("u-") {
                check_token("unique key", key)?;
                parsed.unique = Some(key.to_owned());
            } else {
                return Err(shape());
            }
        }
        if tokens.next().is_some() { Err(shape()) } else { Ok(parsed) }
    }

    fn with_prefix(&self, prefix: &str) -> String {
        let (queue, kind) = (self.queue.as_str(), self.kind.as_str());
        // Joined, not formatted: each message has its subject made.
        match (&self.job, &self.unique) {
            (Some(job), _) => [prefix, ".", queue, ".", kind, ".j-", job].concat(),
            (None, Some(key)) => [prefix, ".", queue, ".", kind, ".u-", key].concat(),
            (None, None) => [prefix, ".", queue, ".", kind].concat(),
        }
    }

    /// Where a new task is published.
    #[must_use]
    pub fn task(&self) -> String {
        self.with_prefix("tasks")
    }

    /// Where who may not publish to DUE publishes a task with a time.
    #[must_use]
    pub fn later(&self) -> String {
        self.with_prefix("later")
    }

    /// Where a task lies whose time has come.
    #[must_use]
    pub fn due(&self) -> String {
        self.with_prefix("due")
    }

    /// Where a task with this id waits for its time.
    #[must_use]
    pub fn sched(&self, id: &str) -> String {
        format!("{}.{}", self.sched_base(), key(id))
    }

    /// Where all tasks of its job or unique key wait for their time.
    #[must_use]
    pub fn sched_of_all(&self) -> String {
        format!("{}.*", self.sched_base())
    }

    fn sched_base(&self) -> String {
        match &self.unique {
            Some(key) => format!("sched.{}.{}.u-{key}", self.queue, self.kind),
            None => format!("sched.{}.{}.{}", self.queue, self.kind, self.job_token()),
        }
    }

    /// Where all tasks of its kind and job wait for their time.
    #[must_use]
    pub fn all_sched(&self) -> String {
        format!("sched.{}.{}.{}.*", self.queue, self.kind, self.job_token())
    }

    /// Reads `sched.<queue>.<kind>.<job, u-<unique key> or ->.<key>`; none when it is of another form.
    #[must_use]
    pub fn parse_sched(subject: &str) -> Option<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["sched", queue, kind, job, _] = tokens.as_slice() else { return None };
        if let Some(key) = job.strip_prefix("u-") {
            return Some(Self { unique: Some(key.to_owned()), ..Self::new(*queue, *kind, None).ok()? });
        }
        Self::new(*queue, *kind, (*job != NO_JOB).then(|| (*job).to_owned())).ok()
    }

    /// Where its outcomes go.
    #[must_use]
    pub fn results(&self) -> String {
        ["results.", self.job_token(), ".", &self.queue, ".", &self.kind].concat()
    }

    /// Where its dead letter goes.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("dead.{}.{}", self.queue, self.kind)
    }

    /// The `Nats-Msg-Id` of a message about the task of this id: the server compares nothing else, over a whole stream. `what` tells
    /// the messages of a task apart, and is a token like the queue and the kind, so that no two texts can be mistaken for each other.
    ///
    /// ```
    /// let subject = millpond::wire::subject::TaskSubject::new("default", "square", None).unwrap();
    /// assert_eq!(subject.message_id("r2", "a/1"), "millpond:default/square/r2/a/1");
    /// ```
    #[must_use]
    pub fn message_id(&self, what: &str, id: &str) -> String {
        ["millpond:", &self.queue, "/", &self.kind, "/", what, "/", id].concat()
    }

    fn job_token(&self) -> &str {
        self.job.as_deref().unwrap_or(NO_JOB)
    }
}

impl fmt::Display for TaskSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.task())
    }
}

/// Reads `results.<job or ->.<queue>.<kind>`.
///
/// # Errors
/// [`SubjectError::Shape`] when it is not of that form.
pub fn parse_results(subject: &str) -> Result<TaskSubject, SubjectError> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["results", job, queue, kind] => {
            let job = (*job != NO_JOB).then(|| (*job).to_owned());
            TaskSubject::new(*queue, *kind, job)
        }
        _ => Err(SubjectError::Shape { subject: subject.to_owned() }),
    }
}

/// Reads `dead.<queue>.<kind>`.
///
/// # Errors
/// [`SubjectError::Shape`] when it is not of that form.
pub fn parse_dead(subject: &str) -> Result<TaskSubject, SubjectError> {
    let tokens: Vec<&str> = subject.split('.').collect();
    match tokens.as_slice() {
        ["dead", queue, kind] => TaskSubject::new(*queue, *kind, None),
        _ => Err(SubjectError::Shape { subject: subject.to_owned() }),
    }
}

/// All results of one job.
#[must_use]
pub fn results_of_job(job: &str) -> String {
    format!("results.{job}.>")
}

/// Where workers are asked whether they hold a task, or an item of its batch.
#[must_use]
pub fn lease_who(queue: &str, original_id: &str) -> String {
    format!("lease.owner.{queue}.{}", key(original_id))
}

/// Where the workers are asked whether they hold a task of a queue that they may have been given a moment ago.
#[must_use]
pub fn lease_new(queue: &str) -> String {
    format!("lease.owner.{queue}")
}

/// The same, of any queue.
pub const LEASES_NEW: &str = "lease.owner.*";

/// Where the worker that has a name is asked whether it lives.
#[must_use]
pub fn lease_name(worker: &str) -> String {
    format!("lease.name.{worker}")
}

/// Where calls of a kind are answered.
///
/// # Errors
/// [`SubjectError::Token`] for the first token that does not fit.
pub fn call(queue: &str, kind: &str) -> Result<String, SubjectError> {
    check_token("queue", queue)?;
    check_token("kind", kind)?;
    Ok(format!("call.{queue}.{kind}"))
}

/// The messages of the caller of a pipe.
#[must_use]
pub fn pipe_in(id: &str) -> String {
    format!("pipe.{id}.in")
}

/// The messages of the worker of a pipe.
#[must_use]
pub fn pipe_out(id: &str) -> String {
    format!("pipe.{id}.out")
}

/// Base32 of the SHA-256 of an id: any text becomes one subject token of 52 characters.
#[must_use]
pub fn key(id: &str) -> String {
    BASE32_NOPAD.encode(&Sha256::digest(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(subject: &str, expected: Option<(&str, &str, Option<&str>, Option<&str>)>) {
        let parsed = TaskSubject::parse(subject).ok();
        let parsed =
            parsed.as_ref().map(|s| (s.queue.as_str(), s.kind.as_str(), s.job.as_deref(), s.unique.as_deref()));
        assert_eq!(parsed, expected, "{subject}");
    }

    #[test]
    fn task_subjects() {
        check("tasks.default.square", Some(("default", "square", None, None)));
        check("due.q.k.j-job_1", Some(("q", "k", Some("job_1"), None)));
        check("tasks.q.k.u-key", Some(("q", "k", None, Some("key"))));
        check("later.q.k.u-key", Some(("q", "k", None, Some("key"))));
        for bad in [
            "tasks",
            "tasks.q",
            "tasks..k",
            "tasks.q.",
            "tasks.q.k.x",
            "tasks.q.k.j-",
            "tasks.q.k.j-a.b",
            "results.q.k",
            "tasks.-.k",
            "tasks.q.k\u{e4}",
            "tasks.q.k.j--",
        ] {
            check(bad, None);
        }
        let long = "x".repeat(TOKEN_CHARS_MAX + 1);
        check(&format!("tasks.{long}.k"), None);
    }

    #[test]
    fn built_subjects_parse_back() {
        let subject = TaskSubject::new("q", "k", Some("j".into())).unwrap();
        assert_eq!(TaskSubject::parse(&subject.task()).unwrap(), subject);
        assert_eq!(TaskSubject::parse(&subject.due()).unwrap(), subject);
        assert_eq!(parse_results(&subject.results()).unwrap(), subject);
        assert_eq!(parse_dead(&subject.dead()).unwrap().kind, "k");
        assert_eq!(subject.sched("any text\n").split('.').count(), 5);
        let unique = TaskSubject { job: None, unique: Some("key".into()), ..subject };
        assert_eq!(TaskSubject::parse(&unique.due()).unwrap(), unique);
        assert_eq!((unique.sched_of_all().as_str(), unique.results().as_str()), ("sched.q.k.u-key.*", "results.-.q.k"));
    }
}

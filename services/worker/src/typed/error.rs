//! What a handler's error becomes: a failure that is tried again, or one that is dead-lettered at once.

use std::convert::Infallible;
use std::error::Error;

use millpond::outcome::Failure;

/// An error of a handler: it says what the failure of the task is, and whether trying again can help. Implement it for an error
/// of your own to choose by its variants; [`TaskError`] takes any other error.
///
/// ```
/// use millpond::outcome::Failure;
/// use millpond_worker::HandlerError;
///
/// enum ResizeError {
///     NoSuchFile(String),
///     Busy,
/// }
///
/// impl HandlerError for ResizeError {
///     fn into_failure(self) -> Failure {
///         match self {
///             // Trying again cannot help: a dead letter, at once.
///             Self::NoSuchFile(file) => Failure::fatal("no_such_file", file),
///             // Tried again after a delay, for as many attempts as the task has.
///             Self::Busy => Failure::new("busy", "the image service is busy"),
///         }
///     }
/// }
/// ```
pub trait HandlerError {
    /// The failure: [`Failure::new`] for one that is tried again, [`Failure::fatal`] for a dead letter.
    fn into_failure(self) -> Failure;
}

/// Any error, and whether the task is tried again. `?` makes one of every error, to be tried again.
///
/// ```
/// use millpond_worker::TaskError;
///
/// async fn size(file: String) -> Result<u64, TaskError> {
///     if file.is_empty() {
///         return Err(TaskError::dead("no file is named").kind("bad_arguments"));
///     }
///     Ok(std::fs::metadata(&file)?.len())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskError(Failure);

impl TaskError {
    /// The task is tried again after a delay, for as many attempts as it has; then it is a dead letter.
    #[must_use]
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self(Failure::new("error", text(&*error)))
    }

    /// The task is a dead letter at once: trying again cannot help.
    #[must_use]
    pub fn dead(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self(Failure::fatal("error", text(&*error)))
    }

    /// The same with a short word for code to branch on, in the place of `error`: `no_such_file`.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.0.kind = kind.into();
        self
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// An error and what it comes from.
fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        let said = below.to_string();
        // Some errors say what they come from themselves.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = below.source();
    }
    text
}

impl HandlerError for TaskError {
    fn into_failure(self) -> Failure {
        self.0
    }
}

impl HandlerError for Failure {
    fn into_failure(self) -> Failure {
        self
    }
}

impl HandlerError for Infallible {
    fn into_failure(self) -> Failure {
        match self {}
    }
}

impl HandlerError for anyhow::Error {
    fn into_failure(self) -> Failure {
        TaskError::retry(self).0
    }
}

impl HandlerError for Box<dyn Error + Send + Sync> {
    fn into_failure(self) -> Failure {
        TaskError::retry(self).0
    }
}

impl HandlerError for std::io::Error {
    fn into_failure(self) -> Failure {
        TaskError::retry(self).0
    }
}

impl HandlerError for String {
    fn into_failure(self) -> Failure {
        TaskError::retry(self).0
    }
}

impl HandlerError for &'static str {
    fn into_failure(self) -> Failure {
        TaskError::retry(self).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_tried_again_unless_it_says_otherwise() {
        let parsed = "x".parse::<u32>().map_err(TaskError::from).unwrap_err().into_failure();
        assert_eq!(
            (parsed.retry, parsed.kind.as_str(), parsed.message.as_str()),
            (true, "error", "invalid digit found in string")
        );
        let dead = TaskError::dead("no file").kind("no_such_file").into_failure();
        assert_eq!((dead.retry, dead.kind.as_str(), dead.message.as_str()), (false, "no_such_file", "no file"));
        let chained = anyhow::anyhow!("refused").context("cannot connect").into_failure();
        assert_eq!((chained.retry, chained.message.as_str()), (true, "cannot connect: refused"));
    }
}

//! The environment of a child: a list of what passes from the worker's, so that no password, token or key of the worker gets
//! there; what the worker tells of the child and its task; and what `handlers.toml` adds.

use std::ffi::OsString;

/// Variables of the worker that every child gets. `*` stands for any characters, at the start or at the end.
const PASSED: [&str; 14] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHON*",
    "LD_LIBRARY_PATH",
    "SSL_CERT_*",
    "*_PROXY",
    "*_proxy",
    "CUDA_*",
];
/// Output into a pipe is buffered by Python, so that an answer would wait for the next ones. A child may set it otherwise.
const UNBUFFERED: (&str, &str) = ("PYTHONUNBUFFERED", "1");

/// The variables of the worker that a child gets; `env_pass` names more of them.
pub(super) fn passed(env_pass: &[String]) -> Vec<(OsString, OsString)> {
    let passes = |name: &str| {
        let own = env_pass.iter().map(String::as_str);
        PASSED.into_iter().chain(own).any(|pattern| fits(pattern, name))
    };
    let mut env: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passes)).collect();
    if !env.iter().any(|(name, _)| name == UNBUFFERED.0) {
        env.push((UNBUFFERED.0.into(), UNBUFFERED.1.into()));
    }
    env
}

/// Whether a name fits a pattern.
fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

/// Checks a pattern of `env_pass`.
///
/// # Errors
/// A text that says what it must be.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    let name = pattern.strip_prefix('*').or_else(|| pattern.strip_suffix('*')).unwrap_or(pattern);
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let text = || {
        format!(
            "{pattern:?} is not the name of a variable, such as AWS_REGION, nor the start or the end of one, such as AWS_*"
        )
    };
    is_name.then_some(()).ok_or_else(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for (pattern, name) in
            [("PATH", "PATH"), ("LC_*", "LC_ALL"), ("*_PROXY", "FTP_PROXY"), ("PYTHON*", "PYTHONPATH")]
        {
            assert!(fits(pattern, name) && check_pattern(pattern).is_ok(), "{pattern} {name}");
        }
        for (pattern, name) in [("PATH", "PATHS"), ("LC_*", "XLC_ALL"), ("*_PROXY", "PROXY")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        let secrets =
            ["MILLPOND_TOKEN", "NATS_URL", "PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "AWS_SECRET_ACCESS_KEY"];
        assert!(!secrets.iter().any(|name| PASSED.iter().any(|pattern| fits(pattern, name))));
        assert!(["", "*", "A*B", "A=B", "A B"].iter().all(|pattern| check_pattern(pattern).is_err()));
    }
}

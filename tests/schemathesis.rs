//! Schemathesis: reads an OpenAPI document and sends what nobody thought of. `schemathesis_hooks.py` tells it what it has to
//! be told.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// The release of schemathesis that is installed.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// Schemathesis in a Python environment, made once and kept in the target folder; none where it cannot be had.
static PROGRAM: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(SCHEMATHESIS.replace("==", "-"));
    let program = venv.join("bin/schemathesis");
    let run = |program: &Path, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let is_there = program.exists()
        || run(Path::new("python3"), &["-m", "venv", "--clear", venv.to_str().unwrap()])
            && run(&venv.join("bin/pip"), &["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS]);
    is_there.then_some(program)
});

/// Sends some thousand requests to what the document lists: no 5xx, and every answer is as the document says.
pub async fn finds_nothing(document: &str, token: &str) {
    let Some(program) = tokio::task::spawn_blocking(|| PROGRAM.as_ref()).await.unwrap() else {
        assert!(std::env::var_os("CI").is_none(), "CI needs {SCHEMATHESIS}: python3 with venv and pip");
        eprintln!("skipped: {SCHEMATHESIS} cannot be installed on this machine");
        return;
    };
    let _turn = crate::harness::busy_turn().await;
    let mut command = Command::new(program);
    command.arg("run").arg(document).args(["--header", &format!("Authorization: Bearer {token}")]);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method,ignored_auth";
    command.args(["--checks", checks, "--max-examples", "30", "--seed", "1", "--workers", "1", "--no-color"]);
    // A stream of events has no end to wait for: tests/console.rs follows it in a browser.
    command.args(["--exclude-path", "/api/v1/events"]);
    command.args(["--request-timeout", "20", "--generation-database", "none"]);
    command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks").env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests"));
    command.stdin(Stdio::null()).current_dir(env!("CARGO_TARGET_TMPDIR"));
    let running = crate::harness::output(command);
    let output = tokio::time::timeout(Duration::from_secs(600), running).await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

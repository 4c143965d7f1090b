//! A real Postgres for tests: started from the machine's binaries in a folder of its own, on a free port of loopback. Used by
//! the collector's own tests too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use millpond_service::reserved_port::ReservedPort;
use tempfile::TempDir;

/// The user `nobody`: Postgres does not run as root.
const NOBODY: u32 = 65534;
/// Longer than it takes to start one, in seconds.
const START_WITHIN_S: &str = "60";

/// One server; it ends when this is dropped.
pub struct Server {
    dir: TempDir,
    port: ReservedPort,
}

/// A program of Postgres: on PATH, or where Debian has them.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn as_nobody(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

impl Server {
    /// Starts one; none, and a line that says so, where the machine has no Postgres. In CI that is an error.
    pub fn start() -> Option<Self> {
        let Some(initdb) = program("initdb") else {
            assert!(std::env::var_os("CI").is_none(), "CI needs Postgres: apt-get install postgresql");
            eprintln!("skipped: no Postgres on this machine (apt-get install postgresql)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = dir.path().join("data");
        let made = as_nobody(initdb)
            .args(["-U", "millpond", "-A", "trust", "-E", "UTF8", "--no-locale", "-D"])
            .arg(&data)
            .output();
        let made = made.unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let reserved = ReservedPort::take().unwrap();
        let port = reserved.port;
        // It need not survive the machine.
        let settings = "-c listen_addresses=127.0.0.1 -c fsync=off -c dynamic_shared_memory_type=mmap";
        let options = format!("-p {port} -k {} {settings}", dir.path().display());
        let server = Self { dir, port: reserved };
        let log = server.dir.path().join("postgres.log");
        // It answers when this ends.
        let started =
            server.control(&["start", "-w", "-t", START_WITHIN_S, "-o", &options, "-l", log.to_str().unwrap()]);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(started, "Postgres does not start: {said}");
        Some(server)
    }

    fn control(&self, arguments: &[&str]) -> bool {
        let mut command = as_nobody(program("pg_ctl").expect("pg_ctl comes with Postgres"));
        command.args(arguments).arg("-D").arg(self.dir.path().join("data"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|ended| ended.success())
    }

    /// Its url, with the database that is always there.
    pub fn url(&self) -> String {
        format!("postgres://millpond@127.0.0.1:{}/postgres", self.port.port)
    }
}

/// Makes a database on a server; its url.
pub fn database(server: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    asked(server, &format!("CREATE DATABASE {name}"));
    format!("{}/{name}", server.rsplit_once('/').unwrap().0)
}

/// What Postgres answers to a statement: values alone, a row a line.
pub fn asked(url: &str, statement: &str) -> String {
    let mut psql = Command::new(program("psql").expect("psql comes with Postgres"));
    let answer = psql.arg(url).args(["-qtAX", "-c", statement]).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once, and all its processes with it.
        self.control(&["stop", "-m", "immediate"]);
    }
}

//! A real Postgres for tests: started from the machine's binaries in a folder of its own, on a free port of loopback. Used by
//! the collector's own tests too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The user `nobody`: Postgres does not run as root.
const NOBODY: u32 = 65534;
/// Longer than it takes to make or start one.
const START_WITHIN: Duration = Duration::from_secs(60);

/// One server; it ends when this is dropped.
pub struct Server {
    process: Child,
    dir: TempDir,
    port: u16,
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
        let (Some(initdb), Some(postgres)) = (program("initdb"), program("postgres")) else {
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(dir.path().join("postgres.log")).unwrap();
        let mut command = as_nobody(postgres);
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k"]).arg(dir.path());
        // It need not survive the machine.
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "dynamic_shared_memory_type=mmap"]);
        let process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { process, dir, port };
        server.wait();
        Some(server)
    }

    fn wait(&mut self) {
        let started = Instant::now();
        let psql = program("psql").expect("psql comes with Postgres");
        loop {
            let asked = Command::new(&psql).arg(self.url()).args(["-c", "SELECT 1"]).output().unwrap();
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() && asked.status.success() {
                return;
            }
            let log = || std::fs::read_to_string(self.dir.path().join("postgres.log")).unwrap_or_default();
            assert!(self.process.try_wait().unwrap().is_none(), "Postgres ended: {}", log());
            assert!(started.elapsed() < START_WITHIN, "Postgres does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its url, with the database that is always there.
    pub fn url(&self) -> String {
        format!("postgres://millpond@127.0.0.1:{}/postgres", self.port)
    }
}

/// Makes a database on a server; its url.
pub fn database(server: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut psql = Command::new(program("psql").expect("psql comes with Postgres"));
    let made = psql.arg(server).args(["-c", &format!("CREATE DATABASE {name}")]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    format!("{}/{name}", server.rsplit_once('/').unwrap().0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once, and all its processes with it.
        let stop = program("pg_ctl").map(|pg_ctl| {
            let mut stop = as_nobody(pg_ctl);
            stop.args(["stop", "-m", "immediate", "-D"]).arg(self.dir.path().join("data")).output()
        });
        if !matches!(stop, Some(Ok(output)) if output.status.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

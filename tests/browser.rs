//! A real Chromium for tests, driven over WebDriver by chromedriver: started with a profile of its own, and ended with all its
//! processes when it is dropped or the tests die. What a test does here is what a person does: look, click, type.

use std::io::PipeReader;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{OnceCell, SemaphorePermit};

use crate::harness::{MILLPOND, PATIENCE, Process, busy_turn, free_port, until};

/// The release of axe-core that is fetched.
const AXE: &str = "axe-core@4.14.1";
/// What a page is tried with: its width in pixels, and whether it is dark.
pub const LOOKS: [(u32, bool); 4] = [(1280, false), (1280, true), (390, true), (390, false)];
/// How long something on a page may take.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// So that it looks for nothing but what it is told, and runs without a screen.
const SWITCHES: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
];

/// One browser with one window.
pub struct Browser {
    page: Client,
    /// Address of its session at chromedriver.
    session: String,
    http: reqwest::Client,
    dir: TempDir,
    /// All that runs ends when nobody holds this.
    alive: Option<PipeReader>,
    driver: Process,
    _turn: SemaphorePermit<'static>,
}

/// A program on PATH.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Says that something is left out; in CI that is an error.
fn skipped(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI needs it: {what}");
    eprintln!("skipped: {what}");
}

impl Browser {
    /// Starts one; none, and a line that says so, where the machine has no Chromium.
    pub async fn start() -> Option<Self> {
        let (Some(chromium), Some(chromedriver)) = (program("chromium"), program("chromedriver")) else {
            skipped("no Chromium on this machine (apt-get install chromium chromium-driver)");
            return None;
        };
        let turn = busy_turn().await;
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let (alive, stderr) = std::io::pipe().unwrap();
        // The guard of children: it ends all that is below it when the other end of its standard error is gone.
        let mut guarded = Command::new(MILLPOND);
        guarded.arg0("millpond-guard").arg("chromedriver").arg(chromedriver).arg(format!("--port={port}"));
        guarded.arg("--log-level=OFF").env("HOME", dir.path()).stdout(Stdio::null()).stderr(stderr);
        let driver = Process::start(&mut guarded);
        // It holds a copy of the pipe's end.
        drop(guarded);
        let url = format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::new();
        until("chromedriver", PATIENCE, async || http.get(format!("{url}/status")).send().await.ok()).await;
        let mut switches = SWITCHES.map(str::to_owned).to_vec();
        switches.push(format!("--user-data-dir={}", dir.path().join("profile").display()));
        let wanted = json!({
            "goog:chromeOptions": { "binary": chromium, "args": switches,
                "prefs": { "download.default_directory": dir.path().join("downloads"), "download.prompt_for_download": false } },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let wanted = wanted.as_object().unwrap().clone();
        let page = ClientBuilder::new(HttpConnector::new()).capabilities(wanted).connect(&url).await.unwrap();
        let session = format!("{url}/session/{}", page.session_id().await.unwrap().unwrap());
        let browser = Self { page, session, http, dir, alive: Some(alive), driver, _turn: turn };
        browser.looks(1280, false).await;
        Some(browser)
    }

    /// What WebDriver's own commands do not have.
    async fn ask(&self, command: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}/{command}", self.session)).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{command}: {answer}");
        answer["value"].clone()
    }

    /// Another width, in pixels, and light or dark.
    pub async fn looks(&self, width: u32, dark: bool) {
        let command = async |cmd: &str, params: Value| {
            self.ask("goog/cdp/execute", json!({ "cmd": cmd, "params": params })).await;
        };
        let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        command("Emulation.setDeviceMetricsOverride", size).await;
        let theme = if dark { "dark" } else { "light" };
        let theme = json!({ "features": [{ "name": "prefers-color-scheme", "value": theme }] });
        command("Emulation.setEmulatedMedia", theme).await;
    }

    /// Goes to an address.
    pub async fn open(&self, url: &str) {
        self.page.goto(url).await.unwrap();
    }

    /// Goes to a page of the console that is open; comes back when it shows what it is for, under this heading.
    pub async fn go(&self, hash: &str, heading: &str) {
        let (hash, heading) = (json!(hash), json!(heading));
        self.run(&format!(
            "const before = location.hash; window.arrived = false;
            addEventListener('hashchange', () => (window.arrived = true), {{ once: true }});
            location.hash = {hash}; if (location.hash === before) window.arrived = true;"
        ))
        .await;
        let shown = format!(
            "window.arrived && document.querySelector('main h1')?.innerText.startsWith({heading})
                && !document.querySelector('main [aria-busy=true]')"
        );
        self.is_true(&format!("page {hash}"), &shown).await;
    }

    /// What a script answers.
    pub async fn run(&self, script: &str) -> Value {
        self.page.execute(script, Vec::new()).await.unwrap_or_else(|fault| panic!("{script}: {fault}"))
    }

    /// What an expression is.
    pub async fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}")).await
    }

    /// Waits until an expression is true.
    pub async fn is_true(&self, what: &str, expression: &str) {
        let asked = async || (self.value(expression).await == json!(true)).then_some(());
        if tokio::time::timeout(SEEN_WITHIN, until(what, PATIENCE, asked)).await.is_err() {
            panic!("no {what} within {SEEN_WITHIN:?} on: {}", self.text("body").await);
        }
    }

    /// The text of what a selector finds first, as it is shown; empty when there is nothing.
    pub async fn text(&self, css: &str) -> String {
        let text = self.value(&format!("document.querySelector({})?.innerText ?? ''", json!(css))).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until what a selector finds shows this text.
    pub async fn shows(&self, css: &str, text: &str) {
        let has = format!(
            "[...document.querySelectorAll({})].some((el) => el.innerText.includes({}))",
            json!(css),
            json!(text)
        );
        self.is_true(&format!("{text:?} in {css}"), &has).await;
    }

    /// Waits until nothing that a selector finds shows this text.
    pub async fn hides(&self, css: &str, text: &str) {
        let has = format!(
            "![...document.querySelectorAll({})].some((el) => el.innerText.includes({}))",
            json!(css),
            json!(text)
        );
        self.is_true(&format!("{text:?} gone from {css}"), &has).await;
    }

    /// Does something with an element once it is there, and can be reached.
    async fn once<T>(&self, what: &str, locator: Locator<'_>, does: impl AsyncFn(Element) -> Option<T>) -> T {
        let tried = until(what, PATIENCE, async || does(self.page.find(locator).await.ok()?).await);
        match tokio::time::timeout(SEEN_WITHIN, tried).await {
            Ok(done) => done,
            Err(_) => panic!("no {what} within {SEEN_WITHIN:?} on: {}", self.text("body").await),
        }
    }

    /// Clicks what a selector finds.
    pub async fn click_at(&self, css: &str) {
        self.once(css, Locator::Css(css), async |el| el.click().await.ok()).await;
    }

    /// Clicks the button or link of this name; of several the last one, so that a dialog's goes first.
    pub async fn click(&self, name: &str) {
        let named = "self::button or self::a or self::summary";
        let path = format!("(//*[{named}][normalize-space()='{name}' or @aria-label='{name}'])[last()]");
        self.once(&format!("button {name:?}"), Locator::XPath(&path), async |el| el.click().await.ok()).await;
    }

    /// Types into a field, instead of what is in it.
    pub async fn types(&self, css: &str, text: &str) {
        self.once(css, Locator::Css(css), async |el| {
            el.clear().await.ok()?;
            el.send_keys(text).await.ok()
        })
        .await;
    }

    /// Logs in at the page that asks for it.
    pub async fn log_in(&self, token: &str) {
        self.types("#token", token).await;
        self.click("Log in").await;
    }

    /// The file of this name that was downloaded, once it is whole.
    pub async fn downloaded(&self, name: &str) -> String {
        let file = self.dir.path().join("downloads").join(name);
        until(name, PATIENCE, async || std::fs::read_to_string(&file).ok()).await
    }

    /// What went wrong in the page since this was asked last: errors of scripts, and what its policy refused. That the
    /// collector refuses something, or is gone, is no such error.
    pub async fn errors(&self) -> Vec<String> {
        let log = self.ask("se/log", json!({ "type": "browser" })).await;
        let wrong =
            log.as_array().unwrap().iter().filter(|entry| entry["level"] != "INFO" && entry["source"] != "network");
        wrong.map(|entry| entry["message"].to_string()).collect()
    }

    /// What axe says against the page as it is shown.
    pub async fn violations(&self, axe: &str) -> Vec<String> {
        if self.value("typeof axe").await == "undefined" {
            self.run(axe).await;
        }
        let ask = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations.map((wrong) =>
                `${wrong.id}: ${wrong.nodes.map((node) => node.html.slice(0, 200) + ' ' + node.failureSummary).join('; ')}`)));";
        let found = self.page.execute_async(ask, Vec::new()).await.unwrap();
        serde_json::from_value(found).unwrap()
    }

    /// By how many pixels the page is wider than the window.
    pub async fn too_wide(&self) -> i64 {
        self.value("document.documentElement.scrollWidth - innerWidth").await.as_i64().unwrap().max(0)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.alive.take());
        self.driver.wait();
    }
}

/// The text of axe-core, fetched once into the target folder; none, and a line that says so, where that cannot be. In CI that
/// is an error.
pub async fn axe() -> Option<String> {
    static FETCHED: OnceCell<Option<String>> = OnceCell::const_new();
    FETCHED.get_or_init(async || tokio::task::spawn_blocking(fetch_axe).await.unwrap()).await.clone()
}

fn fetch_axe() -> Option<String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(AXE.replace('@', "-"));
    let file = folder.join("package/axe.min.js");
    if !file.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).current_dir(&folder).stdin(Stdio::null()).output();
            done.is_ok_and(|output| output.status.success())
        };
        let packed = format!("{}.tgz", AXE.replace('@', "-"));
        if !run("npm", &["pack", "--silent", AXE]) || !run("tar", &["xzf", &packed, "package/axe.min.js"]) {
            skipped("axe-core cannot be fetched (npm pack)");
            return None;
        }
    }
    Some(std::fs::read_to_string(file).unwrap())
}

//! The console in a real browser against a real cluster: what it shows is there, what it does has its effect, and it keeps up
//! by itself.

use std::process::Output;

use futures_util::stream;
use millpond::bus::publish::RetryDeadline;
use millpond::client::{BatchSize, MapSpec, NewTask};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser::{Browser, LOOKS, axe};
use crate::harness::{Cluster, PATIENCE, Process, is_ready, output, task, text, until};

/// What runs when a page takes text for markup.
const HOSTILE: &str = "<script>window.stolen=1</script>";

/// A browser that is logged in as an operator.
async fn operator(cluster: &Cluster) -> Option<Browser> {
    let browser = Browser::start().await?;
    is_ready(&cluster.collector_url()).await;
    browser.open(&format!("{}/console/", cluster.collector_url())).await;
    browser.log_in(&cluster.nats.secrets.token).await;
    browser.shows("#top", "Live").await;
    Some(browser)
}

async fn submit(cluster: &Cluster, task: &NewTask) -> String {
    cluster.client.submit(task, RetryDeadline::Unlimited).await.unwrap().id
}

fn named(id: &str, kind: &str, arguments: &str) -> NewTask {
    NewTask { id: Some(id.into()), ..task(kind, arguments) }
}

async fn cli(cluster: &Cluster, arguments: &[&str]) -> Output {
    let command = cluster.command(arguments);
    let output = output(command).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Stores a job of so many tasks that sleep.
async fn sleepers(cluster: &Cluster, job: &str, seconds: &'static str, count: usize) {
    let spec = MapSpec {
        queue: "default".into(),
        kind: "sleep".into(),
        job: Some(job.into()),
        batch: BatchSize::Fixed(1),
        ..MapSpec::default()
    };
    let input = stream::iter((0..count).map(move |_| Ok(seconds.into())));
    assert_eq!(cluster.client.publish_all(spec, input).await.unwrap().tasks, count as u64);
}

/// Waits for a field of a task.
async fn task_is(cluster: &Cluster, id: &str, field: &str, value: Value) {
    until(&format!("{field} {value} of {id}"), PATIENCE, async || {
        let task = cluster.get("/api/v1/task", &[("id", id.to_owned())]).await?;
        (task[field] == value).then_some(())
    })
    .await;
}

fn page_of(id: &str) -> String {
    format!("#/task?id={}", id.replace('<', "%3C").replace('>', "%3E").replace('/', "%2F"))
}

fn dead_letter_of(id: &str) -> String {
    page_of(id).replace("#/task?", "#/dead_letter?queue=default&")
}

/// A worker with two kinds in children: one that misbehaves as it is asked, and one that says its arguments in its log.
fn children(cluster: &Cluster, name: &str, more: &[&str]) -> (Process, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/handlers/child.py");
    let script = script.canonicalize().unwrap();
    let handlers = format!(
        "[child]\ncommand = [\"python3\", {script:?}]\nattempts = 2\n
         [tell]\ncommand = [\"sh\", \"-c\", \"cat >&2; echo >&2; exit 3\"]\nmode = \"once\"\nattempts = 1\n"
    );
    let file = dir.path().join("handlers.toml");
    std::fs::write(&file, handlers).unwrap();
    let arguments = [&["--handlers", file.to_str().unwrap()], more].concat();
    (cluster.worker(name, &arguments, None), dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_nothing_and_viewers_change_nothing() {
    let cluster = Cluster::start().await;
    let Some(browser) = Browser::start().await else { return };
    let _worker = cluster.worker("w1", &[], None);
    submit(&cluster, &named("secret", "square", "12")).await;
    cluster.ended("secret").await;
    let url = cluster.collector_url();
    // Nobody: not in the page, not by the API.
    browser.open(&format!("{url}/console/#/tasks")).await;
    browser.shows("label", "Token").await;
    let nothing = async || {
        assert!(!browser.text("body").await.contains("secret"));
        assert_eq!(browser.value("document.querySelectorAll('nav, table, .tile').length").await, 0);
        let status = browser.value("fetch('/api/v1/tasks').then((answer) => answer.status)").await;
        assert_eq!(status, 401);
    };
    nothing().await;
    assert_eq!(reqwest::get(format!("{url}/api/v1/tasks")).await.unwrap().status(), 401);
    browser.log_in("wrong").await;
    browser.shows(".wrong", "does not know this token").await;
    nothing().await;
    // A viewer comes to the page that was asked for, and reads.
    browser.log_in(&cluster.nats.secrets.viewer_token).await;
    browser.shows("table", "secret").await;
    browser.shows(".role", "viewer").await;
    assert_eq!(browser.value("document.cookie").await, "", "no script reads the session");
    browser.go("#/queues", "Queues").await;
    browser.shows("table", "default").await;
    let button = "document.querySelector(\"[aria-label='Pause queue default']\")";
    assert_eq!(browser.value(&format!("{button}.getAttribute('aria-disabled')")).await, "true");
    let why = browser.value(&format!("{button}.title")).await;
    assert!(why.as_str().unwrap().contains("log in with the operator token"), "{why}");
    browser.click("Pause queue default").await;
    browser.shows("#toasts", "only reads").await;
    assert_eq!(browser.value("document.querySelectorAll('dialog').length").await, 0);
    let forced = "fetch('/api/v1/queues/default/pause', { method: 'POST', body: '{}',
        headers: { 'Content-Type': 'application/json', 'X-Millpond': 'console' } }).then((answer) => answer.status)";
    assert_eq!(browser.value(forced).await, 403);
    for (page, heading) in [("#/dead", "Dead letters"), ("#/workers", "Workers")] {
        browser.go(page, heading).await;
        let enabled =
            "[...document.querySelectorAll('main button')].filter((el) => /^(Retry|Purge|Drain)/.test(el.innerText)
            && el.getAttribute('aria-disabled') !== 'true').length";
        assert_eq!(browser.value(enabled).await, 0, "{page}");
    }
    browser.click("Log out").await;
    browser.shows("label", "Token").await;
    nothing().await;
    assert_eq!(browser.errors().await, [""; 0]);
}

/// Something of everything that pages show; what ends has ended.
async fn life(cluster: &Cluster) {
    sleepers(cluster, "naps", "0.01", 120).await;
    for (id, kind, arguments) in [
        ("crashed", "child", r#"{"how": "segfault"}"#),
        ("long-name-of-a-task-that-was-given-by-a-program-and-not-by-a-person", "square", "12"),
        (HOSTILE, "tell", &json!(HOSTILE).to_string()),
        ("healed", "fail", r#"{"until": 2}"#),
    ] {
        submit(cluster, &named(id, kind, arguments)).await;
        cluster.ended(id).await;
    }
    cluster.job_ends("naps", 120, PATIENCE).await;
    submit(cluster, &named("progressing", "child", r#"{"how": "progress", "seconds": 600}"#)).await;
    let later = NewTask { queue: "unserved".into(), ..named("waiting", "square", "2") };
    submit(cluster, &later).await;
    cli(cluster, &["queue", "set", "bounded", "--max-waiting", "5"]).await;
    let (_producer, _) = cluster.producer().await;
    cli(cluster, &["schedule", "add", "hourly", "square", "12", "--every", "1h"]).await;
    cli(cluster, &["schedule", "add", "nightly", "echo", "[1, 2]", "--cron", "30 3 * * *", "--tz", "Europe/Berlin"])
        .await;
    cli(cluster, &["schedule", "pause", "hourly"]).await;
    let shown = |worker: &Value| worker["children"][0]["progress"] == 0.4;
    cluster.worker_is("w1", shown).await;
}

/// Pages with their headings; what is closed at first is opened by these selectors.
fn pages() -> Vec<(String, &'static str, &'static str)> {
    let mut pages = vec![
        ("#/overview".to_owned(), "Overview", ""),
        ("#/queues".to_owned(), "Queues", ""),
        ("#/jobs".to_owned(), "Jobs", ""),
        ("#/jobs/naps".to_owned(), "Job", ""),
        ("#/tasks".to_owned(), "Tasks", ""),
        ("#/tasks?status=dead&range=24h".to_owned(), "Tasks", ""),
        ("#/workers".to_owned(), "Workers", ".opener[aria-expanded=false]"),
        ("#/dead".to_owned(), "Dead letters", ""),
        ("#/schedules".to_owned(), "Schedules", ".opener[aria-expanded=false]"),
        ("#/nothing".to_owned(), "Not found", ""),
    ];
    for id in ["crashed", "healed", "waiting", "progressing", "no-such", HOSTILE] {
        pages.push((page_of(id), "Task", ""));
    }
    pages.extend(["crashed", "healed"].map(|id| (dead_letter_of(id), "Dead letter", "")));
    pages
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_fits_any_window_and_is_for_everybody() {
    let cluster = Cluster::start().await;
    let (_worker, _handlers) = children(&cluster, "w1", &[]);
    let Some(browser) = operator(&cluster).await else { return };
    life(&cluster).await;
    let axe = axe().await;
    let mut wrong = Vec::new();
    let look = async |what: &str, wrong: &mut Vec<String>| {
        match browser.too_wide().await {
            0 => {}
            pixels => wrong.push(format!("{what}: {pixels} pixels too wide")),
        }
        let Some(axe) = &axe else { return };
        wrong.extend(browser.violations(axe).await.into_iter().map(|found| format!("{what}: {found}")));
    };
    for (width, dark) in LOOKS {
        browser.looks(width, dark).await;
        for (page, heading, opens) in pages() {
            browser.go(&page, heading).await;
            if !opens.is_empty() {
                browser.click_at(opens).await;
            }
            look(&format!("{page} at {width} pixels, dark {dark}"), &mut wrong).await;
        }
        browser.go("#/queues", "Queues").await;
        browser.click("Purge queue default").await;
        look(&format!("purge at {width} pixels, dark {dark}"), &mut wrong).await;
        browser.click("Leave it").await;
    }
    browser.click("Log out").await;
    browser.shows("label", "Token").await;
    look("login", &mut wrong).await;
    wrong.extend(browser.errors().await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Who looks would see it.
    browser.run("document.querySelector('main').append(new Image(3000, 9)); setTimeout(() => { throw new Error('on purpose') })").await;
    look("a picture without a text", &mut wrong).await;
    assert_eq!(wrong.len(), if axe.is_some() { 2 } else { 1 }, "{}", wrong.join("\n"));
    until("error of a script", PATIENCE, async || browser.errors().await.pop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_says_is_text_and_its_history_has_evidence() {
    let cluster = Cluster::start().await;
    let (_worker, _handlers) = children(&cluster, "w1", &[]);
    let Some(browser) = operator(&cluster).await else { return };
    submit(&cluster, &named(HOSTILE, "tell", &json!({ "say": HOSTILE }).to_string())).await;
    submit(&cluster, &named("crashed", "child", r#"{"how": "segfault"}"#)).await;
    let ended = cluster.ended(HOSTILE).await;
    assert!(ended["dead"]["failure"]["message"].as_str().unwrap().contains(HOSTILE), "{ended}");
    cluster.ended("crashed").await;
    let filtered = format!("#/tasks?error={}", "%3Cscript%3E");
    for (page, heading) in [
        ("#/tasks".to_owned(), "Tasks"),
        (filtered, "Tasks"),
        (page_of(HOSTILE), "Task"),
        ("#/dead".to_owned(), "Dead letters"),
        (dead_letter_of(HOSTILE), "Dead letter"),
    ] {
        browser.go(&page, heading).await;
        browser.shows("main", HOSTILE).await;
    }
    browser.shows(".facts", "tell").await;
    browser.shows(".block pre", HOSTILE).await;
    browser.shows(".failure .message", HOSTILE).await;
    browser.shows(".failure pre", HOSTILE).await;
    browser.click("Retry…").await;
    browser.shows("dialog", HOSTILE).await;
    browser.click("Leave it").await;
    assert_eq!(browser.value("typeof window.stolen").await, "undefined");
    assert_eq!(browser.value("document.querySelectorAll('body script').length").await, 0);
    // Both attempts, each with what is known of the child that died of it.
    browser.go(&page_of("crashed"), "Task").await;
    browser.shows(".timeline", "Dead letter: exhausted").await;
    let steps = "[...document.querySelectorAll('.timeline .step')].map((el) => el.innerText).filter((text) => /^Attempt/.test(text))";
    let steps = browser.value(steps).await;
    let steps: Vec<&str> = steps.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    for (number, step) in steps.iter().enumerate() {
        for part in [&format!("Attempt {}", number + 1), "failed", "w1/child-", "11 (SIGSEGV)", "about to crash"] {
            assert!(step.contains(part), "{part} in {step}");
        }
    }
    assert_eq!(browser.errors().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_run_again_or_go() {
    let cluster = Cluster::start().await;
    let (_worker, (_producer, _)) = (cluster.worker("w1", &[], None), cluster.producer().await);
    let Some(browser) = operator(&cluster).await else { return };
    for (id, message, until) in
        [("one", "fire", 2), ("two", "Flood", 2), ("three", "flood", 2), ("four", "fire", 9), ("five", "fire", 9)]
    {
        let arguments = json!({ "how": "fatal", "message": message, "until": until }).to_string();
        submit(&cluster, &named(id, "fail", &arguments)).await;
        cluster.ended(id).await;
    }
    browser.go("#/dead", "Dead letters").await;
    // One that is chosen.
    browser.click_at("[aria-label='Select one']").await;
    browser.shows(".toolbar", "1 dead letter selected").await;
    browser.click("Retry selected").await;
    browser.click("Retry").await;
    browser.shows("#toasts", "1 dead letter retried").await;
    task_is(&cluster, "one", "status", json!("done")).await;
    browser.hides("table", "one").await;
    browser.shows("nav .count", "4").await;
    // All that fit a filter.
    browser.types("#filter-error", "FLOOD").await;
    browser.click("Search").await;
    browser.shows(".paging", "2 rows, all").await;
    browser.click("Retry all that fit…").await;
    browser.shows("dialog", "2 dead letters fit").await;
    browser.click("Retry 2").await;
    browser.shows("dialog", "2 retried of 2").await;
    browser.click("Close").await;
    browser.shows("main", "No dead letter fits").await;
    for id in ["two", "three"] {
        task_is(&cluster, id, "result", json!(2)).await;
    }
    // One with other arguments, from its own page.
    browser.go(&dead_letter_of("four"), "Dead letter").await;
    browser.click("Retry…").await;
    browser.types("dialog textarea", r#"{"how": "never"}"#).await;
    browser.click("Retry").await;
    task_is(&cluster, "four", "status", json!("done")).await;
    browser.shows("main", "This dead letter waits no more").await;
    // The rest away.
    browser.go("#/dead", "Dead letters").await;
    browser.shows(".paging", "1 row, all").await;
    browser.click("Purge all…").await;
    browser.click("Purge 1").await;
    browser.shows("dialog", "1 purged of 1").await;
    browser.click("Close").await;
    browser.shows("main", "No dead letters").await;
    let left = cluster.get("/api/v1/dead", &[]).await.unwrap();
    assert_eq!(left["rows"], json!([]));
    task_is(&cluster, "five", "status", json!("dead")).await;
    browser.hides("nav", "wait").await;
    assert_eq!(browser.errors().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_cancels_pauses_and_drains() {
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker("w1", &[], None);
    let Some(browser) = operator(&cluster).await else { return };
    submit(&cluster, &named("long", "sleep", "600")).await;
    browser.go(&page_of("long"), "Task").await;
    browser.shows(".why", "it runs on w1").await;
    browser.click("Cancel").await;
    browser.click("Cancel the task").await;
    browser.shows(".why", "cancelled").await;
    task_is(&cluster, "long", "status", json!("cancelled")).await;
    // A job of which some run and some wait.
    sleepers(&cluster, "many", "600", 100).await;
    browser.go("#/jobs", "Jobs").await;
    browser.click("many").await;
    browser.shows("h1", "many").await;
    browser.click("Cancel").await;
    browser.click("Cancel the job").await;
    browser.shows(".facts", "an operator has cancelled it").await;
    browser.shows(".progress", "100 cancelled").await;
    cluster.worker_is("w1", |record| record["running"] == 0).await;
    // A pause holds back what comes, until it is resumed.
    browser.go("#/queues", "Queues").await;
    browser.click("Pause queue default").await;
    browser.click("Pause").await;
    browser.shows("table .badge", "paused").await;
    submit(&cluster, &named("held-back", "square", "12")).await;
    browser.go(&page_of("held-back"), "Task").await;
    browser.shows(".why", "paused").await;
    assert_eq!(cluster.get("/api/v1/task", &[("id", "held-back".to_owned())]).await, None);
    browser.go("#/queues", "Queues").await;
    browser.click("Resume queue default").await;
    browser.click("Resume").await;
    browser.shows("table .badge", "open").await;
    task_is(&cluster, "held-back", "result", json!(144)).await;
    // A purge removes what waits, after its name is typed.
    browser.click("Pause queue default").await;
    browser.click("Pause").await;
    browser.shows("table .badge", "paused").await;
    submit(&cluster, &named("purged", "square", "12")).await;
    browser
        .is_true(
            "one that waits",
            "[...document.querySelectorAll('td[data-label=Waiting]')].some((el) => el.innerText === '1')",
        )
        .await;
    browser.click("Purge queue default").await;
    browser.types("dialog [name=typed]", "default").await;
    browser.click("Purge").await;
    browser.shows("#toasts", "1 message of queue default removed").await;
    let waits = "[...document.querySelectorAll('td[data-label=Waiting]')].every((el) => el.innerText === '0')";
    browser.is_true("nothing that waits", waits).await;
    browser.go("#/workers", "Workers").await;
    browser.click("Drain worker w1").await;
    browser.click("Drain").await;
    assert!(worker.end(PATIENCE).await.success());
    browser.shows("main", "No worker is here").await;
    assert_eq!(browser.errors().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_keeps_up_and_keeps_its_place() {
    let cluster = Cluster::start().await;
    let Some(browser) = operator(&cluster).await else { return };
    for n in 0..12 {
        sleepers(&cluster, &format!("old-{n}"), "0", 1).await;
    }
    let _worker = cluster.worker("w1", &["--io-slots", "4"], None);
    browser.shows("a.tile[href='#/workers']", "all live").await;
    browser.go("#/jobs", "Jobs").await;
    browser.shows("table", "old-11").await;
    browser
        .run("window.same = true; document.getElementById('job-name').focus({ preventScroll: true }); scrollTo(0, 120)")
        .await;
    let scroll = browser.value("scrollY").await;
    sleepers(&cluster, "live", "0.4", 40).await;
    let row =
        "([...document.querySelectorAll('tbody tr')].find((el) => el.innerText.includes('live'))?.innerText ?? '')";
    let ended = format!("Number(/([\\d,]+) of 40/.exec({row})?.[1] ?? -1)");
    browser.is_true("job under way", &format!("{ended} > 0 && {ended} < 40")).await;
    let seen = browser.value(&ended).await.as_i64().unwrap();
    browser.is_true("job further on", &format!("{ended} > {seen}")).await;
    browser.is_true("job at its end", &format!("{ended} === 40 && {row}.includes('finished')")).await;
    assert_eq!(
        browser.value("[window.same, document.activeElement.id, scrollY]").await,
        json!([true, "job-name", scroll])
    );
    // Its results, as a file.
    browser.click("live").await;
    browser.shows("h1", "live").await;
    browser.click("Download results").await;
    let file = browser.downloaded("live.ndjson").await;
    let rows: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 40, "{file}");
    assert!(rows.iter().enumerate().all(|(n, row)| row["index"] == n && row["result"] == 0.4), "{file}");
    // Numbers of the overview.
    browser.go("#/overview", "Overview").await;
    browser.shows("a.tile[href='#/dead']", "0\n").await;
    submit(&cluster, &named("dies", "fail", r#"{"how": "fatal"}"#)).await;
    browser.shows("a.tile[href='#/dead']", "1\n").await;
    submit(&cluster, &named("runs", "sleep", "600")).await;
    browser.shows("a.tile[href='#/workers']", "1\n1 held").await;
    browser
        .is_true(
            "chart of what was done",
            "/done: from 0\\/s to [^0]/.test(document.querySelector('.chart .sr')?.innerText)",
        )
        .await;
    assert_eq!(browser.value("window.same").await, true);
    assert_eq!(browser.errors().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_with_the_collector_and_lists_schedules() {
    let mut cluster = Cluster::start().await;
    let Some(browser) = operator(&cluster).await else { return };
    let _worker = cluster.worker("w1", &[], None);
    browser.go("#/schedules", "Schedules").await;
    browser.shows("main", "There is no schedule").await;
    let (_producer, _) = cluster.producer().await;
    cli(&cluster, &["schedule", "add", "nightly", "echo", "[1, 2]", "--cron", "30 3 * * *", "--tz", "Europe/Berlin"])
        .await;
    for part in ["nightly", "30 3 * * *", "Europe/Berlin", "active", "in "] {
        browser.shows("tbody tr", part).await;
    }
    browser.click("Show more of nightly").await;
    browser.shows(".more", "millpond schedule rm nightly").await;
    cli(&cluster, &["schedule", "pause", "nightly"]).await;
    browser.shows("tbody tr", "paused").await;
    browser.go("#/tasks", "Tasks").await;
    browser.run("window.same = true").await;
    cluster.collector.kill9();
    browser.shows("#top", "Connection lost, retrying").await;
    submit(&cluster, &named("meanwhile", "square", "12")).await;
    cluster.restart_collector(None);
    browser.shows("#top", "Live").await;
    browser.shows("table", "meanwhile").await;
    // And what comes after.
    submit(&cluster, &named("after", "square", "13")).await;
    browser.shows("table", "after").await;
    browser.shows(".role", "operator").await;
    assert_eq!(browser.value("window.same").await, true, "it was not loaded again");
    browser.click("after").await;
    browser.shows(".block pre", "169").await;
    let ended = cluster.ended("after").await;
    browser.shows("main", &text(&ended, "worker")).await;
    assert_eq!(browser.errors().await, [""; 0]);
}

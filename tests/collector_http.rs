//! The collector over HTTP: who may ask what, sessions of browsers, errors that are always JSON, and a document
//! that lists what is served. What holds for all paths is tried on each path of the document, so that none is forgotten.

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use reqwest::header::{COOKIE, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, output, task, until};
use crate::schemathesis;

/// Wrong tokens of an address that are answered within a minute (docs/http.md).
const GUESSES_MAX: usize = 10;

/// Asks a collector.
pub struct Caller {
    pub url: String,
    http: reqwest::Client,
}

impl Caller {
    pub async fn of(cluster: &Cluster) -> Self {
        let caller = Self {
            url: cluster.collector_url(),
            // A connection each: the collector may close one behind an answer that left its body unread.
            http: reqwest::Client::builder().redirect(Policy::none()).pool_max_idle_per_host(0).build().unwrap(),
        };
        caller.is_ready().await;
        caller
    }

    async fn is_ready(&self) {
        let ready = async || {
            self.http.get(format!("{}/readyz", self.url)).send().await.ok()?.status().is_success().then_some(())
        };
        until("ready collector", PATIENCE, ready).await;
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.ask(Method::GET, path)
    }

    /// Something that acts, and that anybody who may act can do at any time.
    fn act(&self) -> RequestBuilder {
        self.ask(Method::POST, "/api/v1/queues/low/set").json(&json!({ "max_waiting": 7 }))
    }

    async fn document(&self) -> Value {
        self.get("/api/v1/openapi.json").send().await.unwrap().json().await.unwrap()
    }

    /// Every operation of the document: its method, its path with names filled in, itself.
    async fn operations(&self) -> Vec<(Method, String, Value)> {
        let document = self.document().await;
        let mut found = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let filled = path.replace("{queue}", "x9").replace("{job}", "x9").replace("{worker}", "x9");
            assert!(!filled.contains('{'), "{path} has a name that this test does not know");
            for (method, operation) in item.as_object().unwrap() {
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
                found.push((method, filled.clone(), operation.clone()));
            }
        }
        assert!(found.len() > 25, "the operations are found");
        found
    }

    async fn login(&self, token: &str) -> Response {
        self.ask(Method::POST, "/api/v1/login").json(&json!({ "token": token })).send().await.unwrap()
    }

    /// What a browser would send from now on.
    async fn cookie(&self, token: &str) -> String {
        let answer = self.login(token).await;
        assert_eq!(answer.status(), 200);
        set_cookie(answer.headers()).split(';').next().unwrap().to_owned()
    }
}

fn set_cookie(headers: &HeaderMap) -> String {
    headers["set-cookie"].to_str().unwrap().to_owned()
}

/// The status, and the error of an answer that is JSON as every error is.
pub async fn refused(request: RequestBuilder) -> (u16, String) {
    let answer = request.send().await.unwrap();
    let (status, url) = (answer.status().as_u16(), answer.url().clone());
    let body: Value = answer.json().await.unwrap_or_else(|e| panic!("{status} of {url} is no JSON: {e}"));
    (status, body["error"].as_str().unwrap_or_else(|| panic!("{status} of {url}: {body}")).to_owned())
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_is_guarded_by_role_and_its_errors_are_json() {
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let (operator, viewer) = (&cluster.nats.secrets.token, &cluster.nats.secrets.viewer_token);
    let mut open = Vec::new();
    for (method, path, operation) in caller.operations().await {
        let name = format!("{method} {path}");
        let ask = || caller.ask(method.clone(), &path);
        let has_body = operation["requestBody"].is_object();
        if !operation["security"].is_array() {
            assert!(![401, 403].contains(&status(ask()).await), "{name}");
            open.push(name);
            continue;
        }
        for request in
            [ask(), ask().bearer_auth("wrong"), ask().bearer_auth(""), ask().basic_auth("operator", Some(operator))]
        {
            assert_eq!(refused(request).await.0, 401, "{name}");
        }
        let acts = method != Method::GET;
        let may = status(ask().bearer_auth(viewer).json(&json!({}))).await;
        assert_eq!(may == 403, acts, "{name} for a viewer: {may}");
        assert_ne!(may, 401, "{name}");
        if acts {
            let (_, said) = refused(ask().bearer_auth(viewer).json(&json!({}))).await;
            assert!(said.contains("viewer") && said.contains("MILLPOND_TOKEN"), "{said}");
        }
        let done = status(ask().bearer_auth(operator).json(&json!({}))).await;
        assert!(![401, 403, 405].contains(&done) && done < 500, "{name} for an operator: {done}");
        // What cannot be read.
        let odd = |request: RequestBuilder| request.bearer_auth(operator);
        assert_eq!(refused(odd(caller.ask(method.clone(), &format!("{path}?stauts=dead")))).await.0, 400, "{name}");
        if has_body {
            let json = ("content-type", "application/json");
            for (body, kind, wanted) in [
                ("{", json, 400),
                ("7", json, 400),
                ("", json, 400),
                (r#"{"od": 1}"#, json, 400),
                ("{}", ("content-type", "text/plain"), 415),
            ] {
                let got = refused(odd(ask()).body(body).header(kind.0, kind.1)).await;
                assert_eq!(got.0, wanted, "{name} {body}: {got:?}");
            }
            let large = format!("\"{}\"", "x".repeat(3 << 20));
            assert_eq!(refused(odd(ask()).body(large).header(json.0, json.1)).await.0, 413, "{name}");
        }
    }
    open.sort();
    let wanted = [
        "GET /api/v1/openapi.json",
        "GET /healthz",
        "GET /metrics",
        "GET /readyz",
        "POST /api/v1/login",
        "POST /api/v1/logout",
    ];
    assert_eq!(open, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_paths_are_refused_and_every_answer_has_its_headers() {
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let operations = caller.operations().await;
    let with = |request: RequestBuilder| request.bearer_auth(&cluster.nats.secrets.token);
    for (_, path, _) in &operations {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
            if operations.iter().any(|(listed, of, _)| of == path && *listed == method) {
                continue;
            }
            let answer = with(caller.ask(method.clone(), path)).send().await.unwrap();
            assert!(answer.headers().contains_key("allow"), "{method} {path}");
            // No other origin is ever allowed anything.
            assert!(!answer.headers().contains_key("access-control-allow-origin"), "{method} {path}");
            let (status, error) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
            assert!(status == 405 && error["error"].is_string(), "{method} {path}: {status} {error}");
        }
    }
    for path in ["/nothing", "/api/v1/nothing", "/api/v1", "/api/v2/tasks", "/console/nothing.js", "/console/../lib.rs"]
    {
        assert_eq!(refused(with(caller.get(path))).await.0, 404, "{path}");
    }
    for (path, status) in [
        ("/", 307),
        ("/console", 307),
        ("/console/", 200),
        ("/healthz", 200),
        ("/api/v1/openapi.json", 200),
        ("/metrics", 200),
        ("/api/v1/tasks", 401),
        ("/nothing", 404),
    ] {
        let answer = caller.get(path).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let headers = answer.headers();
        let csp = headers["content-security-policy"].to_str().unwrap();
        assert!(
            csp.starts_with("default-src 'none'; script-src 'self';") && csp.contains("frame-ancestors 'none'"),
            "{csp}"
        );
        assert!(!csp.contains("unsafe"), "{csp}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", if path == "/console/" { "no-cache" } else { "no-store" }),
        ] {
            assert_eq!(headers[name], value, "{path}");
        }
    }
    let index = caller.get("/console/").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(
        (&index.headers()["content-type"], &index.headers()["content-encoding"]),
        (&"text/html; charset=utf-8".parse().unwrap(), &"gzip".parse().unwrap())
    );
    let again = caller.get("/console/").header("if-none-match", &index.headers()["etag"]).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.bytes().await.unwrap().len()), (304, 0));
    assert_eq!(caller.get("/").send().await.unwrap().headers()["location"], "console/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_acts_from_the_console_only_and_logs_out() {
    let mut cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let (operator, viewer) = (cluster.nats.secrets.token.clone(), cluster.nats.secrets.viewer_token.clone());
    let answer = caller.login(&viewer).await;
    let cookie = set_cookie(answer.headers());
    let (name, _) = cookie.split_once('=').unwrap();
    assert!(name.starts_with("millpond_session_") && cookie[name.len()..].starts_with("=viewer."), "{cookie}");
    for part in ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(&viewer), "{cookie}");
    let said: Value = answer.json().await.unwrap();
    let left = said["expires_ms"].as_i64().unwrap() - millpond::now_ms();
    assert!(said["role"] == "viewer" && left > 11 * 3_600_000 && left <= 12 * 3_600_000, "{said}");
    let by_tls = caller.ask(Method::POST, "/api/v1/login").header("x-forwarded-proto", "https");
    let by_tls = by_tls.json(&json!({ "token": viewer })).send().await.unwrap();
    assert!(set_cookie(by_tls.headers()).contains("; Secure"));
    // Reading.
    let viewers = caller.cookie(&viewer).await;
    let session: Value =
        caller.get("/api/v1/session").header(COOKIE, &viewers).send().await.unwrap().json().await.unwrap();
    assert!(
        session["role"] == "viewer" && session["expires_ms"].is_i64() && session["kibana_url"].is_null(),
        "{session}"
    );
    assert_eq!(status(caller.get("/api/v1/tasks").header(COOKIE, format!("a=b; {viewers}; c=d"))).await, 200);
    let console = ("x-millpond", "console");
    assert_eq!(refused(caller.act().header(COOKIE, &viewers).header(console.0, console.1)).await.0, 403);
    // Acting.
    let operators = caller.cookie(&operator).await;
    let act = || caller.act().header(COOKIE, &operators);
    assert!(refused(act()).await.1.contains("X-Millpond"), "another site's form cannot send it");
    assert_eq!(refused(act().header(console.0, "other")).await.0, 403);
    for site in ["cross-site", "same-site"] {
        let elsewhere = act().header(console.0, console.1).header("sec-fetch-site", site);
        assert_eq!(refused(elsewhere).await.0, 403, "{site}");
        let login = caller.ask(Method::POST, "/api/v1/login").header("sec-fetch-site", site);
        assert_eq!(refused(login.json(&json!({ "token": operator }))).await.0, 403, "{site}");
    }
    assert_eq!(status(act().header(console.0, console.1).header("sec-fetch-site", "same-origin")).await, 200);
    // Programs need none of it, and a token counts before a cookie.
    assert_eq!(status(caller.act().bearer_auth(&operator)).await, 200);
    assert_eq!(refused(act().header(console.0, console.1).bearer_auth(&viewer)).await.0, 403);
    assert_eq!(refused(act().header(console.0, console.1).bearer_auth("wrong")).await.0, 401);
    let program: Value =
        caller.get("/api/v1/session").bearer_auth(&operator).send().await.unwrap().json().await.unwrap();
    assert_eq!(program, json!({ "role": "operator", "expires_ms": null, "kibana_url": null }));
    // Nobody makes or alters one.
    for forged in [
        viewers.replace("=viewer.", "=operator."),
        format!("{operators}A"),
        format!("{name}=operator.9999999999999.x.y"),
        format!("{name}="),
    ] {
        assert_eq!(refused(caller.get("/api/v1/session").header(COOKIE, forged)).await.0, 401);
    }
    let logout = caller.ask(Method::POST, "/api/v1/logout").header(COOKIE, &operators);
    assert_eq!(refused(logout.try_clone().unwrap()).await.0, 403);
    let form = caller.ask(Method::POST, "/api/v1/logout").send().await.unwrap();
    assert!(form.status() == 204 && !form.headers().contains_key("set-cookie"), "another site's form ends no session");
    let gone = logout.header(console.0, console.1).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    assert!(set_cookie(gone.headers()).starts_with(&format!("{name}=; Path=/; Max-Age=0")));
    // It survives a restart, and ends with its token.
    cluster.restart_collector_with(&[("MILLPOND_COLLECTOR_KIBANA_URL", "https://kibana.example.org")]);
    caller.is_ready().await;
    let session: Value =
        caller.get("/api/v1/session").header(COOKIE, &operators).send().await.unwrap().json().await.unwrap();
    assert_eq!((&session["role"], &session["kibana_url"]), (&json!("operator"), &json!("https://kibana.example.org")));
    cluster.restart_collector_with(&[("MILLPOND_TOKEN", "another token"), ("MILLPOND_VIEWER_TOKEN", "")]);
    caller.is_ready().await;
    for cookie in [&operators, &viewers] {
        assert_eq!(refused(caller.get("/api/v1/session").header(COOKIE, cookie)).await.0, 401);
    }
    assert_eq!(
        refused(caller.get("/api/v1/session").bearer_auth("")).await.0,
        401,
        "no viewer's token is not an empty one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_cannot_be_tried_fast_and_are_not_logged() {
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let token = &cluster.nats.secrets.token;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..GUESSES_MAX + 5 {
        let login = caller.ask(Method::POST, "/api/v1/login").json(&json!({ "token": format!("a guess {n}") }));
        tries.spawn(async move { login.send().await.unwrap().status().as_u16() });
    }
    let mut said = tries.join_all().await;
    said.sort_unstable();
    let (wrong, late) = said.split_at(GUESSES_MAX);
    assert!(wrong.iter().all(|s| *s == 401) && late.iter().all(|s| *s == 429), "{said:?}");
    // Of programs too, at each service; one that goes on with an old token is told that it is wrong.
    let refused = caller.get("/api/v1/tasks").bearer_auth("a guess of a program").send().await.unwrap();
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(refused.status() == 429 && (1..=61).contains(&wait), "{wait}");
    let (_producer, url) = cluster.producer().await;
    let publish = |token: &str| {
        let request =
            reqwest::Client::new().post(format!("{url}/v1/tasks/default/square")).body("12").bearer_auth(token);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    for n in 0..GUESSES_MAX {
        assert_eq!(publish(&format!("a guess {n}")).await, 401, "{n}");
    }
    assert_eq!((publish("a guess more").await, publish("a guess 0").await), (429, 401));
    // Nobody who has the right one is locked out.
    assert_eq!(caller.login(token).await.status(), 200);
    assert_eq!(status(caller.get("/api/v1/tasks").bearer_auth(token)).await, 200);
    assert_eq!(publish(token).await, 202);
    for service in ["collector", "producer"] {
        let log = cluster.log(service);
        let told = log.lines().filter(|line| line.contains("a wrong token has come")).count();
        assert!(told == GUESSES_MAX && !log.contains("a guess") && !log.contains(token), "{log}");
    }
}

/// All properties of a schema of the document, those of what it is made of too.
fn properties(document: &Value, schema: &Value) -> Vec<String> {
    let parts = schema["allOf"].as_array().cloned().unwrap_or_default();
    let referred = schema["$ref"].as_str().map(|to| document.pointer(to.trim_start_matches('#')).unwrap().clone());
    let mut names: Vec<String> =
        schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    names.extend(parts.iter().chain(&referred).flat_map(|part| properties(document, part)));
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_have_what_the_document_says() {
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let _worker = cluster.worker("w1", &[], None);
    let dying =
        NewTask { id: Some("dies".into()), job: Some("j".into()), attempts_max: Some(1), ..task("fail", r#""no""#) };
    cluster.client.submit(&dying, RetryDeadline::Unlimited).await.unwrap();
    let large = NewTask { id: Some("large".into()), ..task("echo", &format!("\"{}\"", "x".repeat(600_000))) };
    cluster.client.submit(&large, RetryDeadline::Unlimited).await.unwrap();
    let command = cluster.command(&["map", "square", "--range", "0..3", "--batch", "2", "--job", "m"]);
    assert!(output(command).await.status.success());
    let (_producer, _) = cluster.producer().await;
    let command = cluster.command(&["schedule", "add", "s", "square", "1", "--every", "1h"]);
    assert!(output(command).await.status.success());
    for id in ["dies", "large", "m.1/2"] {
        cluster.ended(id).await;
    }
    let document = caller.document().await;
    for (template, query, wanted) in [
        ("/tasks", "", 4),
        ("/task", "?id=dies", 1),
        ("/jobs", "", 2),
        ("/jobs/{job}", "", 1),
        ("/jobs/{job}/results", "", 3),
        ("/dead", "?job=j&reason=exhausted", 1),
        ("/dead_letter", "?id=dies", 1),
        ("/workers", "", 1),
        ("/queues", "", 1),
        ("/schedules", "", 1),
        ("/why", "?id=dies", 1),
    ] {
        let path = format!("/api/v1{template}");
        let answer = &document["paths"][&path]["get"]["responses"]["200"]["content"]["application/json"];
        let (schema, example) = (&answer["schema"], &answer["example"]);
        let got =
            caller.get(&format!("{}{query}", path.replace("{job}", "m"))).bearer_auth(&cluster.nats.secrets.token);
        let got: Value = got.send().await.unwrap().json().await.unwrap();
        let rows = |of: &Value| of["rows"].as_array().cloned().unwrap_or_else(|| vec![of.clone()]);
        let listed = schema["$ref"].as_str().map(|to| document.pointer(to.trim_start_matches('#')).unwrap());
        let row =
            listed.map(|list| &list["properties"]["rows"]["items"]).filter(|items| items.is_object()).unwrap_or(schema);
        let known = properties(&document, row);
        assert_eq!(rows(&got).len(), wanted, "{path}: {got}");
        for row in rows(&got).iter().chain(&rows(example)) {
            for name in row.as_object().unwrap().keys() {
                assert!(known.contains(name), "{path}: {name} is not in the document, which has {known:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    let cluster = Cluster::start().await;
    let caller = Caller::of(&cluster).await;
    let _worker = cluster.worker("w1", &["--queues", "default,low"], None);
    let (_producer, _) = cluster.producer().await;
    for (id, kind, arguments) in [("order-7", "square", "12"), ("order-8", "fail", r#""no""#)] {
        let one = NewTask {
            id: Some(id.into()),
            job: Some("report-7".into()),
            attempts_max: Some(1),
            ..task(kind, arguments)
        };
        cluster.client.submit(&one, RetryDeadline::Unlimited).await.unwrap();
        cluster.ended(id).await;
    }
    schemathesis::finds_nothing(&format!("{}/api/v1/openapi.json", caller.url), &cluster.nats.secrets.token).await;
}

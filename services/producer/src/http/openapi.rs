//! The OpenAPI document: what stands around the paths. The paths describe themselves where they are handled.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The document as it is served.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_json().unwrap_or_default());

#[derive(OpenApi)]
#[openapi(
    info(title = "millpond producer", description = "Tasks over HTTP, for programs that do not speak NATS. \
        Accepted means stored. The collector knows what became of a task."),
    modifiers(&TokenScheme),
    tags((name = "publish", description = "Tasks and jobs"), (name = "schedules", description = "Recurring tasks"),
        (name = "service", description = "Health, metrics, this document"))
)]
struct Frame;

/// The token of the API.
struct TokenScheme;

impl Modify for TokenScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some("The token of MILLPOND_TOKEN.".to_owned());
        document.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

pub(super) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Frame::openapi();
    document.merge(super::open().merge(super::with_token()).into_openapi());
    document
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json",
        example = json!({"openapi": "3.1.0", "info": {"title": "millpond producer", "version": "0.1.0"}, "paths": {}}))))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_the_routes_and_an_example_of_each_answer() {
        let document: serde_json::Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
        let mut routes = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                routes.push(format!("{method} {path}"));
                let guarded = operation["security"].is_array();
                assert_eq!(guarded, path.starts_with("/v1/"), "{method} {path}");
                let answers = operation["responses"].as_object().unwrap();
                for (status, answer) in answers.iter().filter(|(status, _)| *status != "204") {
                    for (kind, content) in answer["content"].as_object().expect(status) {
                        let told = !content["example"].is_null() || content["examples"].is_object();
                        assert!(told, "{method} {path} {status} {kind} has no example");
                    }
                }
            }
        }
        let wanted = [
            "delete /v1/schedules/{name}",
            "get /healthz",
            "get /metrics",
            "get /openapi.json",
            "get /readyz",
            "get /v1/jobs/{job}",
            "post /v1/jobs/{queue}/{kind}",
            "post /v1/schedules/{name}/pause",
            "post /v1/schedules/{name}/resume",
            "post /v1/tasks/{queue}/{kind}",
            "put /v1/payloads",
            "put /v1/schedules/{name}",
        ];
        routes.sort();
        assert_eq!(routes, wanted);
    }
}

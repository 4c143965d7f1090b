//! The OpenAPI document: what stands around the paths, and what is the same for all that need a token. The paths describe
//! themselves where they are handled.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};

use millpond_service::status_routes::status_routes;

use super::session::COOKIE;

/// The document as it is served.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_json().unwrap_or_default());

#[derive(OpenApi)]
#[openapi(
    info(title = "millpond collector", description = "What ended, what there is now, and what an operator does about it. \
        Lists answer `{\"rows\": […], \"next\": cursor or null}`, the newest first; times are Unix time in milliseconds."),
    tags((name = "read", description = "For viewers and operators"), (name = "act", description = "For operators"),
        (name = "session", description = "Sessions of browsers"), (name = "service", description = "Health, metrics, this document"))
)]
struct Frame;

pub(super) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Frame::openapi();
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some("The token of MILLPOND_TOKEN, or of MILLPOND_VIEWER_TOKEN to read.".to_owned());
    let cookie = ApiKeyValue::with_description(
        COOKIE,
        "A session (`/login`); the name goes on with `_` and 8 characters of the cluster. What changes something needs the header `X-Millpond: console` too.",
    );
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    let mut authorized = super::under_api(super::authorized()).into_openapi();
    for item in authorized.paths.paths.values_mut() {
        item.get.iter_mut().for_each(|operation| describe_authorization(operation, false));
        item.post.iter_mut().for_each(|operation| describe_authorization(operation, true));
    }
    document.merge(authorized);
    document.merge(status_routes::<super::App>().merge(super::under_api(super::open())).into_openapi());
    document
}

/// What is the same for all that needs a token.
fn describe_authorization(operation: &mut Operation, acts: bool) {
    let scheme = |name: &str| SecurityRequirement::new(name, Vec::<String>::new());
    operation.security = Some(vec![scheme("bearer"), scheme("cookie")]);
    let has_body = operation.request_body.is_some();
    let has_input = has_body || operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
    for (status, applies, description, example) in [
        ("400", has_input, "The request does not fit", "the query cannot be read: unknown field `stauts`"),
        (
            "401",
            true,
            "No token and no session, or none that is known",
            "send the header `Authorization: Bearer TOKEN`",
        ),
        ("403", acts, "A viewer, or a session without `X-Millpond: console`", "the viewer's token only reads"),
        ("413", has_body, "The body is too large", "length limit exceeded"),
        ("415", has_body, "The body is no JSON", "the body is JSON: send it with Content-Type: application/json"),
        (
            "429",
            true,
            "Too many wrong tokens from this address; `Retry-After` says when to come again",
            "10 wrong tokens have come from this address within a minute: come again",
        ),
        (
            "500",
            true,
            "The store cannot be read or written",
            "the store cannot be read; the collector's log has the reason",
        ),
        ("502", true, "NATS does not answer, or refuses", "no answer from nats-server"),
    ] {
        if applies {
            let answer = || RefOr::T(error(description, json!({ "error": example })));
            operation.responses.responses.entry(status.to_owned()).or_insert_with(answer);
        }
    }
}

fn error(description: &str, example: Value) -> Response {
    let mut content = Content::new(Some(Ref::from_schema_name("ErrorBody")));
    content.example = Some(example);
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json",
        example = json!({"openapi": "3.1.0", "info": {"title": "millpond collector", "version": "0.1.0"}, "paths": {}}))))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_an_example_of_each_answer_and_a_token_for_all_but_a_few_paths() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
        let mut open = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(["get", "post"].contains(&method.as_str()), "{method} {path}");
                if !operation["security"].is_array() {
                    open.push(format!("{method} {path}"));
                }
                assert!(operation["summary"].is_string(), "{method} {path} says what it is for");
                for (status, answer) in operation["responses"].as_object().unwrap() {
                    for (kind, content) in answer["content"].as_object().into_iter().flatten() {
                        let told = !content["example"].is_null() || content["examples"].is_object();
                        assert!(told, "{method} {path} {status} {kind} has no example");
                    }
                }
            }
        }
        open.sort();
        let wanted = [
            "get /api/v1/openapi.json",
            "get /healthz",
            "get /metrics",
            "get /readyz",
            "post /api/v1/login",
            "post /api/v1/logout",
        ];
        assert_eq!(open, wanted);
    }
}

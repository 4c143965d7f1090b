//! Sessions of browsers: a cookie that names a role and an end, sealed with the token of the login. Nothing is kept here,
//! so a session is good at any collector and survives its restart; another token ends it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use millpond_api::error::ErrorBody;
use millpond_api::session::{LoggedIn, Login, Role, Session};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::listen::Peer;
use millpond_service::request::{JsonBody, NoQuery, PathAndQuery};

use super::App;
use super::caller::{Caller, Tokens, from_console, from_here};

/// Characters at the end of its name, which tell clusters apart.
const COOKIE_TAG_CHARS: usize = 8;
/// How long a session lasts.
const SESSION_LASTS: Duration = Duration::from_secs(12 * 3600);
/// How the name of the cookie begins.
pub(super) const COOKIE: &str = "millpond_session";

/// The name of the cookie at this cluster. A browser keeps cookies by host, whatever the port: sessions of two clusters on one
/// host must not replace each other. The tokens of a cluster tell it from others.
fn cookie_name(tokens: &Tokens) -> String {
    let seal = tokens.operator.seal("name of the cookie");
    format!("{COOKIE}_{}", seal.get(..COOKIE_TAG_CHARS).unwrap_or_default())
}

/// The value of a cookie: `<role>.<end, Unix ms>.<nonce>.<seal over what stands before>`. None: the role has no token.
fn sealed(tokens: &Tokens, role: Role, expires_ms: i64) -> Option<String> {
    let text = format!("{}.{expires_ms}.{}", role.name(), millpond::random_token());
    let seal = tokens.of(role)?.seal(&text);
    Some(format!("{text}.{seal}"))
}

/// The caller with this cookie, at this time.
fn read(tokens: &Tokens, cookie: &str, now_ms: i64) -> Option<Caller> {
    let (text, seal) = cookie.rsplit_once('.')?;
    let mut parts = text.split('.');
    let (role, expires_ms) = (parts.next()?, parts.next()?);
    let role = Role::ALL.iter().copied().find(|known| known.name() == role)?;
    if !tokens.of(role)?.sealed(text, seal) {
        return None;
    }
    let expires_ms = expires_ms.parse().ok().filter(|expires_ms| now_ms < *expires_ms)?;
    Some(Caller { role, expires_ms: Some(expires_ms) })
}

/// The cookie of a request, where it has one.
fn cookie<'h>(tokens: &Tokens, headers: &'h HeaderMap) -> Option<&'h str> {
    let wanted = cookie_name(tokens);
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// The caller of a request with a session, at this time.
pub(super) fn caller(tokens: &Tokens, headers: &HeaderMap, now_ms: i64) -> Option<Caller> {
    read(tokens, cookie(tokens, headers)?, now_ms)
}

/// The cookie that a browser keeps. The browser sends it only to where it came from, and by TLS where it came by TLS.
fn set_cookie(name: &str, by_tls: bool, headers: &HeaderMap, value: &str) -> String {
    let lasts = if value.is_empty() { Duration::ZERO } else { SESSION_LASTS };
    let proto = headers.get("x-forwarded-proto").and_then(|proto| proto.to_str().ok()).unwrap_or_default();
    let by_tls = by_tls || proto.split(',').next().is_some_and(|first| first.trim().eq_ignore_ascii_case("https"));
    let secure = if by_tls { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", lasts.as_secs())
}

/// Begin a session: the answer sets its cookie.
///
/// It lasts 12 hours and ends early only by `/logout`, or when the collector gets another token. What changes something
/// with the cookie needs the header `X-Millpond: console`.
#[utoipa::path(post, path = "/login", tag = "session", request_body(content = Login, example = json!({"token": "the token"})),
    responses(
        (status = 200, description = "It has begun", body = LoggedIn, headers(("Set-Cookie" = String, description = "The session")),
            example = json!({"role": "viewer", "expires_ms": 1_900_000_000_000_i64})),
        (status = 400, description = "The body does not fit", body = ErrorBody, example = json!({"error": "the body cannot be read: missing field `token`"})),
        (status = 401, description = "It is no token of this collector", body = ErrorBody, example = json!({"error": "this is no token of this collector"})),
        (status = 403, description = "The request comes from another site", body = ErrorBody, example = json!({"error": "another site has asked for this: use the console itself"})),
        (status = 413, description = "The body is too large", body = ErrorBody, example = json!({"error": "length limit exceeded"})),
        (status = 415, description = "The body is no JSON", body = ErrorBody, example = json!({"error": "the body is JSON: send it with Content-Type: application/json"})),
        (status = 429, description = "Too many wrong tokens from this address; `Retry-After` says when to come again", body = ErrorBody, headers(("Retry-After" = u32, description = "Seconds")),
            example = json!({"error": "10 wrong tokens have come from this address within a minute: come again"})),
    ))]
pub(super) async fn login(
    State(app): State<Arc<App>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    headers: HeaderMap,
    JsonBody(given): JsonBody<Login>,
) -> Result<Response, ErrorAnswer> {
    from_here(&headers)?;
    let role = app.tokens.role(|token| token.is(&given.token));
    let role = role.ok_or_else(|| app.guesses.answer(peer, &given.token, "this is no token of this collector"))?;
    let expires_ms = millpond::now_ms() + i64::try_from(SESSION_LASTS.as_millis()).unwrap_or(0);
    let cookie = sealed(&app.tokens, role, expires_ms).unwrap_or_default();
    let cookie = set_cookie(&cookie_name(&app.tokens), app.by_tls, &headers, &cookie);
    tracing::info!(%peer, role = role.name(), "logged in");
    Ok(([(header::SET_COOKIE, cookie)], Json(LoggedIn { role, expires_ms })).into_response())
}

/// End a session: the answer removes its cookie.
#[utoipa::path(post, path = "/logout", tag = "session", responses(
    (status = 204, description = "There is none any more", headers(("Set-Cookie" = String, description = "The end of the session; not when the request had none"))),
    (status = 403, description = "The request comes from another site", body = ErrorBody, example = json!({"error": "what changes something with a session needs the header `X-Millpond: console`"}))))]
pub(super) async fn logout(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ErrorAnswer> {
    // Another site's form comes without the cookie: the answer must not remove it.
    if cookie(&app.tokens, &headers).is_none() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    from_console(&headers)?;
    let cookie = set_cookie(&cookie_name(&app.tokens), app.by_tls, &headers, "");
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Show the role and the session of the caller.
#[utoipa::path(get, path = "/session", tag = "session", responses((status = 200, description = "A session, or a token", body = Session,
    example = json!({"role": "operator", "expires_ms": 1_900_000_000_000_i64, "kibana_url": null}))))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    PathAndQuery((), NoQuery {}): PathAndQuery<(), NoQuery>,
) -> Json<Session> {
    Json(Session { role: caller.role, expires_ms: caller.expires_ms, kibana_url: app.kibana_url.clone() })
}

#[cfg(test)]
mod tests {
    use millpond_service::token::Token;

    use super::*;

    fn tokens(operator: &str, viewer: Option<&str>) -> Tokens {
        let token = |text| Token::new("MILLPOND_TOKEN", text).unwrap();
        Tokens { operator: token(operator), viewer: viewer.map(token) }
    }

    #[test]
    fn a_cookie_is_good_until_its_end_and_only_as_it_was_made() {
        let known = tokens("operator token", Some("viewer token"));
        for role in Role::ALL.iter().copied() {
            let cookie = sealed(&known, role, 1000).unwrap();
            assert_eq!(read(&known, &cookie, 999), Some(Caller { role, expires_ms: Some(1000) }));
            assert_eq!(read(&known, &cookie, 1000), None, "it has ended");
            let longer = cookie.replace(".1000.", ".2000.");
            assert_eq!(read(&known, &longer, 999), None, "{longer}");
            for end in 0..cookie.len() {
                assert_eq!(read(&known, &cookie[..end], 999), None, "cut at {end}");
            }
        }
        let cookie = sealed(&known, Role::Viewer, 1000).unwrap();
        assert_eq!(read(&known, &cookie.replacen("viewer", "operator", 1), 1), None, "nobody promotes himself");
        for other in [tokens("operator token", None), tokens("operator token", Some("another viewer"))] {
            assert_eq!(read(&other, &cookie, 1), None, "the token it was made from is gone");
        }
        // A restart does not end it.
        let again = tokens("operator token", Some("viewer token"));
        assert!(read(&again, &cookie, 1).is_some());
        for junk in ["", ".", "...", "operator.9999..", "operator.x.y.z"] {
            assert_eq!(read(&known, junk, 1), None, "{junk}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let known = tokens("operator token", None);
        let value = sealed(&known, Role::Operator, 1000).unwrap();
        let name = cookie_name(&known);
        assert_ne!(name, cookie_name(&tokens("another token", None)), "another cluster on this host has its own");
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b".parse().unwrap());
        headers.append(header::COOKIE, format!("c=d; {COOKIE}=other; {name}={value} ;e=f").parse().unwrap());
        assert_eq!(caller(&known, &headers, 1).unwrap().role, Role::Operator);
        assert!(set_cookie(&name, false, &headers, &value).ends_with("; HttpOnly; SameSite=Strict"));
        assert!(set_cookie(&name, true, &headers, &value).ends_with("; Secure"));
        headers.insert("x-forwarded-proto", "https, http".parse().unwrap());
        assert!(set_cookie(&name, false, &headers, &value).ends_with("; Secure"));
    }
}

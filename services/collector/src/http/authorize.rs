//! What a caller may do, decided in one place: every route under /api/v1 but those that `mod.rs` lists as open passes
//! [`authorize`]. A viewer reads (GET); everything else is for an operator, so a new route cannot be forgotten here. A
//! request with a browser's session must also show that it comes from the console, and from no other site.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use millpond_api::session::Role;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::listen::Peer;
use millpond_service::token::bearer;

use super::caller::{Caller, from_console};
use super::{App, session};

const NO_TOKEN: &str = "send the header `Authorization: Bearer TOKEN` with the collector's token (MILLPOND_TOKEN, or MILLPOND_VIEWER_TOKEN to read only), or log in at /console/";

/// The caller of a request: by a token, else by a session.
fn caller(app: &App, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, ErrorAnswer> {
    let unknown = || ErrorAnswer::new(StatusCode::UNAUTHORIZED, NO_TOKEN);
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        return session::caller(&app.tokens, headers, millpond::now_ms()).ok_or_else(unknown);
    };
    let given = given.to_str().ok().and_then(bearer).ok_or_else(unknown)?;
    let role = app.tokens.role(|token| token.is(given));
    let role = role.ok_or_else(|| app.guesses.answer(peer, given, NO_TOKEN))?;
    Ok(Caller { role, expires_ms: None })
}

/// Lets a request through whose caller may make it.
pub(super) async fn authorize(
    State(app): State<Arc<App>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, ErrorAnswer> {
    let caller = caller(&app, peer, request.headers())?;
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if !reads && caller.expires_ms.is_some() {
        from_console(request.headers())?;
    }
    if !reads && caller.role != Role::Operator {
        return Err(ErrorAnswer::forbidden(
            "the viewer's token only reads: this needs the operator's (MILLPOND_TOKEN)",
        ));
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

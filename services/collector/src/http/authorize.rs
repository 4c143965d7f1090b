//! What a caller may do, decided in one place: every route under /api/v1 but those that `mod.rs` lists as open passes
//! [`authorize`]. A viewer reads (GET); everything else is for an operator, so a new route cannot be forgotten here. A
//! request with a browser's session must also show that it comes from the console, and from no other site.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use millpond_api::session::Role;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::token::Token;

use super::{App, session};

/// The header that the console sends with each request that changes something: a browser lets another site's page send it
/// only after a preflight, and no preflight is granted here.
const CONSOLE: (&str, &str) = ("x-millpond", "console");
/// The header in which a browser names the relation of the site that made the request.
const FETCH_SITE: &str = "sec-fetch-site";

const NO_TOKEN: &str = "send the header `Authorization: Bearer TOKEN` with the collector's token (MILLPOND_TOKEN, or MILLPOND_VIEWER_TOKEN to read only), or log in at /console/";

/// The tokens of the API.
pub(crate) struct Tokens {
    pub(crate) operator: Token,
    /// None: there are no viewers.
    pub(crate) viewer: Option<Token>,
}

impl Tokens {
    /// The token of a role; none when the role is not given to anybody.
    pub(super) fn of(&self, role: Role) -> Option<&Token> {
        match role {
            Role::Operator => Some(&self.operator),
            Role::Viewer => self.viewer.as_ref(),
        }
    }

    /// The role whose token passes.
    pub(super) fn role(&self, is: impl Fn(&Token) -> bool) -> Option<Role> {
        Role::ALL.iter().copied().find(|role| self.of(*role).is_some_and(&is))
    }

    /// The caller of a request: by a token, else by a session.
    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        match headers.get(header::AUTHORIZATION) {
            Some(given) => {
                let given = given.to_str().ok()?;
                self.role(|token| token.is_in(given)).map(|role| Caller { role, expires_ms: None })
            }
            None => session::caller(self, headers, millpond::now_ms()),
        }
    }
}

/// The caller of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) role: Role,
    /// When the session ends, Unix time in milliseconds; none for a token.
    pub(super) expires_ms: Option<i64>,
}

/// Lets a request through whose caller may make it.
pub(super) async fn authorize(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ErrorAnswer> {
    let caller = app.tokens.caller(request.headers());
    let caller = caller.ok_or_else(|| ErrorAnswer::new(StatusCode::UNAUTHORIZED, NO_TOKEN))?;
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

/// Whether a request comes from the console.
pub(super) fn from_console(headers: &HeaderMap) -> Result<(), ErrorAnswer> {
    let (name, value) = CONSOLE;
    if headers.get(name).is_none_or(|given| given != value) {
        let text = "what changes something with a session needs the header `X-Millpond: console`";
        return Err(ErrorAnswer::forbidden(text));
    }
    from_here(headers)
}

/// Whether no other site has made the browser send a request.
pub(super) fn from_here(headers: &HeaderMap) -> Result<(), ErrorAnswer> {
    let site = headers.get(FETCH_SITE).map(header::HeaderValue::as_bytes);
    let elsewhere = site.is_some_and(|site| [b"cross-site".as_slice(), b"same-site"].contains(&site));
    if elsewhere {
        Err(ErrorAnswer::forbidden("another site has asked for this: use the console itself"))
    } else {
        Ok(())
    }
}

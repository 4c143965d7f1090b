//! Who may ask what, decided in one place: all under /api/v1 but what `open` lists in `mod.rs` passes [`admit`]. A viewer
//! reads (GET); all else is for an operator, so a new route cannot be forgotten here. A browser's session must
//! also show that the console asks, and no other site.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use millpond_service::token::Token;
use serde::Serialize;
use utoipa::ToSchema;

use super::refusal::Refusal;
use super::{App, session};

/// What the console sends with everything that changes something: no other site can send it without being asked to
/// allow it first, and nothing here allows it.
const CONSOLE: (&str, &str) = ("x-millpond", "console");
/// What a browser says of who made it ask.
const FETCH_SITE: &str = "sec-fetch-site";

const NO_TOKEN: &str = "send the header `Authorization: Bearer TOKEN` with the collector's token (MILLPOND_TOKEN, or MILLPOND_VIEWER_TOKEN to read only), or log in at /console/";

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// Everything.
    Operator,
    /// Read.
    Viewer,
}

impl Role {
    pub(super) const ALL: [Self; 2] = [Self::Operator, Self::Viewer];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

/// The tokens that are known.
pub(crate) struct Tokens {
    pub(crate) operator: Token,
    /// None: nobody is a viewer.
    pub(crate) viewer: Option<Token>,
}

impl Tokens {
    /// The token of a role; none when nobody has the role.
    pub(super) fn of(&self, role: Role) -> Option<&Token> {
        match role {
            Role::Operator => Some(&self.operator),
            Role::Viewer => self.viewer.as_ref(),
        }
    }

    /// The role whose token passes.
    pub(super) fn role(&self, is: impl Fn(&Token) -> bool) -> Option<Role> {
        Role::ALL.into_iter().find(|role| self.of(*role).is_some_and(&is))
    }

    /// Who asks: by a token, else by a session.
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

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) role: Role,
    /// When its session ends; none for a token.
    pub(super) expires_ms: Option<i64>,
}

/// Lets through who may do what is asked.
pub(super) async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Result<Response, Refusal> {
    let caller = app.tokens.caller(request.headers());
    let caller = caller.ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, NO_TOKEN))?;
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if !reads && caller.expires_ms.is_some() {
        from_console(request.headers())?;
    }
    if !reads && caller.role != Role::Operator {
        return Err(Refusal::forbidden("the viewer's token only reads: this needs the operator's (MILLPOND_TOKEN)"));
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Whether the console itself asks.
pub(super) fn from_console(headers: &HeaderMap) -> Result<(), Refusal> {
    let (name, value) = CONSOLE;
    if headers.get(name).is_none_or(|given| given != value) {
        let text = "what changes something with a session needs the header `X-Millpond: console`";
        return Err(Refusal::forbidden(text));
    }
    from_here(headers)
}

/// Whether no other site has made the browser ask.
pub(super) fn from_here(headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get(FETCH_SITE).map(header::HeaderValue::as_bytes);
    let elsewhere = site.is_some_and(|site| [b"cross-site".as_slice(), b"same-site"].contains(&site));
    if elsewhere { Err(Refusal::forbidden("another site has asked for this: use the console itself")) } else { Ok(()) }
}

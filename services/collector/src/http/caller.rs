//! The caller of a request: the role that a token or a session gives, and whether a browser sent the request from the
//! console. What a caller may do is decided in `authorize`.

use axum::http::{HeaderMap, header};
use millpond_api::session::Role;
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::token::Token;

/// The header that the console sends with each request that changes something: a browser lets another site's page send it
/// only after a preflight, and no preflight is granted here.
const CONSOLE: (&str, &str) = ("x-millpond", "console");
/// The header in which a browser names the relation of the site that made the request.
const FETCH_SITE: &str = "sec-fetch-site";

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
}

/// The caller of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) role: Role,
    /// When the session ends, Unix time in milliseconds; none for a token.
    pub(super) expires_ms: Option<i64>,
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

//! Sessions of browsers, and what a caller may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::named::named;

named! {
    /// What a caller may do.
    Role {
        /// Everything.
        Operator = "operator",
        /// Read.
        Viewer = "viewer",
    }
}

/// What to log in with.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The viewer's or the operator's token.
    pub token: String,
}

/// A session that has begun.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    /// What its holder may do.
    pub role: Role,
    /// When it ends, Unix time in milliseconds.
    pub expires_ms: i64,
}

/// What the caller is known as.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// What the caller may do.
    pub role: Role,
    /// When the session ends, Unix time in milliseconds; null for a token.
    pub expires_ms: Option<i64>,
    /// The address of Kibana, for links into it; null when the collector was not given one.
    pub kibana_url: Option<String>,
}

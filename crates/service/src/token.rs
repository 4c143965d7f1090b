//! The token of a service's API: compared in constant time, and the key of seals over short texts (a session). A token is
//! never shown. No I/O, no clock.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Shortest token of an HTTP API, in characters.
const TOKEN_CHARS_MIN: usize = 8;
/// What stands before the token in credentials.
const SCHEME: &str = "Bearer";
/// What the key of the seals is made for: a seal is good for nothing else.
const SEALS: &[u8] = b"millpond seal v1";

/// Why a token is refused. Never shows one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too short to be safe.
    #[error("the token has {chars} characters, it must have {TOKEN_CHARS_MIN} or more: choose a longer one for {name}")]
    TooShort {
        /// The setting.
        name: &'static str,
        /// Its length.
        chars: usize,
    },
}

/// A token that callers have to know. Shows nothing of it.
#[derive(Clone)]
pub struct Token {
    /// Of one length whatever the token is, so that nothing of it can be measured.
    digest: [u8; 32],
    seals: Hmac<Sha256>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads the setting `name`.
    ///
    /// # Errors
    /// [`TokenError`]; its text has no part of the token.
    pub fn new(name: &'static str, text: &str) -> Result<Self, TokenError> {
        let chars = text.chars().count();
        let too_short = TokenError::TooShort { name, chars };
        if chars < TOKEN_CHARS_MIN {
            return Err(too_short);
        }
        // The token itself signs one text only: what comes of it is the key of all seals.
        let mut made = Hmac::<Sha256>::new_from_slice(text.as_bytes()).map_err(|_| too_short.clone())?;
        made.update(SEALS);
        let seals = Hmac::new_from_slice(&made.finalize().into_bytes()).map_err(|_| too_short)?;
        Ok(Self { digest: Sha256::digest(text.as_bytes()).into(), seals })
    }

    /// Whether this text is the token. In constant time.
    #[must_use]
    pub fn is(&self, given: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(given.as_bytes()).into();
        given.ct_eq(&self.digest).into()
    }

    /// A seal over a text, 43 characters of `[A-Za-z0-9_-]`: only who knows the token can make it.
    #[must_use]
    pub fn seal(&self, text: &str) -> String {
        let mut mac = self.seals.clone();
        mac.update(text.as_bytes());
        BASE64URL_NOPAD.encode(&mac.finalize().into_bytes())
    }

    /// Whether the seal is the one over this text. In constant time.
    #[must_use]
    pub fn sealed(&self, text: &str, seal: &str) -> bool {
        let Ok(seal) = BASE64URL_NOPAD.decode(seal.as_bytes()) else { return false };
        let mut mac = self.seals.clone();
        mac.update(text.as_bytes());
        mac.verify_slice(&seal).is_ok()
    }
}

/// The token of credentials that are `Bearer TOKEN`.
///
/// ```
/// use millpond_service::token::bearer;
/// assert_eq!((bearer("Bearer a b"), bearer("bearer a"), bearer("Basic a"), bearer("a")), (Some("a b"), Some("a"), None, None));
/// ```
#[must_use]
pub fn bearer(credentials: &str) -> Option<&str> {
    let (_, given) = credentials.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME))?;
    Some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::new("MILLPOND_TOKEN", text).unwrap()
    }

    #[test]
    fn a_token_is_itself_and_nothing_else() {
        let one = token("a token of ours");
        for (credentials, expected) in [
            ("Bearer a token of ours", true),
            ("bearer a token of ours", true),
            ("Bearer a token of our", false),
            ("Bearer a token of ours ", false),
            ("Basic a token of ours", false),
            ("a token of ours", false),
            ("Bearer ", false),
            ("", false),
        ] {
            assert_eq!(bearer(credentials).is_some_and(|given| one.is(given)), expected, "{credentials}");
        }
        assert!(!format!("{one:?}").contains("ours"));
    }

    #[test]
    fn short_ones_are_refused_without_being_shown() {
        let short = Token::new("MILLPOND_TOKEN", "seven77").unwrap_err();
        assert_eq!(short, TokenError::TooShort { name: "MILLPOND_TOKEN", chars: 7 });
        assert!(!short.to_string().contains("seven77"));
    }

    #[test]
    fn a_seal_is_of_one_text_and_one_token() {
        let (one, other) = (token("a token of ours"), token("another token"));
        let seal = one.seal("viewer.1.x");
        assert!(one.sealed("viewer.1.x", &seal) && token("a token of ours").sealed("viewer.1.x", &seal));
        assert!(!one.sealed("viewer.2.x", &seal) && !other.sealed("viewer.1.x", &seal));
        assert!(!one.sealed("viewer.1.x", "") && !one.sealed("viewer.1.x", "no base64!"));
        assert!(!one.sealed("viewer.1.x", &seal[..42]) && !one.sealed("viewer.1.x", &format!("{seal}A")));
        assert!(seal.len() == 43 && !one.is(&seal));
    }
}

//! Wrong tokens, by the address that they come from: a few in a minute are answered and logged, more are put off. The right token is
//! let through all the same: whoever shares an address with a guesser, or with a program that has an old token, is not locked out. What
//! keeps a token from being guessed is its length.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::error_answer::ErrorAnswer;

/// Wrong tokens of an address within [`GUESSES_WITHIN`] that are answered; the same one again is not counted.
const GUESSES_MAX: usize = 10;
/// How long a wrong token is counted.
const GUESSES_WITHIN: Duration = Duration::from_secs(60);
/// Addresses that are told apart; the wrong tokens of more are counted together.
const ADDRESSES_MAX: usize = 4096;
/// Bits of an IPv6 address that one caller does not choose.
const NETWORK_BITS: u32 = 64;

/// The wrong tokens of late.
#[derive(Default)]
pub struct Guesses {
    by_address: Mutex<HashMap<IpAddr, VecDeque<Guess>>>,
    hasher: RandomState,
}

struct Guess {
    at: Instant,
    /// Tells whether it is the same token again. Nothing of the token can be learned from it.
    hash: u64,
}

/// What a wrong token is.
#[derive(Debug, PartialEq, Eq)]
enum Noted {
    /// One more of this address; whether it is the last that is answered.
    New { last: bool },
    /// One of the last minute again.
    Again,
    /// One too many, for this long.
    TooMany(Duration),
}

impl Guesses {
    /// The answer to a wrong token of this peer; `text` says what would be right.
    pub fn answer(&self, peer: SocketAddr, token: &str, text: &str) -> ErrorAnswer {
        match self.note(peer.ip(), token, Instant::now()) {
            Noted::Again => ErrorAnswer::new(StatusCode::UNAUTHORIZED, text),
            Noted::New { last } => {
                let and = if last { "; further ones from there are not logged for a minute" } else { "" };
                tracing::warn!(%peer, "a wrong token has come{and}");
                ErrorAnswer::new(StatusCode::UNAUTHORIZED, text)
            }
            Noted::TooMany(wait) => {
                let text =
                    format!("{GUESSES_MAX} wrong tokens have come from this address within a minute: come again");
                ErrorAnswer::busy(wait.as_secs() + 1, text)
            }
        }
    }

    fn note(&self, from: IpAddr, token: &str, now: Instant) -> Noted {
        let hash = self.hasher.hash_one(token);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |guess: &Guess| now.saturating_duration_since(guess.at);
        by_address.retain(|_, guesses| {
            guesses.retain(|guess| age(guess) < GUESSES_WITHIN);
            !guesses.is_empty()
        });
        let from = network(from);
        let is_one_of_many = by_address.len() >= ADDRESSES_MAX && !by_address.contains_key(&from);
        let from = if is_one_of_many { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { from };
        let guesses = by_address.entry(from).or_default();
        if guesses.iter().any(|guess| guess.hash == hash) {
            return Noted::Again;
        }
        if guesses.len() >= GUESSES_MAX {
            return Noted::TooMany(
                guesses.front().map_or(Duration::ZERO, |first| GUESSES_WITHIN.saturating_sub(age(first))),
            );
        }
        guesses.push_back(Guess { at: now, hash });
        Noted::New { last: guesses.len() == GUESSES_MAX }
    }
}

/// What of an address one caller does not choose.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> NETWORK_BITS << NETWORK_BITS)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_a_few_in_any_minute() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let note = |from: &str, token: &str, second: u64| {
            guesses.note(address(from), token, start + Duration::from_secs(second))
        };
        for n in 0..GUESSES_MAX {
            let last = n + 1 == GUESSES_MAX;
            assert_eq!(note("192.0.2.1", &n.to_string(), n as u64), Noted::New { last });
            assert_eq!(note("192.0.2.1", "0", n as u64), Noted::Again, "a program with an old token guesses once");
        }
        let late = GUESSES_MAX as u64;
        assert_eq!(note("192.0.2.1", "more", late), Noted::TooMany(GUESSES_WITHIN - Duration::from_secs(late)));
        assert_eq!(note("::ffff:192.0.2.1", "more", late), Noted::TooMany(GUESSES_WITHIN - Duration::from_secs(late)));
        assert_eq!(note("192.0.2.2", "more", late), Noted::New { last: false }, "another address is not held up");
        assert_eq!(note("192.0.2.1", "more", 60), Noted::New { last: true }, "the first is old");
        assert!(matches!(note("192.0.2.1", "yet more", 60), Noted::TooMany(_)));
    }

    #[test]
    fn addresses_are_told_apart_up_to_a_bound_and_by_their_network() {
        assert_eq!(network(address("2001:db8::1:2:3:4")), address("2001:db8::"));
        assert_ne!(network(address("2001:db8:0:1::1")), network(address("2001:db8:0:2::1")));
        let (guesses, now) = (Guesses::default(), Instant::now());
        for n in 0..ADDRESSES_MAX as u32 {
            guesses.note(IpAddr::V4((0x0a00_0000 + n).into()), "x", now);
        }
        for n in 0..GUESSES_MAX as u32 {
            assert!(matches!(
                guesses.note(IpAddr::V4((0x0b00_0000 + n).into()), &n.to_string(), now),
                Noted::New { .. }
            ));
        }
        assert!(matches!(guesses.note(address("11.1.1.1"), "x", now), Noted::TooMany(_)), "of all others together");
        assert_eq!(guesses.note(address("10.0.0.0"), "x", now), Noted::Again);
        assert_eq!(guesses.by_address.lock().unwrap().len(), ADDRESSES_MAX + 1);
    }
}

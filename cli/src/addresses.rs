//! The HTTP addresses of one service, as a setting names them: one, or several with commas, each of which does as well.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond::bus::without_password;
use reqwest::Url;

/// The entry of a list that is no address of HTTP, for a person; a password is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for AddressError {}

/// Addresses, at least one, and which of them has answered last.
#[derive(Debug)]
pub(crate) struct Addresses {
    urls: Vec<String>,
    answered: AtomicUsize,
}

impl Addresses {
    /// Reads a list.
    ///
    /// # Errors
    /// When an entry is empty, or no address of HTTP.
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        let urls = text.split(',').zip(1..).map(|(entry, place)| {
            let url = entry.trim().trim_end_matches('/');
            let wrong = |why: &str| {
                let text = format!("address {place} of the list {why}; write http://HOST:PORT, several with commas");
                Err(AddressError(text))
            };
            match Url::parse(url) {
                _ if url.is_empty() => wrong("is empty"),
                Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => Ok(url.to_owned()),
                _ => wrong(&format!("({}) is not one of HTTP", without_password(url))),
            }
        });
        Ok(Self { urls: urls.collect::<Result<_, _>>()?, answered: AtomicUsize::new(0) })
    }

    /// All of them, as they were written.
    pub(crate) fn all(&self) -> &[String] {
        &self.urls
    }

    /// Each once, with its place: the one that answered last, then those behind it.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (usize, &str)> {
        let answered = self.answered.load(Ordering::Relaxed) % self.urls.len();
        let (before, behind) = self.urls.split_at_checked(answered).unwrap_or_default();
        (answered..).zip(behind).chain((0..).zip(before)).map(|(place, url)| (place, url.as_str()))
    }

    /// The address at this place has answered: the next request goes there first.
    pub(crate) fn prefer(&self, place: usize) {
        self.answered.store(place, Ordering::Relaxed);
    }

    /// The address that answered last takes too long: the next request goes to the one behind it first.
    pub(crate) fn prefer_next(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them without passwords, for a person.
    pub(crate) fn names(&self) -> String {
        without_password(&self.urls.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(addresses: &Addresses) -> Vec<usize> {
        addresses.in_order().map(|(place, _)| place).collect()
    }

    #[test]
    fn a_list_is_read_and_what_is_wrong_is_named() {
        let addresses = Addresses::parse("http://a:1, https://b/,http://[::1]:2").unwrap();
        assert_eq!(addresses.all(), ["http://a:1", "https://b", "http://[::1]:2"]);
        let check = |text: &str, expected: &str| {
            let said = Addresses::parse(text).unwrap_err().to_string();
            assert!(said.starts_with(expected) && !said.contains("pa55w0rd"), "{said}");
        };
        check("", "address 1 of the list is empty");
        check("http://a:1,,http://b:2", "address 2 of the list is empty");
        check("http://a:1,", "address 2 of the list is empty");
        check("http://a:1,ftp://u:pa55w0rd@b", "address 2 of the list (b) is not one of HTTP");
        check("a:1", "address 1 of the list (a:1) is not one of HTTP");
        check("http://", "address 1 of the list");
    }

    #[test]
    fn the_one_that_answered_last_is_the_first_and_each_comes_once() {
        let addresses = Addresses::parse("http://a,http://b,http://c").unwrap();
        assert_eq!(order(&addresses), [0, 1, 2]);
        addresses.prefer(2);
        assert_eq!(order(&addresses), [2, 0, 1]);
        addresses.prefer_next();
        assert_eq!(order(&addresses), [0, 1, 2]);
        addresses.prefer_next();
        assert_eq!(order(&addresses), [1, 2, 0]);
    }
}

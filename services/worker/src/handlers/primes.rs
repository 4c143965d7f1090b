//! The built-in kinds `is_prime` and `count_primes`: work that computes.

use serde::Deserialize;

use crate::call::{Call, Reply, reply};

/// Divides by 2 and by odd numbers up to the square root.
fn prime(n: u64) -> bool {
    if n < 4 {
        return n >= 2;
    }
    if n.is_multiple_of(2) {
        return false;
    }
    let mut divisor = 3;
    while divisor <= n / divisor {
        if n.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    true
}

/// `7` -> `true`.
pub(super) fn is_prime(call: &Call) -> Reply {
    reply(&prime(call.args()?))
}

/// A range of numbers, both ends included: `[1, 100]` or `{"from": 1, "to": 100}`.
#[derive(Deserialize)]
struct PrimeRange {
    from: u64,
    to: u64,
}

/// `[1, 100]` -> `25`.
pub(super) fn count_primes(call: &Call) -> Reply {
    let PrimeRange { from, to } = call.args()?;
    let mut count = 0u64;
    for n in from..=to {
        if n.is_multiple_of(4096) && call.stop.is_cancelled() {
            break;
        }
        count += u64::from(prime(n));
    }
    reply(&count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        assert_eq!((1..=10_000).filter(|&n| prime(n)).count(), 1229);
        assert!(!prime(0) && !prime(1) && prime(2) && prime(3) && !prime(25));
        assert!(prime(18_446_744_073_709_551_557));
    }
}

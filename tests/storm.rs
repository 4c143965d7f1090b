//! Storms of mutated input for decoders: each begins with what is right, and makes it wrong in many ways at once. A
//! target panics where a decoder is wrong; proptest shrinks the input and prints it. The unit tests of several crates include this.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// How long each storm lasts, in seconds: `MILLPOND_FUZZ_SECONDS=600` for a long one.
const SECONDS: &str = "MILLPOND_FUZZ_SECONDS";
const SECONDS_DEFAULT: u64 = 1;
/// What the inputs follow from: a number of 64 bits; another one each time where it is not set. What fails prints the one with
/// which it fails at once.
const SEED: &str = "MILLPOND_FUZZ_SEED";
/// Inputs of one runner.
const CASES: u32 = 500;

const NUMBERS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "2",
    "100",
    "101",
    "1000",
    "1001",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854",
    "9223372036855",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1.5",
    "1e308",
    "1e400",
    "null",
    "\"1\"",
];
const TEXTS: [&str; 26] = [
    "[",
    "]",
    "{",
    "}",
    "\"",
    ",",
    ":",
    "null",
    "\\ud800",
    "\\u0000",
    "\u{feff}",
    "é",
    "🦀",
    "\r\n",
    "\t",
    "/",
    "+",
    "..",
    "*",
    ">",
    "-",
    "300y",
    "18446744073709551615s",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
    "@every 1ns",
];

/// One way to make an input wrong.
#[derive(Debug, Clone)]
enum Mutation {
    /// Another number in the place of one.
    Number(Index, Index),
    Text(Index, Index),
    Byte(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    /// A part of the input once more, elsewhere.
    Copy(Index, usize, Index),
}

impl Mutation {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            3 => (any::<Index>(), any::<Index>()).prop_map(|(at, number)| Self::Number(at, number)),
            2 => (any::<Index>(), any::<Index>()).prop_map(|(at, text)| Self::Text(at, text)),
            1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Self::Byte(at, byte)),
            1 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            1 => (any::<Index>(), 1..24_usize).prop_map(|(at, len)| Self::Delete(at, len)),
            1 => (any::<Index>(), 1..60_usize, any::<Index>()).prop_map(|(from, len, to)| Self::Copy(from, len, to)),
        ]
    }

    fn apply(&self, input: &mut Vec<u8>) {
        let place = |at: &Index, len: usize| at.index(len + 1);
        match self {
            Self::Number(at, number) => {
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let starts: Vec<usize> =
                    (0..input.len()).filter(|&n| is_digit(&input[n]) && (n == 0 || !is_digit(&input[n - 1]))).collect();
                if starts.is_empty() {
                    return;
                }
                let start = starts[at.index(starts.len())];
                let len = input[start..].iter().take_while(|byte| is_digit(byte)).count();
                input.splice(start..start + len, NUMBERS[number.index(NUMBERS.len())].bytes());
            }
            Self::Text(at, text) => {
                let at = place(at, input.len());
                input.splice(at..at, TEXTS[text.index(TEXTS.len())].bytes());
            }
            Self::Byte(at, byte) if !input.is_empty() => {
                let at = at.index(input.len());
                input[at] = *byte;
            }
            Self::Byte(..) => {}
            Self::Insert(at, bytes) => {
                let at = place(at, input.len());
                input.splice(at..at, bytes.iter().copied());
            }
            Self::Delete(at, len) => {
                let at = place(at, input.len());
                input.drain(at..(at + len).min(input.len()));
            }
            Self::Copy(from, len, to) => {
                let from = place(from, input.len());
                let part = input[from..(from + len).min(input.len())].to_vec();
                let to = place(to, input.len());
                input.splice(to..to, part);
            }
        }
    }
}

/// A seed that is another one each time.
fn of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// Gives mutated inputs to `target` for a while; the corpus itself comes first, as it is.
pub(crate) fn storm(name: &str, corpus: &[&str], target: impl Fn(&[u8])) {
    corpus.iter().for_each(|input| target(input.as_bytes()));
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS_DEFAULT);
    let first_seed = std::env::var(SEED).map_or_else(|_| of_now(), |text| text.parse().expect(SEED));
    let (began, length) = (Instant::now(), Duration::from_secs(seconds));
    let count = Cell::new(corpus.len() as u64);
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let inputs = (any::<Index>(), vec(Mutation::any(), 1..7)).prop_map(|(seed, mutations)| {
        let mut input = corpus[seed.index(corpus.len())].as_bytes().to_vec();
        mutations.iter().for_each(|mutation| mutation.apply(&mut input));
        input
    });
    let mut seed = first_seed;
    while began.elapsed() < length {
        // A new one each time: a runner counts its successes, and runs nothing more once it has had them.
        let config = Config { rng_seed: RngSeed::Fixed(seed), ..config.clone() };
        let ran = TestRunner::new(config).run(&inputs, |input| {
            // A target that is slow ends in time too, and so does shrinking.
            if began.elapsed() < length {
                target(&input);
                count.set(count.get() + 1);
            }
            Ok(())
        });
        if let Err(wrong) = ran {
            panic!("{name}: {wrong}\nthe same inputs: {SEED}={seed}");
        }
        seed = seed.wrapping_add(1);
    }
    let count = count.get();
    println!("{name}: {count} inputs in {seconds} s, {SEED}={first_seed}");
}

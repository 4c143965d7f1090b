//! The built-in kinds `echo`, `square`, `sleep` and `spin`.

use std::time::{Duration, Instant};

use millpond::outcome::Failure;
use serde_json::value::RawValue;

use crate::call::{Call, Reply, reply};

/// Answers with its arguments.
pub(super) async fn echo(call: Call) -> Reply {
    let value: Box<RawValue> = call.args()?;
    Ok(value)
}

/// `12` -> `144`, for whole numbers whose square fits into 128 bits.
pub(super) async fn square(call: Call) -> Reply {
    let n: i128 = call.args()?;
    match n.checked_mul(n) {
        Some(square) => reply(&square),
        None => Err(Failure::fatal("bad_arguments", format!("the square of {n} does not fit 128 bits"))),
    }
}

fn seconds(call: &Call) -> Result<Duration, Failure> {
    let seconds: f64 = call.args()?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Failure::fatal("bad_arguments", format!("{seconds} is not a number of seconds from 0")))
}

/// Waits for a number of seconds without computing, and answers with the number.
pub(super) async fn sleep(call: Call) -> Reply {
    let time = seconds(&call)?;
    tokio::time::sleep(time).await;
    reply(&time.as_secs_f64())
}

/// Computes for a number of seconds on one core, and answers with the number.
pub(super) fn spin(call: &Call) -> Reply {
    let time = seconds(call)?;
    let start = Instant::now();
    while start.elapsed() < time {
        if call.stop.is_cancelled() {
            return Err(Failure::new("stopped", "nobody waits for it any more"));
        }
        std::hint::black_box((0..10_000u64).fold(0, u64::wrapping_add));
    }
    reply(&time.as_secs_f64())
}

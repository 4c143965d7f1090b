//! Handlers with spans of their own: they are below their attempts, whichever way the handler runs, and are exported with those of
//! the worker, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//!     OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 millpond up -- cargo run --example traced
//!     millpond submit fetch '"a page"' --continuation count --continuation rank

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use millpond_worker::Worker;
use tracing::{Instrument, info_span};

async fn fetch(page: String) -> Result<String, Infallible> {
    let reading = tokio::time::sleep(Duration::from_millis(10)).instrument(info_span!("read", page));
    reading.await;
    Ok(page)
}

fn count(page: String) -> Result<usize, Infallible> {
    info_span!("split").in_scope(|| Ok(page.split(' ').count()))
}

fn rank(words: usize) -> Result<usize, Infallible> {
    let _sorting = info_span!("sort", words).entered();
    info_span!("compare").in_scope(|| Ok(words * 10))
}

fn main() -> ExitCode {
    Worker::builder()
        .handle("fetch", fetch)
        .handle_blocking("count", count)
        .handle_blocking("rank", rank)
        .isolate("rank")
        .main()
}

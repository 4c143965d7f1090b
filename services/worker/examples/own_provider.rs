//! A program with a tracer provider of its own: publish, wait and attempts are spans of that provider, below the program's and above
//! the handler's. It starts a nats-server and a worker within itself, and exports to `OTEL_EXPORTER_OTLP_ENDPOINT`.
//!
//!     OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run --example own_provider

#![expect(clippy::print_stdout, reason = "an example shows what comes")]

use std::convert::Infallible;
use std::time::Duration;

use millpond::NewTask;
use millpond_worker::Worker;
use millpond_worker::testing::TestCluster;
use opentelemetry::global;
use opentelemetry::trace::{FutureExt, TraceContextExt, Tracer};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

const WITHIN: Duration = Duration::from_secs(20);

async fn greet(name: String) -> Result<String, Infallible> {
    let tracer = global::tracer("own");
    Ok(tracer.in_span("write a greeting", |_| format!("hello {name}")))
}

async fn order() -> Result<String, Box<dyn std::error::Error>> {
    let mut cluster = TestCluster::start().await?;
    cluster.worker(Worker::builder().handle("greet", greet))?;
    let task = NewTask::json("default", "greet", "you")?.continuation("greet".parse()?).awaited();
    let greeting = cluster.client().submit(&task, WITHIN).await?.wait(WITHIN).await?;
    cluster.stop().await?;
    Ok(greeting)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What the exporter's HTTP client encrypts with; the features of this workspace leave that to the program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = SpanExporter::builder().with_http().build()?;
    let resource = Resource::builder().with_service_name("own-program").build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    global::set_tracer_provider(provider.clone());
    let mine = global::tracer("own").start("order");
    let ordered = order().with_context(opentelemetry::Context::current_with_span(mine));
    println!("{}", tokio::runtime::Runtime::new()?.block_on(ordered)?);
    provider.shutdown()?;
    Ok(())
}

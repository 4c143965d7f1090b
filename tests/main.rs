//! The integration tests: one binary, a real nats-server per test on a free port, real processes that are really
//! killed. `harness` starts them; each file tries one promise of the README.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]

mod addresses;
mod attacks;
mod bad_input;
mod batches;
mod bounded;
mod bounds;
mod browser;
mod calls;
mod cancel;
mod chains;
mod children;
mod circles;
mod clients;
mod clocks;
mod cluster;
mod collector_http;
mod console;
mod counts;
mod dead_letters;
mod deleted;
mod examples;
mod exit_codes;
mod exports;
mod failpoints;
mod faults;
mod handler_accidents;
mod handlers_docs;
mod harness;
mod http_limits;
mod http_mistakes;
mod identity;
mod interface;
mod later;
mod main_job;
mod many_jobs;
mod many_queues;
mod mistakes;
mod multiprocessing_docs;
mod names;
mod operate;
mod operator_mode;
mod otlp_sink;
mod payloads;
mod pipes;
mod plain_publish;
mod poison;
mod postgres;
mod problems;
mod producer_http;
mod queue_order;
mod refusals;
mod resume;
mod roles;
mod rust_client;
mod rust_worker;
mod schedules;
mod schemathesis;
mod signing;
mod start;
mod store;
mod streams;
mod telemetry;
mod tidy;
mod time;
mod tls;
mod traces;
mod unique;
mod up;
mod values;
mod verbs;
mod waiting;
mod waiting_causes;
mod wire_number;

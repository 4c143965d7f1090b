//! What the services have in common: the program (`program`), its settings (`settings`), how its HTTP is reached (`listen`,
//! `certificate`) and served (`server`, `connections`, `upload`, `taken_stream`), requests and errors (`request`, `error_answer`), bytes
//! with ranges and a checksum (`representation`), the token of its API (`token`) and wrong ones (`guesses`), health and metrics (`status_routes`),
//! why a file cannot be written (`unwritable`). Not here: what a service does.

mod certificate;
mod connections;
pub mod error_answer;
pub mod guesses;
pub mod listen;
pub mod program;
pub mod representation;
pub mod request;
pub mod reserved_port;
pub mod server;
pub mod settings;
pub mod status_routes;
mod taken_stream;
pub mod token;
pub mod unwritable;
mod upload;

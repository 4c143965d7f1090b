//! Calls and pipes: `service` answers calls as a NATS micro service, `pipe` is one side of a conversation, and
//! `pipe_driver` sends and receives for it.

pub mod pipe;
mod pipe_driver;
mod pipe_state;
pub mod service;

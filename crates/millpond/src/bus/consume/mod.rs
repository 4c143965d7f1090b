//! From a stream to a running task: `pull` brings messages, `lease` holds each until it is settled, `renewal` keeps
//! leases alive, `ownership` asks other workers whether they hold a task, `membership_barrier` waits for workers that
//! are on their way back.

pub mod lease;
mod membership_barrier;
pub(in crate::bus) mod ownership;
pub mod pull;
mod queue_order;
mod renewal;
mod server_record;
pub mod start_records;

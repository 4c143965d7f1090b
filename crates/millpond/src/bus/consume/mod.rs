//! From a stream to a running task: `pull` brings messages, `lease` is one of them until it is settled, `lease_table`
//! is what a worker holds, `renewal` keeps it alive, `queue_records` is what outlives a queue's consumers, `ownership` asks other workers whether they hold a task, `membership_barrier` waits for workers that
//! are on their way back, `name_claim` keeps a worker's name its own.

pub mod lease;
mod lease_table;
mod membership_barrier;
pub mod name_claim;
pub(in crate::bus) mod ownership;
pub mod pull;
mod queue_order;
pub mod queue_records;
mod renewal;
mod server_record;
pub mod start_records;

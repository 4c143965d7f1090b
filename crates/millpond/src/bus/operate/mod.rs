//! What an operator does: queues (pause, purge), cancellation, requests from one service to another (`control`),
//! what nobody can read (`poison`), what would never end where it lies (`misaddressed`), and a TASKS that stands still (`restore`).

pub mod cancel;
pub mod control;
pub mod later;
pub mod misaddressed;
pub mod poison;
pub mod queues;
pub mod restore;

//! What an operator does: queues (pause, purge), cancellation, requests from one service to another (`control`),
//! and what nobody can read (`poison`).

pub mod cancel;
pub mod control;
pub mod poison;
pub mod queues;

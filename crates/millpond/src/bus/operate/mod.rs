//! What an operator does: queues (pause, purge), cancellation, requests from one service to another (`control`),
//! what nobody can read (`poison`), and what would never end where it lies (`misaddressed`).

pub mod cancel;
pub mod control;
pub mod misaddressed;
pub mod poison;
pub mod queues;

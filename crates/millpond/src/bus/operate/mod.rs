//! What an operator does: queues (pause, purge), cancellation, and requests from one service to another (`control`).

pub mod cancel;
pub mod control;
pub mod queues;

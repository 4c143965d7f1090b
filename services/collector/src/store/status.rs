//! How statuses are stored: that of a task as the number of its place in [`TaskStatus::ALL`], so that a later one is larger;
//! that of an attempt by its name.

use millpond_api::tasks::{AttemptStatus, TaskStatus};

use super::sql::{Cell, FromCell, Value};

/// The numbers that statements compare with.
const _: () = assert!(TaskStatus::Partial as u8 == 0 && TaskStatus::Retrying as u8 == 1 && TaskStatus::Dead as u8 == 2);
const _: () = assert!(TaskStatus::Done as u8 == 3 && TaskStatus::Cancelled as u8 == 4);

impl From<TaskStatus> for Value<'_> {
    fn from(status: TaskStatus) -> Self {
        i64::from(status as u8).into()
    }
}

impl FromCell<'_> for TaskStatus {
    const WANTED: &'static str = "the status of a task";

    fn from_cell(cell: &Cell) -> Option<Self> {
        Self::ALL.get(usize::try_from(i64::from_cell(cell)?).ok()?).copied()
    }
}

impl FromCell<'_> for AttemptStatus {
    const WANTED: &'static str = "the status of an attempt";

    fn from_cell(cell: &Cell) -> Option<Self> {
        let name = <&str>::from_cell(cell)?;
        Self::ALL.iter().copied().find(|status| status.name() == name)
    }
}

//! The same answers for clients, which have no HTTP: where a task or a job stands, and its cancellation, requested on
//! `ctl.request.status` and `ctl.request.cancel` by their names. Of several collectors one answers.

use std::sync::Arc;

use axum::Json;
use millpond::bus::Bus;
use millpond::bus::error::BusError;
use millpond::bus::operate::control::{CTL_CANCEL, CTL_STATUS, ControlReply, ControlRequest, ControlRequests};
use millpond::client::Named;
use millpond::task::check_task_id;
use millpond::wire::decode::decode;
use millpond_api::tasks::{CancelTask, TaskIdQuery};
use millpond_service::error_answer::ErrorAnswer;
use millpond_service::request::check_name;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::App;
use super::cancel::{cancel_job, cancel_task};
use super::explain::explanation;
use super::read::job_row;

/// The role that acts, in records.
const CLIENT: &str = "client";
/// Requests that are answered at once. A search for a task may read a long queue.
const REQUESTS_MAX: usize = 16;

/// What clients request.
pub(crate) struct ClientRequests {
    status: ControlRequests,
    cancel: ControlRequests,
}

impl ClientRequests {
    /// Listens.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn listen(bus: &Bus) -> Result<Self, BusError> {
        let (status, cancel) = (bus.serve(CTL_STATUS, "collector").await?, bus.serve(CTL_CANCEL, "collector").await?);
        Ok(Self { status, cancel })
    }

    /// Answers until the connection is closed for good.
    pub(crate) async fn serve(mut self, app: Arc<App>) {
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        let mut answering = JoinSet::new();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (request, cancels) = tokio::select! {
                request = self.status.next() => (request, false),
                request = self.cancel.next() => (request, true),
            };
            let Some(request) = request else { return };
            let app = app.clone();
            answering.spawn(async move {
                answer(&app, request, cancels).await;
                drop(permit);
            });
            while answering.try_join_next().is_some() {}
        }
    }
}

async fn answer(app: &App, request: ControlRequest, cancels: bool) {
    let done = match decode(&request.payload) {
        Ok(named) if cancels => cancelled(app, named).await,
        Ok(named) => standing(app, named).await,
        Err(error) => Err(ErrorAnswer::bad_request(format!("neither a task nor a job: {error}"))),
    };
    let answer = match done {
        Ok(answer) => ControlReply::Ok(answer),
        Err(error) if error.status().is_client_error() => ControlReply::Refused(error.text().to_owned()),
        Err(error) => ControlReply::Error(error.text().to_owned()),
    };
    request.answer(&answer).await;
}

async fn standing(app: &App, named: Named) -> Result<Box<RawValue>, ErrorAnswer> {
    match named {
        Named::Task { queue, kind, id } => {
            check_named(&queue, &kind, &id)?;
            json(&explanation(app, TaskIdQuery { id, queue: Some(queue), kind: Some(kind) }).await?)
        }
        Named::Job { job } => {
            let Json(row) = job_row(app, job).await?;
            json(&row)
        }
    }
}

async fn cancelled(app: &App, named: Named) -> Result<Box<RawValue>, ErrorAnswer> {
    match named {
        Named::Task { queue, kind, id } => {
            check_named(&queue, &kind, &id)?;
            json(&cancel_task(app, CancelTask { id, queue: Some(queue), kind: Some(kind) }, CLIENT).await?)
        }
        Named::Job { job } => json(&cancel_job(app, job, CLIENT).await?),
    }
}

fn check_named(queue: &str, kind: &str, id: &str) -> Result<(), ErrorAnswer> {
    check_name("queue", queue)?;
    check_name("kind", kind)?;
    check_task_id(id).map_err(|wrong| ErrorAnswer::bad_request(wrong.to_string()))
}

fn json(answer: &impl Serialize) -> Result<Box<RawValue>, ErrorAnswer> {
    to_raw_value(answer).map_err(|fault| ErrorAnswer::unavailable(fault.to_string()))
}

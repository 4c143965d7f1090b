//! Calls as they come to a worker: a NATS micro service (ADR-32,
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-32.md>), one endpoint for each kind of a queue.
//! Not the NATS client's own: its error answers have no body, and ours hold the failure with its evidence. One service
//! and not one per queue, because a worker may answer a message once only (`allow_responses`), `$SRV.PING` too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::bus::error::BusError;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, Subscription, from_nats, to_nats};
use crate::call::{Code, error_line, read_failure, read_result};
use crate::limits::PIPE_WINDOW;
use crate::outcome::Failure;
use crate::wire::headers::{
    HEADER_BYTES, HEADER_CALL_ERROR, HEADER_CALL_ERROR_CODE, HEADER_PIPE, HEADER_PIPE_CAPACITY, HEADER_WORKER, Headers,
};
use crate::wire::streams::STREAM_TASKS;
use crate::wire::subject;

/// The service's name; and of the workers of this group one hears each call.
const SERVICE: &str = "millpond";
/// The value of [`HEADER_BYTES`].
const BYTES_TRUE: &str = "true";
/// How long the server may take to confirm that the subscriptions have ended.
const LAST_WITHIN: Duration = Duration::from_secs(1);
/// The number of messages after which a subscription ends, for a subscription that is to end now: nats-server does not
/// read such a number and ends it at once, while the client still takes what is on its way. Its own `drain` does not: it forgets the
/// subscription before the server has heard of it, and a call that was sent in between is lost.
const AT_ONCE: u64 = u64::MAX;

/// The counters of an endpoint since it started.
#[derive(Default)]
struct EndpointCounters {
    requests: u64,
    errors: u64,
    last_error: String,
    busy: Duration,
}

/// One kind of one queue.
struct Endpoint {
    name: String,
    queue: String,
    kind: String,
    subject: String,
    done: Mutex<EndpointCounters>,
}

impl Endpoint {
    fn done(&self) -> MutexGuard<'_, EndpointCounters> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> EndpointStats<'_> {
        let done = self.done();
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        EndpointStats {
            name: &self.name,
            subject: &self.subject,
            queue_group: SERVICE,
            num_requests: done.requests,
            num_errors: done.errors,
            last_error: done.last_error.clone(),
            processing_time: ns(done.busy),
            average_processing_time: ns(done.busy).checked_div(done.requests).unwrap_or(0),
        }
    }
}

#[derive(Serialize)]
struct EndpointInfo<'a> {
    name: &'a str,
    subject: &'a str,
    queue_group: &'a str,
    metadata: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct EndpointStats<'a> {
    name: &'a str,
    subject: &'a str,
    queue_group: &'a str,
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    /// In nanoseconds.
    processing_time: u64,
    average_processing_time: u64,
}

/// The answer of a service about itself; `rest` depends on the verb of the request.
#[derive(Serialize)]
struct ServiceAnswer<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
    id: &'a str,
    version: &'a str,
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    rest: T,
}

#[derive(Serialize)]
struct Ping {}

#[derive(Serialize)]
struct Info<'a> {
    description: &'a str,
    endpoints: Vec<EndpointInfo<'a>>,
}

#[derive(Serialize)]
struct MicroStats<'a> {
    started: &'a str,
    endpoints: Vec<EndpointStats<'a>>,
}

/// The service as it describes itself.
struct MicroService {
    worker: Arc<str>,
    id: String,
    started: String,
    /// By their subjects.
    endpoints: BTreeMap<String, Arc<Endpoint>>,
}

impl MicroService {
    fn answer(&self, verb: &str) -> Option<Vec<u8>> {
        let endpoints = || self.endpoints.values().map(AsRef::as_ref);
        let text = match verb {
            "PING" => serde_json::to_vec(&self.described("io.nats.micro.v1.ping_response", Ping {})),
            "INFO" => {
                let endpoints = endpoints().map(|e| EndpointInfo {
                    name: &e.name,
                    subject: &e.subject,
                    queue_group: SERVICE,
                    metadata: BTreeMap::from([("queue", e.queue.as_str()), ("kind", &e.kind)]),
                });
                let info = Info { description: "calls that a worker answers", endpoints: endpoints.collect() };
                serde_json::to_vec(&self.described("io.nats.micro.v1.info_response", info))
            }
            "STATS" => {
                let stats =
                    MicroStats { started: &self.started, endpoints: endpoints().map(Endpoint::stats).collect() };
                serde_json::to_vec(&self.described("io.nats.micro.v1.stats_response", stats))
            }
            _ => return None,
        };
        text.ok()
    }

    fn described<T>(&self, kind: &'static str, rest: T) -> ServiceAnswer<'_, T> {
        let metadata = BTreeMap::from([("worker", &*self.worker)]);
        ServiceAnswer { kind, name: SERVICE, id: &self.id, version: env!("CARGO_PKG_VERSION"), metadata, rest }
    }
}

/// The calls of a worker's queues and kinds, as they come; and the answers to `nats micro ls|info|stats`.
pub struct CallReceiver {
    bus: Bus,
    service: MicroService,
    messages: SelectAll<Subscription>,
}

/// One call. `answer` or `refuse` answers it, or `accept` opens a pipe, which `note` counts when it has ended.
pub struct IncomingCall {
    bus: Bus,
    endpoint: Arc<Endpoint>,
    worker: Arc<str>,
    reply: Subject,
    since: Instant,
    /// As they came.
    pub headers: Headers,
    /// The arguments.
    pub payload: Bytes,
}

impl Bus {
    /// Answers calls of these kinds on these queues, as `worker`.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed, or a queue or kind is not a token.
    pub async fn receive_calls(
        &self,
        worker: &str,
        queues: &[String],
        kinds: &[&str],
    ) -> Result<CallReceiver, BusError> {
        let service = MicroService {
            worker: worker.into(),
            id: crate::random_token(),
            started: jiff::Timestamp::now().to_string(),
            endpoints: BTreeMap::new(),
        };
        let mut calls = CallReceiver { bus: self.clone(), service, messages: SelectAll::new() };
        for queue in queues {
            for kind in kinds {
                let subject = subject::call(queue, kind).map_err(|e| BusError::refused(kind, e.to_string()))?;
                calls.listen(&subject, Some(SERVICE)).await?;
                let (queue, kind, name) = (queue.clone(), (*kind).to_owned(), format!("{queue}-{kind}"));
                let endpoint = Endpoint { name, queue, kind, subject: subject.clone(), done: Mutex::default() };
                calls.service.endpoints.insert(subject, Arc::new(endpoint));
            }
        }
        for verb in ["PING", "INFO", "STATS"] {
            let of_this = format!(".{SERVICE}.{}", calls.service.id);
            for whose in ["", &format!(".{SERVICE}"), &of_this] {
                calls.listen(&format!("$SRV.{verb}{whose}"), None).await?;
            }
        }
        // A caller that sees this worker's record may call.
        self.flush().await;
        Ok(calls)
    }
}

impl CallReceiver {
    async fn listen(&mut self, subject: &str, group: Option<&str>) -> Result<(), BusError> {
        self.messages.push(match group {
            Some(group) => self.bus.listen_in_group(subject, group).await?,
            None => self.bus.listen(subject).await?,
        });
        Ok(())
    }

    /// The next call; none when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Safe: at the worst a request of `nats micro` is not answered.
    pub async fn next(&mut self) -> Option<IncomingCall> {
        loop {
            let message = self.messages.next().await?;
            if let Some(called) = self.called(&message) {
                return Some(called);
            }
            let Some(reply) = message.reply else { continue };
            // `$SRV.<verb>`, with the name or id of the service where the request names one.
            let answer = message.subject.split('.').nth(1).and_then(|verb| self.service.answer(verb));
            if let Some(answer) = answer {
                let _ = self.bus.client.publish(reply, answer.into()).await;
            }
        }
    }

    /// None when the message is no call, or was published without a reply subject: nobody waits for an answer.
    fn called(&self, message: &Message) -> Option<IncomingCall> {
        let endpoint = self.service.endpoints.get(message.subject.as_str())?;
        Some(IncomingCall {
            bus: self.bus.clone(),
            endpoint: endpoint.clone(),
            worker: self.service.worker.clone(),
            reply: message.reply.clone()?,
            since: Instant::now(),
            headers: from_nats(message.headers.as_ref()),
            payload: message.payload.clone(),
        })
    }

    /// Takes no more calls: others in the group get them. What had come already is left to the caller.
    pub async fn stop(mut self) -> Vec<IncomingCall> {
        for messages in self.messages.iter_mut() {
            messages.end_after(AT_ONCE).await;
        }
        // The server reads and answers in order: with this answer everything is here that was sent before.
        let answered = tokio::time::timeout(LAST_WITHIN, stream_state(&self.bus, STREAM_TASKS)).await;
        if !matches!(answered, Ok(Ok(_))) {
            tracing::debug!("the server does not confirm that no more calls come");
        }
        let mut came = Vec::new();
        for messages in self.messages.iter_mut() {
            while let Some(Some(message)) = tokio::task::unconstrained(messages.next()).now_or_never() {
                came.push(message);
            }
        }
        came.iter().filter_map(|message| self.called(message)).collect()
    }
}

impl IncomingCall {
    /// Who is to run it.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.endpoint.queue
    }

    /// Which handler runs it.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.endpoint.kind
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(in crate::bus) fn bus(&self) -> &Bus {
        &self.bus
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_WORKER, &*self.worker);
        headers
    }

    async fn send(&self, headers: HeaderMap, payload: Bytes) {
        let sent = self.bus.client.publish_with_headers(self.reply.clone(), headers, payload).await;
        if let Err(error) = sent {
            tracing::debug!(%error, subject = %self.endpoint.subject, "an answer was not sent");
        }
    }

    /// Answers it with its result; `is_bytes`: it is bytes that are no JSON, `{"base64":"…"}`.
    pub async fn answer(self, result: Bytes, is_bytes: bool) {
        let mut headers = self.own_headers();
        if is_bytes {
            headers.insert(HEADER_BYTES, BYTES_TRUE);
        }
        self.send(headers, result).await;
        self.note(None);
    }

    /// Answers that it has no result, and why.
    pub async fn refuse(self, code: Code, failure: &Failure) {
        let line = error_line(failure);
        let mut headers = self.own_headers();
        headers.insert(HEADER_CALL_ERROR, line.as_str());
        headers.insert(HEADER_CALL_ERROR_CODE, code.number().to_string());
        self.send(headers, serde_json::to_vec(failure).unwrap_or_default().into()).await;
        self.note(Some(failure));
    }

    /// Answers that the pipe that it requests begins.
    pub(in crate::bus) async fn accept(&self, id: &str) {
        let mut headers = self.own_headers();
        headers.insert(HEADER_PIPE, id);
        headers.insert(HEADER_PIPE_CAPACITY, PIPE_WINDOW.to_string());
        self.send(headers, Bytes::new()).await;
    }

    /// Counts it in the statistics of its service, once its pipe has ended.
    pub fn note(self, failure: Option<&Failure>) {
        let mut done = self.endpoint.done();
        done.requests += 1;
        done.busy += self.since.elapsed();
        if let Some(failure) = failure {
            done.errors += 1;
            done.last_error = error_line(failure);
        }
    }
}

/// How a call went, for the caller.
pub(crate) enum CallOutcome {
    /// An answer, or a refusal.
    Answered(CallReply),
    /// No worker listens.
    NoWorker,
    /// No answer came in time.
    NoAnswer,
    /// The connection fails.
    Broken(String),
}

/// An answer as it came.
pub(crate) struct CallReply {
    headers: Headers,
    /// The result, or the failure.
    payload: Bytes,
}

impl CallReply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Why there is no result, if so.
    pub(crate) fn error(&self) -> Option<(Code, Failure)> {
        let code = Code::of(self.header(HEADER_CALL_ERROR_CODE)?);
        let line = || Failure::new("error", self.header(HEADER_CALL_ERROR).unwrap_or("no reason given"));
        Some((code, read_failure(&self.payload).unwrap_or_else(|_| line())))
    }

    /// The result, and whether it is bytes that are no JSON.
    pub(crate) fn result(&self) -> Result<(Box<RawValue>, bool), String> {
        let is_bytes = self.header(HEADER_BYTES) == Some(BYTES_TRUE);
        Ok((read_result(&self.payload, is_bytes)?, is_bytes))
    }
}

impl Bus {
    /// Sends a request to `subject`, and waits for one answer.
    pub(crate) async fn call(&self, subject: &str, headers: &Headers, payload: Bytes, within: Duration) -> CallOutcome {
        // The client's own time limit is not ours.
        let request = async_nats::Request::new().headers(to_nats(headers)).payload(payload).timeout(None);
        let outcome = tokio::time::timeout(within, self.client.send_request(subject.to_owned(), request)).await;
        match outcome {
            Err(_) => CallOutcome::NoAnswer,
            Ok(Ok(message)) => {
                let headers = from_nats(message.headers.as_ref());
                CallOutcome::Answered(CallReply { headers, payload: message.payload })
            }
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => CallOutcome::NoWorker,
            Ok(Err(error)) => CallOutcome::Broken(error.to_string()),
        }
    }
}

//! The only place that names `async_nats`: a connection in a role, and what is built on it, in folders by direction:
//! `publish` stores messages, `consume` brings tasks to a worker, `read` reads what is stored, `call` answers calls
//! and carries pipes, `operate` is what an operator does. `topology` makes streams and buckets.

mod access;
pub mod call;
pub mod consume;
pub mod error;
pub mod operate;
pub mod publish;
pub mod read;
pub mod server_clock;
pub mod shared_state;
mod subscription;
pub mod topology;
mod wait_log;
mod wire_check;

pub use access::without_password;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::{ClientError, ConnectOptions, Event, ServerAddr};
use tokio::sync::{Semaphore, watch};

use crate::config::{ConnectSettings, Place};
use crate::limits::SERVER_PAYLOAD_BYTES_MAX;
use crate::signature::Signer;
use crate::wire::header_names;
use crate::wire::headers::Headers;
use crate::wire::number::WireMismatch;

use error::describe;
use publish::acks::PublishAcks;
use read::buckets::OpenBuckets;
use read::job_results::{CATCH_UPS_MAX, READERS_MAX};
pub(crate) use subscription::Subscription;
use wait_log::{CONNECT_WITHIN, Reconnects, WaitLog, is_refusal};
use wire_check::WireCheck;

/// How long the client may take to report a new connection.
const CONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// How long a request to the server waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A NATS user with its own permissions and inboxes (deploy/nats/roles.conf).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes streams and buckets; nobody else may.
    Setup,
    /// Publishes tasks and nothing else.
    Publisher,
    /// The CLI and producer programs.
    Client,
    /// The producer service.
    Producer,
    /// Runs tasks.
    Worker,
    /// Keeps what ended.
    Collector,
}

impl Role {
    /// Its name: the NATS user, and part of its inbox.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Publisher => "publisher",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Worker => "worker",
            Self::Collector => "collector",
        }
    }

    /// Whether it may read the state of the streams, and so compares their wire number with its own. `setup` writes it.
    fn reads_streams(self) -> bool {
        !matches!(self, Self::Setup | Self::Publisher)
    }

    /// Programs of this crate listen on inboxes of their role, but for the client, whose inbox is the default one.
    fn inbox(self) -> String {
        match self {
            Self::Client => "_INBOX".to_owned(),
            other => format!("_INBOX_{}", other.name()),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("cannot connect to NATS at {address} as {role}, tried for {}: {reason}; is the server up and the URL right? {}", humantime::format_duration(*.tried), Place::here().without_nats())]
    Unreachable {
        /// The address, without its password.
        address: String,
        /// The role that tried.
        role: &'static str,
        /// How long it has tried.
        tried: Duration,
        /// The last words of the client.
        reason: String,
    },
    /// The server does not let this program in, which does not pass by itself.
    #[error(
        "cannot connect to NATS: the server at {address} refuses {role}: {reason}; give it the password that this server has for the user {role}, or the \
         certificate that it asks for"
    )]
    Refused {
        /// The address, without its password.
        address: String,
        /// The role that tried.
        role: &'static str,
        /// The last words of the client.
        reason: String,
    },
    /// The server is too old or too tight.
    #[error(
        "nats-server {version} at {address} allows messages of {max_payload} bytes; millpond needs version 2.14 or newer and max_payload of at least {SERVER_PAYLOAD_BYTES_MAX}"
    )]
    Unfit {
        /// The address, without its password.
        address: String,
        /// The server's version.
        version: String,
        /// Its `max_payload`, in bytes.
        max_payload: usize,
    },
    /// The file of credentials is none.
    #[error(
        "{} (MILLPOND_NATS_CREDS) cannot be used as the credentials of a NATS user: {reason}; it holds a JWT and a seed, as `nsc generate creds` writes them", .path.display()
    )]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The streams are of another version.
    #[error(transparent)]
    Wire(#[from] WireMismatch),
}

/// Why a program cannot go on with its connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionFailure {
    /// The streams are of another version.
    #[error(transparent)]
    Wire(#[from] WireMismatch),
    /// The task of the client that keeps the connection has ended by itself.
    #[error(
        "the connection to NATS has died (a message that the client cannot read, most likely); start this program again"
    )]
    Died,
}

/// What is known of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// How often it was lost or came back.
    pub changes: u64,
    /// Whether it stands now.
    pub up: bool,
}

/// A connection in a role. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
    pub(crate) js: jetstream::Context,
    connection: watch::Receiver<Connection>,
    role: Role,
    /// Where the server is, without passwords.
    address: Arc<str>,
    signer: Option<Signer>,
    dropped: Arc<AtomicU64>,
    /// It is being closed on purpose: then its end is no failure.
    closing: Arc<AtomicBool>,
    wire: Arc<WireCheck>,
    acks: Arc<PublishAcks>,
    buckets: Arc<OpenBuckets>,
    /// A permit for each consumer on RESULTS that reads a large job.
    readers: Arc<Semaphore>,
    /// A permit for each that looks for what was missed.
    catch_ups: Arc<Semaphore>,
}

impl Bus {
    /// Connects, and tries for as long as `access` says (a [`Duration`] alone will do); once connected, it reconnects by
    /// itself for ever.
    ///
    /// # Errors
    /// [`ConnectError`], with the address but never the password.
    pub async fn connect(
        url: &str,
        role: Role,
        name: &str,
        access: impl Into<ConnectSettings>,
    ) -> Result<Self, ConnectError> {
        let access = access.into();
        let (sender, connection) = watch::channel(Connection { changes: 0, up: true });
        let dropped = Arc::new(AtomicU64::new(0));
        let began = tokio::time::Instant::now();
        let deadline = began + access.timeout;
        let servers = access::servers(url);
        // Without the password: the client writes addresses to its debug log.
        let bare: Vec<ServerAddr> = servers.iter().filter_map(access::without_credentials).collect();
        let address = without_password(url);
        let reconnects = Arc::new(Reconnects::new(address.clone()));
        let (mut reason, mut waiting) = ("no answer".to_owned(), WaitLog::start());
        let client = loop {
            let options = options(role, name, (sender.clone(), dropped.clone(), reconnects.clone()));
            let options = access.apply(&servers, options)?;
            let attempt = tokio::time::timeout_at(deadline, options.connect(bare.as_slice()));
            match waiting.during(attempt, (&address, &reason)).await {
                Ok(Ok(client)) => break client,
                Ok(Err(error)) => reason = describe(&error),
                // The reason of the attempt before says more.
                Err(_) => {}
            }
            if is_refusal(&reason) {
                return Err(ConnectError::Refused { address, role: role.name(), reason });
            }
            if tokio::time::Instant::now() + Duration::from_millis(100) >= deadline {
                let tried = tenths(began.elapsed());
                return Err(ConnectError::Unreachable { address, role: role.name(), tried, reason });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let info = client.server_info();
        let new_enough = version_at_least(&info.version, 2, 14);
        if !new_enough || info.max_payload < SERVER_PAYLOAD_BYTES_MAX {
            let (version, max_payload) = (info.version, info.max_payload);
            return Err(ConnectError::Unfit { address, version, max_payload });
        }
        // The client reports the connection a moment later: nobody must take that for a loss and a return.
        let mut first = connection.clone();
        let _ = tokio::time::timeout(CONNECTED_WITHIN, first.wait_for(|connection| connection.changes > 0)).await;
        let js = jetstream::context::ContextBuilder::new().timeout(ANSWER_WITHIN).build(client.clone());
        let wire = Arc::new(WireCheck::start((&client, &js), role, connection.clone()).await?);
        let acks = PublishAcks::start(&client, connection.clone()).await.map_err(|error| {
            let (address, role, tried) = (address.clone(), role.name(), tenths(began.elapsed()));
            ConnectError::Unreachable { address, role, tried, reason: error.to_string() }
        })?;
        let acks = Arc::new(acks);
        let (readers, catch_ups) = (Semaphore::new(READERS_MAX), Semaphore::new(CATCH_UPS_MAX));
        let (readers, catch_ups) = (Arc::new(readers), Arc::new(catch_ups));
        let (closing, buckets, address) = (Arc::default(), Arc::default(), address.into());
        Ok(Self {
            client,
            js,
            connection,
            role,
            address,
            signer: None,
            dropped,
            closing,
            wire,
            acks,
            buckets,
            readers,
            catch_ups,
        })
    }

    /// The same connection; with keys, each task that is stored over it is signed, and each that is taken verified.
    #[must_use]
    pub fn with_signer(self, signer: Option<Signer>) -> Self {
        Self { signer, ..self }
    }

    /// Whether it may publish to DUE. Who may could also wipe it by a header, so programs of others may not: their tasks with a time
    /// go to LATER.
    #[must_use]
    pub(crate) fn may_schedule(&self) -> bool {
        self.role == Role::Producer
    }

    /// The keys, where there are any.
    #[must_use]
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Loss and return of the connection, as they happen.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected && !self.is_dead()
    }

    /// Whether the task of the client that keeps the connection has ended, as it does in a panic: nothing comes or goes any
    /// more, and nobody connects again. Its callback for events goes with it.
    fn is_dead(&self) -> bool {
        self.connection.has_changed().is_err()
    }

    /// The id of the server process that this connection is with.
    #[must_use]
    pub fn server_id(&self) -> String {
        self.client.server_info().server_id
    }

    /// Whether the server is one of a cluster.
    pub(crate) fn is_clustered(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Returns when this program must end because of its connection: the streams turn out to be of another wire number after a
    /// reconnect, or the connection has died and will not come back. Never once it is closed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn failed(&self) -> ConnectionFailure {
        let mut connection = self.connection.clone();
        let died = async { while connection.changed().await.is_ok() {} };
        tokio::select! {
            mismatch = self.wire.wait() => mismatch.into(),
            () = died => {
                if self.closing.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                ConnectionFailure::Died
            }
        }
    }

    /// Messages that this client lost because it read too slowly.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Publishes a message that is not stored: only current subscribers get it.
    pub async fn publish_core(&self, subject: &str, payload: bytes::Bytes) {
        if let Err(error) = self.client.publish(subject.to_owned(), payload).await {
            tracing::debug!(subject, %error, "not published");
        }
    }

    /// Waits until the server has read all that was sent so far; gives up quietly after a second.
    pub async fn flush(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.client.flush()).await;
    }

    /// Sends what is buffered and closes the connection.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.flush().await;
        let _ = tokio::time::timeout(Duration::from_secs(1), self.client.drain()).await;
    }
}

/// The same time without what nobody reads.
fn tenths(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis() / 100 * 100).unwrap_or(u64::MAX))
}

/// Where what happens to a connection is noted.
type Observers = (watch::Sender<Connection>, Arc<AtomicU64>, Arc<Reconnects>);

fn options(role: Role, name: &str, (connection, dropped, reconnects): Observers) -> ConnectOptions {
    let delays = reconnects.clone();
    let options = ConnectOptions::new()
        .name(format!("millpond {name}"))
        .custom_inbox_prefix(role.inbox())
        .connection_timeout(CONNECT_WITHIN)
        .ping_interval(Duration::from_secs(5))
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempts| delays.delay(attempts))
        .event_callback(move |event| {
            observe(&event, &connection, &dropped, &reconnects);
            std::future::ready(())
        });
    // A worker must not answer its own ownership query (`lease.owner`): NATS answers "no responders" at once
    // only when nobody else listens.
    if role == Role::Worker { options.no_echo() } else { options }
}

fn observe(event: &Event, connection: &watch::Sender<Connection>, dropped: &AtomicU64, reconnects: &Reconnects) {
    match event {
        Event::Connected => {
            reconnects.connected();
            connection.send_modify(|c| *c = Connection { changes: c.changes + 1, up: true });
        }
        Event::Disconnected | Event::Closed => {
            if *event == Event::Disconnected {
                reconnects.lost();
            }
            connection.send_modify(|c| *c = Connection { changes: c.changes + 1, up: false });
        }
        Event::SlowConsumer(_) => {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        Event::ServerError(error) => tracing::warn!(error = %error, "nats-server refused something"),
        Event::ClientError(ClientError::Other(reason)) => reconnects.failed(reason),
        other => tracing::debug!(event = %other, "nats event"),
    }
}

fn version_at_least(version: &str, major: u64, minor: u64) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u64>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Our headers as the client's.
fn to_nats(headers: &Headers) -> async_nats::HeaderMap {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        // Line breaks would end the header early; everything else may stand in a value.
        let breaks = ['\r', '\n'];
        if value.contains(breaks) {
            map.append(name.as_str(), value.replace(breaks, " "));
        } else {
            map.append(name.as_str(), value.as_str());
        }
    }
    map
}

/// The client's headers as ours: each of ours by its canonical name, and what is said twice in the same words once.
fn from_nats(map: Option<&async_nats::HeaderMap>) -> Headers {
    let Some(map) = map else { return Vec::new() };
    let mut headers = Headers::with_capacity(map.len());
    let mut perhaps_repeated = false;
    for (name, values) in map.iter() {
        let given: &str = name.as_ref();
        let name = header_names::canonical(given);
        perhaps_repeated |= values.len() > 1 || name != given;
        headers.extend(values.iter().map(|value| (name.to_owned(), value.as_str().to_owned())));
    }
    if perhaps_repeated {
        header_names::drop_repeated(&mut headers);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_their_canonical_names_and_stand_once() {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in
            [("millpond-timeout", "1s"), ("Millpond-Timeout", "1s"), ("nats-msg-id", "a"), ("User", "u")]
        {
            map.append(name, value);
        }
        let mut headers = from_nats(Some(&map));
        headers.sort();
        let read: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, [("Millpond-Timeout", "1s"), ("User", "u"), ("nats-msg-id", "a")]);
    }

    #[test]
    fn versions() {
        assert!(version_at_least("2.15.1", 2, 14) && version_at_least("3.0.0-RC.1", 2, 14));
        assert!(!version_at_least("2.12.8", 2, 14));
    }
}

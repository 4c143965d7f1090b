//! The configuration of nats-server: the files of `deploy/nats/`, embedded, and what a temporary cluster adds to them.

/// The files by name.
pub(crate) const FILES: [(&str, &str); 2] = [
    ("millpond.conf", include_str!("../../deploy/nats/millpond.conf")),
    ("roles.conf", include_str!("../../deploy/nats/roles.conf")),
];

/// A second account for the raw rounds of `bench`, beside that of millpond.
const BENCH_ACCOUNT: &str =
    "  BENCH { jetstream: enabled, users: [ { user: bench, password: $MILLPOND_SETUP_PASSWORD } ] }\n";

/// The roles with the account of `bench` among them.
pub(crate) fn with_bench_account(roles: &str) -> String {
    let open = roles.trim_end().strip_suffix('}').unwrap_or_default();
    format!("{open}{BENCH_ACCOUNT}}}\n")
}

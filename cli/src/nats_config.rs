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

/// What the role publisher may publish to.
const PUBLISHES: &str = r#"publish: ["tasks.>", "later.>"]"#;

/// The roles with a publisher that publishes to these queues alone; to any where none is named.
pub(crate) fn with_publish_queues(roles: &str, queues: &[String]) -> String {
    if queues.is_empty() {
        return roles.to_owned();
    }
    let subjects = queues.iter().map(|queue| format!("\"tasks.{queue}.>\", \"later.{queue}.>\""));
    roles.replace(PUBLISHES, &format!("publish: [{}]", subjects.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_of_some_queues() {
        let roles = FILES[1].1;
        assert_eq!(roles.matches(PUBLISHES).count(), 1, "the publisher's alone");
        assert_eq!(with_publish_queues(roles, &[]), roles);
        let some = with_publish_queues(roles, &["mail".to_owned(), "reports".to_owned()]);
        let line = r#"publish: ["tasks.mail.>", "later.mail.>", "tasks.reports.>", "later.reports.>"]"#;
        assert!(some.contains(line) && !some.contains(PUBLISHES), "{some}");
    }
}

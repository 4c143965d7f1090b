//! The ports that `up` listens on, all on 127.0.0.1.

use std::net::TcpListener;

use anyhow::bail;
use clap::ValueEnum;

/// How ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PortsArg {
    /// The well-known ones.
    Fixed,
    /// Free ones.
    Auto,
}

/// The ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) nats: u16,
    pub(super) producer: u16,
    pub(super) collector: u16,
}

impl Ports {
    /// Chooses them, and sees that nobody else has them.
    pub(super) fn choose(how: PortsArg, own_server: bool) -> anyhow::Result<Self> {
        if how == PortsArg::Auto {
            // All held at once, so that no two are the same.
            let held = [free()?, free()?, free()?];
            let [nats, producer, collector] = held.each_ref().map(|l| l.local_addr().map(|a| a.port()));
            return Ok(Self { nats: nats?, producer: producer?, collector: collector? });
        }
        let ports = Self { nats: 4222, producer: 7610, collector: 7611 };
        let mut wanted = vec![(ports.producer, "the producer"), (ports.collector, "the collector")];
        if own_server {
            wanted.push((ports.nats, "NATS"));
        }
        for (port, what) in wanted {
            if TcpListener::bind(("127.0.0.1", port)).is_err() {
                bail!(
                    "port {port}, for {what}, is taken: end what listens there, or let free ports be chosen with --ports auto"
                );
            }
        }
        Ok(ports)
    }
}

fn free() -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 0))
}

//! The ports that `up` listens on, all on 127.0.0.1.

use std::net::TcpListener;

use anyhow::bail;
use clap::ValueEnum;
use millpond_service::reserved_port::ReservedPort;

/// How the ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PortsChoice {
    /// The well-known ones.
    Fixed,
    /// Free ones.
    Auto,
}

/// The ports.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) nats: u16,
    pub(super) producer: u16,
    pub(super) collector: u16,
    _reserved: Vec<ReservedPort>,
}

impl Ports {
    /// Chooses them, and makes sure that no other program has them.
    pub(super) fn choose(how: PortsChoice, own_server: bool) -> anyhow::Result<Self> {
        if how == PortsChoice::Auto {
            let [nats, producer, collector] = [ReservedPort::take()?, ReservedPort::take()?, ReservedPort::take()?];
            return Ok(Self {
                nats: nats.port,
                producer: producer.port,
                collector: collector.port,
                _reserved: vec![nats, producer, collector],
            });
        }
        let ports = Self { nats: 4222, producer: 7610, collector: 7611, _reserved: Vec::new() };
        let mut wanted = vec![(ports.producer, "the producer"), (ports.collector, "the collector")];
        if own_server {
            wanted.push((ports.nats, "NATS"));
        }
        for (port, user) in wanted {
            if TcpListener::bind(("127.0.0.1", port)).is_err() {
                bail!(
                    "port {port}, for {user}, is taken: end the program that listens there, or let free ports be chosen with --ports auto"
                );
            }
        }
        Ok(ports)
    }
}

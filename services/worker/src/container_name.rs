//! The name of this container, as `docker compose ps` shows it: a container knows its id only, but Docker's own name server has its
//! name by its address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE};

/// Docker's name server, in each container that is in a network with names.
const NAME_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// It is a part of the engine on the same machine.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// Longest answer over UDP.
const ANSWER_BYTES_MAX: usize = 512;

/// The name, when this process is the one that the container is for: of several, none has it.
pub(crate) fn container_name() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    NAME.get_or_init(|| if is_in_docker() && is_main_process() { ask().ok() } else { None }).as_deref()
}

fn is_in_docker() -> bool {
    let configured = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = format!("nameserver {}", NAME_SERVER.0);
    Path::new("/.dockerenv").exists() && configured.lines().any(|line| line.trim() == server)
}

/// Whether this is the first process, or the only one of Docker's own first process (`init: true`).
fn is_main_process() -> bool {
    let is_below_init = || {
        let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
        nix::unistd::getppid().as_raw() == 1 && ["docker-init", "tini"].contains(&first.trim())
    };
    std::process::id() == 1 || is_below_init()
}

/// Asks the name server who has this container's address.
fn ask() -> anyhow::Result<String> {
    let addresses = (millpond::host(), 0).to_socket_addrs().context("this host has no address")?;
    let ours = addresses.into_iter().find_map(|address| match address.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        _ => None,
    });
    let [a, b, c, d] = ours.context("this host has no address of version 4")?.octets();
    let asked = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    let mut query = Packet::new_query(1);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(Name::new(&asked)?, TYPE::PTR.into(), CLASS::IN.into(), false));
    let answer = exchange(&query.build_bytes_vec()?)?;
    name_in(&answer)
}

fn exchange(query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
    socket.connect(NAME_SERVER)?;
    socket.send(query)?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// The container's name in an answer: `millpond-worker-1.millpond_default`, of which the network is left out.
fn name_in(answer: &[u8]) -> anyhow::Result<String> {
    let packet = Packet::parse(answer)?;
    for record in packet.answers {
        if let RData::PTR(name) = record.rdata {
            let name = name.0.to_string();
            return Ok(name.split('.').next().unwrap_or_default().to_owned());
        }
    }
    bail!("the address has no name")
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::PTR;

    use super::*;

    #[test]
    fn the_name_is_read_from_an_answer() {
        let mut answer = Packet::new_reply(1);
        let asked = Name::new("5.0.18.172.in-addr.arpa").unwrap();
        let found = PTR(Name::new("millpond-worker-1.millpond_default").unwrap());
        answer.answers.push(ResourceRecord::new(asked, CLASS::IN, 600, RData::PTR(found)));
        let bytes = answer.build_bytes_vec_compressed().unwrap();
        assert_eq!(name_in(&bytes).unwrap(), "millpond-worker-1");
        assert!(name_in(&bytes[..12]).is_err() && name_in(&[]).is_err());
        assert!(name_in(&Packet::new_reply(1).build_bytes_vec().unwrap()).is_err());
    }
}

//! Host ports: held by a socket as long as they are published, so that no process and no other container gets them, and
//! passed on by a proxy where the kernel cannot translate (IPv6 loopback, IPv6 to a container that has none).
//!
//! Invariant: when [`Held::release`] has returned, the port is free.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use gantry_chassis::Drain;
use gantry_sys::netns;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::Error;
use crate::schema::PortRecord;

/// A container accepts within this or not at all.
const CONNECT: Duration = Duration::from_secs(10);
/// Datagrams of one sender are one flow until it is silent for this long.
const IDLE: Duration = Duration::from_secs(90);
/// Flows of one port at once.
const MOST_FLOWS: usize = 1024;
/// Tries for a port that is free on both families.
const TRIES: usize = 32;

#[derive(Debug)]
enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

impl Socket {
    fn bind(address: SocketAddr, udp: bool) -> io::Result<Socket> {
        if udp {
            netns::bind_datagram(address).map(Socket::Datagram)
        } else {
            netns::listen_stream(address).map(Socket::Stream)
        }
    }

    fn port(&self) -> io::Result<u16> {
        let address = match self {
            Socket::Stream(socket) => socket.local_addr(),
            Socket::Datagram(socket) => socket.local_addr(),
        };
        Ok(address?.port())
    }
}

/// A port that is ours.
#[derive(Debug)]
pub(crate) struct Held {
    /// With the host port that was chosen.
    pub(crate) port: PortRecord,
    sockets: Vec<Socket>,
    tasks: Vec<JoinHandle<()>>,
}

/// The host's address of a port; None = all.
pub(crate) fn host_ip(port: &PortRecord) -> Option<IpAddr> {
    port.host_ip.parse().ok()
}

/// "127.0.0.1:80/tcp", "80/udp".
pub(crate) fn show(port: &PortRecord) -> String {
    let kind = if port.udp { "udp" } else { "tcp" };
    match host_ip(port) {
        Some(ip) => format!("{}/{kind}", SocketAddr::new(ip, number(port.host_port))),
        None => format!("{}/{kind}", port.host_port),
    }
}

/// A port's number; the border lets no larger one in.
pub(crate) fn number(port: u32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}

/// Whether two publications cannot be at once.
pub(crate) fn collide(a: &PortRecord, b: &PortRecord) -> bool {
    let same_host = match (host_ip(a), host_ip(b)) {
        (Some(a), Some(b)) => {
            a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
        }
        _ => true,
    };
    same_host && a.udp == b.udp && a.host_port == b.host_port && a.host_port != 0
}

fn bind_all(addresses: &[IpAddr], port: u16, udp: bool) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    let mut port = port;
    for &address in addresses {
        match Socket::bind(SocketAddr::new(address, port), udp) {
            Ok(socket) => {
                port = socket.port()?;
                sockets.push(socket);
            }
            // A host without IPv6.
            Err(error)
                if !sockets.is_empty()
                    && matches!(
                        error.kind(),
                        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
                    ) => {}
            Err(error) if !sockets.is_empty() && error.raw_os_error() == Some(EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

const EAFNOSUPPORT: i32 = 97;

/// Takes a port, or with host port 0 a free one.
pub(crate) fn hold(port: &PortRecord) -> Result<Held, Error> {
    let addresses: Vec<IpAddr> = match host_ip(port) {
        Some(ip) => vec![ip],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let tries = if port.host_port == 0 { TRIES } else { 1 };
    let mut result = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..tries {
        result = bind_all(&addresses, number(port.host_port), port.udp);
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::PortBusy { port: show(port) },
        _ => Error::Port {
            port: show(port),
            source,
        },
    };
    let sockets = result.map_err(refused)?;
    let chosen = sockets.first().map_or(Ok(0), Socket::port);
    let host_port = chosen.map_err(refused)?.into();
    Ok(Held {
        port: PortRecord {
            host_port,
            ..port.clone()
        },
        sockets,
        tasks: Vec::new(),
    })
}

/// Ends tasks and waits until what they own is gone. For a thread that may block.
pub(crate) fn end(tasks: Vec<JoinHandle<()>>) {
    for task in &tasks {
        task.abort();
    }
    let runtime = tokio::runtime::Handle::current();
    for task in tasks {
        // Being aborted is what was wanted.
        let _ = runtime.block_on(task);
    }
}

impl Held {
    /// Begins to pass on what the kernel leaves to us.
    pub(crate) fn serve(&mut self, to: IpAddr, drain: &Drain) {
        let to = SocketAddr::new(to, number(self.port.container_port));
        for socket in self.sockets.drain(..) {
            let port = show(&self.port);
            self.tasks.push(drain.spawn("published port", async move {
                let ended = match socket {
                    Socket::Stream(listener) => streams(listener, to).await,
                    Socket::Datagram(socket) => datagrams(socket, to).await,
                };
                if let Err(error) = ended {
                    tracing::warn!(%error, port, "a published port is no longer passed on");
                }
            }));
        }
    }

    /// Gives the port back.
    pub(crate) fn release(self) {
        drop(self.sockets);
        end(self.tasks);
    }
}

async fn streams(listener: TcpListener, to: SocketAddr) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok((mut outside, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others must close some first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.spawn(async move {
            let inside = timeout(CONNECT, tokio::net::TcpStream::connect(to)).await;
            if let Ok(Ok(mut inside)) = inside {
                // A broken connection is the matter of its two ends.
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

async fn datagrams(socket: UdpSocket, to: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
    let mut flows: HashMap<SocketAddr, Arc<tokio::net::UdpSocket>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An answer that could not be delivered shows here; the socket goes on.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        // A flow whose answering task has ended holds its socket alone.
        if flows.len() >= MOST_FLOWS
            || flows
                .get(&from)
                .is_some_and(|flow| Arc::strong_count(flow) == 1)
        {
            flows.retain(|_, flow| Arc::strong_count(flow) > 1);
        }
        if !flows.contains_key(&from) && flows.len() < MOST_FLOWS {
            let any: SocketAddr = if to.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let inside = Arc::new(tokio::net::UdpSocket::bind(any).await?);
            inside.connect(to).await?;
            tasks.spawn(answers(inside.clone(), socket.clone(), from));
            flows.insert(from, inside);
        }
        if let Some(inside) = flows.get(&from) {
            // The container may not listen; datagrams may be lost.
            let _ = inside.send(&buffer[..length]).await;
        }
    }
}

/// Brings a flow's answers back until there are none for a while.
async fn answers(
    inside: Arc<tokio::net::UdpSocket>,
    outside: Arc<tokio::net::UdpSocket>,
    to: SocketAddr,
) {
    let mut buffer = vec![0; 65_535];
    // An error in between is the container's refusal of one datagram.
    while let Ok(received) = timeout(IDLE, inside.recv(&mut buffer)).await {
        if let Ok(length) = received {
            let _ = outside.send_to(&buffer[..length], to).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u32, udp: bool) -> PortRecord {
        PortRecord {
            host_ip: host_ip.into(),
            host_port,
            container_port: 80,
            udp,
        }
    }

    #[test]
    fn collisions() {
        let all = port("", 80, false);
        assert!(collide(&all, &port("127.0.0.1", 80, false)));
        assert!(collide(
            &port("0.0.0.0", 80, false),
            &port("127.0.0.1", 80, false)
        ));
        assert!(!collide(
            &port("0.0.0.0", 80, false),
            &port("::1", 80, false)
        ));
        assert!(!collide(
            &port("127.0.0.2", 80, false),
            &port("127.0.0.1", 80, false)
        ));
        assert!(!collide(&all, &port("", 80, true)) && !collide(&all, &port("", 81, false)));
        assert!(!collide(&port("", 0, false), &port("", 0, false)));
        assert_eq!(show(&all), "80/tcp");
        assert_eq!(show(&port("::1", 53, true)), "[::1]:53/udp");
    }

    #[test]
    fn a_held_port_is_nobody_elses() {
        for udp in [false, true] {
            let held = hold(&port("", 0, udp)).unwrap();
            assert_ne!(held.port.host_port, 0);
            assert!(matches!(
                hold(&PortRecord {
                    host_ip: "127.0.0.1".into(),
                    ..held.port.clone()
                }),
                Err(Error::PortBusy { .. })
            ));
            let again = held.port.clone();
            drop(held);
            hold(&again).unwrap();
        }
    }
}

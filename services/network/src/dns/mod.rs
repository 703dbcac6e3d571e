//! A network's name server: datagrams and streams on the gateway's address, at ports of the kernel's choice. The firewall
//! leads port 53 there, so that no other name server of the host and no published port is in the way.
//!
//! Invariants: a question is answered from the zone or passed on, never both; the number of open questions is bounded;
//! when [`Server::stop`] has returned, the ports are free.

mod forward;
mod zone;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gantry_chassis::Drain;
use gantry_sys::netns;
use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) use zone::{Member, Zone};

/// Questions under way at once, datagrams and streams each.
const MOST_OPEN: usize = 512;
/// A stream on which nothing is asked is closed.
const IDLE: Duration = Duration::from_secs(20);
/// Answers to those who name no other size.
const PLAIN_DATAGRAM: usize = 512;

/// The zones of all networks, by the network's id.
pub(crate) type Zones = Arc<RwLock<BTreeMap<String, Zone>>>;

/// Whose server it is.
#[derive(Debug, Clone)]
struct Seat {
    zones: Zones,
    network: Arc<str>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) datagrams: u16,
    pub(crate) streams: u16,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts to answer on the gateway's address.
    pub(crate) fn start(
        gateway: Ipv4Addr,
        zones: &Zones,
        network: &str,
        drain: &Drain,
    ) -> io::Result<Server> {
        let any = SocketAddr::new(gateway.into(), 0);
        let (datagrams, streams) = (netns::bind_datagram(any)?, netns::listen_stream(any)?);
        let seat = Seat {
            zones: zones.clone(),
            network: network.into(),
        };
        let ports = (datagrams.local_addr()?.port(), streams.local_addr()?.port());
        let (for_datagrams, for_streams) = (seat.clone(), seat);
        let tasks = vec![
            drain.spawn("names over datagrams", async move {
                if let Err(error) = serve_datagrams(datagrams, for_datagrams).await {
                    tracing::warn!(%error, %gateway, "names are no longer answered over datagrams");
                }
            }),
            drain.spawn("names over streams", async move {
                if let Err(error) = serve_streams(streams, for_streams).await {
                    tracing::warn!(%error, %gateway, "names are no longer answered over streams");
                }
            }),
        ];
        Ok(Server {
            datagrams: ports.0,
            streams: ports.1,
            tasks,
        })
    }

    /// Ends it. For a thread that may block.
    pub(crate) fn stop(self) {
        crate::publish::end(self.tasks);
    }
}

async fn serve_datagrams(socket: std::net::UdpSocket, seat: Seat) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let mut open = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        while open.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The answer before could not be delivered; that is its asker's matter.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        if open.len() >= MOST_OPEN {
            continue;
        }
        let (socket, seat, question) = (socket.clone(), seat.clone(), buffer[..length].to_vec());
        open.spawn(async move {
            if let Some(reply) = answer(&question, from.ip(), &seat, false).await {
                // The asker may be gone.
                let _ = socket.send_to(&reply, from).await;
            }
        });
    }
}

async fn serve_streams(listener: std::net::TcpListener, seat: Seat) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if open.len() < MOST_OPEN {
            let seat = seat.clone();
            // A broken stream is its asker's matter.
            open.spawn(async move { drop(converse(stream, from.ip(), &seat).await) });
        }
    }
}

async fn converse(mut stream: TcpStream, from: IpAddr, seat: &Seat) -> io::Result<()> {
    loop {
        let asked = tokio::time::timeout(IDLE, forward::read_framed(&mut stream)).await;
        let Ok(question) = asked.map_err(io::Error::other)? else {
            return Ok(());
        };
        let Some(reply) = answer(&question, from, seat, true).await else {
            return Ok(());
        };
        stream.write_all(&forward::framed(&reply)).await?;
    }
}

/// None for what is no question.
async fn answer(question: &[u8], from: IpAddr, seat: &Seat, stream: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(question).ok()?;
    let reply = {
        let zones = seat.zones.read().unwrap_or_else(PoisonError::into_inner);
        zone::ask(&zones, &seat.network, &query, from)?
    };
    let message = match reply {
        zone::Reply::Known(message) => message,
        zone::Reply::Elsewhere(servers) => {
            if let Some(found) = forward::ask(question, &servers, stream).await {
                return Some(found);
            }
            zone::refusal(&query, ResponseCode::ServFail)
        }
    };
    let bytes = message.to_vec().ok()?;
    let most = query.edns.as_ref().map_or(PLAIN_DATAGRAM, |edns| {
        usize::from(edns.max_payload()).max(PLAIN_DATAGRAM)
    });
    if stream || bytes.len() <= most {
        return Some(bytes);
    }
    message.truncate().to_vec().ok()
}

/// Reads exactly; for the framing of streams.
async fn exact(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

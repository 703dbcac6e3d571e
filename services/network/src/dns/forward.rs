//! Questions passed on to the servers of the world, as they came.
//!
//! Invariants: every question goes out from a port and under a number of its own, and only an answer with that number
//! from the server that was asked counts; a question that came over a stream goes over a stream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take, the first and the second time round.
const PATIENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3)];
/// Shortest message: its header.
const SHORTEST: usize = 12;

/// Asks one server after the other; None when none answered.
pub(super) async fn ask(question: &[u8], servers: &[SocketAddr], stream: bool) -> Option<Vec<u8>> {
    let own = [*question.first()?, *question.get(1)?];
    for patience in PATIENCE {
        for server in servers {
            let number = rand::random::<u16>().to_be_bytes();
            let mut sent = question.to_vec();
            sent[..2].copy_from_slice(&number);
            let asked = async {
                if stream {
                    over_stream(&sent, *server).await
                } else {
                    over_datagram(&sent, *server).await
                }
            };
            if let Ok(Ok(mut found)) = tokio::time::timeout(patience, asked).await
                && found.len() >= SHORTEST
                && found[..2] == number
            {
                found[..2].copy_from_slice(&own);
                return Some(found);
            }
        }
    }
    None
}

async fn over_datagram(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let from: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= SHORTEST && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_stream(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(question)).await?;
    read_framed(&mut stream).await
}

/// With its length in front (RFC 1035, 4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), message].concat()
}

pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = super::exact(stream, 2).await?;
    super::exact(
        stream,
        usize::from(u16::from_be_bytes([length[0], length[1]])),
    )
    .await
}

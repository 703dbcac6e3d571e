//! What the network service keeps.
//!
//! ```text
//! sled  1 <network id>  -> NetworkRecord   waits for its flush
//!       2 <sandbox id>  -> SandboxRecord   lazily: what counts while the host is up is the journal
//!       3 <network id>  -> CursorRecord    lazily
//! run   network/boot                       which boot the journal is of
//!       network/<sandbox id>               the same SandboxRecord; survives kill -9, gone or stale after a reboot
//!       ns/<sandbox id>                    the pinned namespace
//! ```

use std::collections::HashMap;

/// Version of this page; raise it with a migration.
pub const VERSION: u32 = 1;
/// Networks by id.
pub const NETWORKS: u8 = 1;
/// Sandboxes by id.
pub const SANDBOXES: u8 = 2;
/// Where the search for a free address goes on.
pub const CURSORS: u8 = 3;

/// A bridge network.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkRecord {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The user's name for it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// IPv4 subnet, always there.
    #[prost(string, tag = "3")]
    pub subnet4: String,
    /// Address of the bridge in it.
    #[prost(string, tag = "4")]
    pub gateway4: String,
    /// IPv6 subnet, or empty.
    #[prost(string, tag = "5")]
    pub subnet6: String,
    /// Address of the bridge in it, or empty.
    #[prost(string, tag = "6")]
    pub gateway6: String,
    /// No way out.
    #[prost(bool, tag = "7")]
    pub internal: bool,
    /// Bytes.
    #[prost(uint32, tag = "8")]
    pub mtu: u32,
    /// The user's.
    #[prost(map = "string, string", tag = "9")]
    pub labels: HashMap<String, String>,
    /// The bridge's name.
    #[prost(string, tag = "10")]
    pub bridge: String,
    /// Unix time, nanoseconds.
    #[prost(int64, tag = "11")]
    pub created_at: i64,
    /// The network "bridge": made by the engine, without names.
    #[prost(bool, tag = "12")]
    pub default: bool,
}

/// One interface of a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EndpointRecord {
    /// The network's id.
    #[prost(string, tag = "1")]
    pub network_id: String,
    /// The network's name.
    #[prost(string, tag = "2")]
    pub network: String,
    /// Its name inside.
    #[prost(string, tag = "3")]
    pub interface: String,
    /// Its other end's name on the host.
    #[prost(string, tag = "4")]
    pub host: String,
    /// Hardware address inside.
    #[prost(string, tag = "5")]
    pub mac: String,
    /// With prefix length.
    #[prost(string, tag = "6")]
    pub ipv4: String,
    /// With prefix length, or empty.
    #[prost(string, tag = "7")]
    pub ipv6: String,
    /// Where it leads to, or empty.
    #[prost(string, tag = "8")]
    pub gateway4: String,
    /// Where it leads to, or empty.
    #[prost(string, tag = "9")]
    pub gateway6: String,
    /// More names of the sandbox on this network.
    #[prost(string, repeated, tag = "10")]
    pub aliases: Vec<String>,
}

/// A published port.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PortRecord {
    /// Empty = all addresses.
    #[prost(string, tag = "1")]
    pub host_ip: String,
    /// Never 0 once published.
    #[prost(uint32, tag = "2")]
    pub host_port: u32,
    /// Inside.
    #[prost(uint32, tag = "3")]
    pub container_port: u32,
    /// Datagrams instead of streams.
    #[prost(bool, tag = "4")]
    pub udp: bool,
}

/// A namespace with its endpoints, or what is kept for it while it is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxRecord {
    /// Container or pod id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The service that holds it.
    #[prost(string, tag = "2")]
    pub holder: String,
    /// The container's name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Its host name.
    #[prost(string, tag = "4")]
    pub hostname: String,
    /// False = only the addresses are reserved.
    #[prost(bool, tag = "5")]
    pub live: bool,
    /// In order: eth0, eth1, ...
    #[prost(message, repeated, tag = "6")]
    pub endpoints: Vec<EndpointRecord>,
    /// With the host ports chosen.
    #[prost(message, repeated, tag = "7")]
    pub ports: Vec<PortRecord>,
    /// Given by the user.
    #[prost(string, repeated, tag = "8")]
    pub dns_servers: Vec<String>,
    /// Content of its /etc/resolv.conf.
    #[prost(string, tag = "9")]
    pub resolv_conf: String,
}

/// The addresses of a network that were given last.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CursorRecord {
    /// IPv4.
    #[prost(string, tag = "1")]
    pub last4: String,
    /// IPv6, or empty.
    #[prost(string, tag = "2")]
    pub last6: String,
}

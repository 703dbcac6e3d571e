//! The services that this one calls: store, snapshotter, network; and what it says to shims.
//!
//! Invariants: every call has a deadline; every call is safe to repeat, so a peer that restarts is asked again for a while.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use gantry_chassis::{Channel, Drain, Paths, connect};
use gantry_proto::network as net;
use gantry_proto::network::network_client::NetworkClient;
use gantry_proto::snapshotter as snap;
use gantry_proto::snapshotter::snapshotter_client::SnapshotterClient;
use gantry_proto::store;
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::types::{Descriptor, Platform};
use gantry_types::ErrorKind;
use tonic::Status;

use crate::convert::{Endpoint, EndpointRequest, PortMapping};
use crate::error::Error;
use crate::schema::RootMount;

/// What a shim is told (`gantry.shim.v1`); this door belongs to runtime alone.
pub mod plan {
    pub use gantry_proto::shim::*;
}

const HOLDER: &str = "runtime";
/// How long one call may take; unpacking has a longer one.
const DEADLINE: Duration = Duration::from_secs(30);
const UNPACK_DEADLINE: Duration = Duration::from_secs(1800);

/// An image, as far as containers are concerned.
#[derive(Debug, Clone)]
pub struct Image {
    /// Normalised name.
    pub name: String,
    /// Digest of the config.
    pub id: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// The config document.
    pub config: Vec<u8>,
    /// diff_id and blob, lowest first.
    pub layers: Vec<(String, String)>,
}

/// The network side of a running container.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// Path of the pinned namespace.
    pub netns: String,
    /// Addresses.
    pub endpoints: Vec<Endpoint>,
    /// Published ports with the host's side chosen.
    pub ports: Vec<PortMapping>,
    /// Content of /etc/resolv.conf.
    pub resolv_conf: String,
}

/// What a container asks of the network.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Its name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Networks; none = only loopback.
    pub endpoints: Vec<EndpointRequest>,
    /// To publish.
    pub ports: Vec<PortMapping>,
    /// Of the user, over the network's.
    pub dns_servers: Vec<String>,
    /// Of the user.
    pub dns_search: Vec<String>,
    /// Of the user.
    pub dns_options: Vec<String>,
}

/// The peers.
#[derive(Debug, Clone)]
pub struct Peers {
    store: StoreClient<Channel>,
    snapshotter: SnapshotterClient<Channel>,
    network: NetworkClient<Channel>,
    drain: Drain,
}

/// [`gantry_chassis::ask`], with the peer's name in the error.
async fn call<T, F>(
    drain: &Drain,
    peer: &'static str,
    deadline: Duration,
    make: impl Fn() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Status>>,
{
    gantry_chassis::ask(drain, peer, deadline, make)
        .await
        .map_err(|fault| Error::Peer { peer, fault })
}

impl Peers {
    /// Clients for the sockets of an instance.
    pub fn new(paths: &Paths, drain: &Drain) -> Self {
        Self {
            store: StoreClient::new(connect(&paths.socket("store"))),
            snapshotter: SnapshotterClient::new(connect(&paths.socket("snapshotter"))),
            network: NetworkClient::new(connect(&paths.socket("network"))),
            drain: drain.clone(),
        }
    }

    /// The image behind a reference.
    ///
    /// # Errors
    /// NotFound when the store does not have it.
    pub async fn image(&self, reference: &str, platform: Option<Platform>) -> Result<Image, Error> {
        let request = store::ResolveImageRequest {
            reference: reference.to_owned(),
            platform,
            lease: String::new(),
        };
        let found = call(&self.drain, "store", DEADLINE, || {
            let (mut client, request) = (self.store.clone(), request.clone());
            async move { client.resolve_image(request).await }
        })
        .await?
        .into_inner();
        let digest = |descriptor: Option<Descriptor>| descriptor.unwrap_or_default().digest;
        Ok(Image {
            name: found.name,
            id: digest(found.config),
            manifest: digest(found.manifest),
            config: found.config_json,
            layers: found
                .layers
                .into_iter()
                .map(|layer| (layer.diff_id, digest(layer.blob)))
                .collect(),
        })
    }

    /// Keeps an image's blobs as long as the container is there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn hold(&self, id: &str, manifest: &str) -> Result<(), Error> {
        let request = store::PutLeaseRequest {
            id: format!("container-{id}"),
            holder: HOLDER.into(),
            digests: vec![manifest.to_owned()],
            ttl_seconds: 0,
        };
        call(&self.drain, "store", DEADLINE, || {
            let (mut client, request) = (self.store.clone(), request.clone());
            async move { client.put_lease(request).await }
        })
        .await
        .map(drop)
    }

    /// Lets go of them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, id: &str) -> Result<(), Error> {
        let request = store::DeleteLeaseRequest {
            id: format!("container-{id}"),
        };
        call(&self.drain, "store", DEADLINE, || {
            let (mut client, request) = (self.store.clone(), request.clone());
            async move { client.delete_lease(request).await }
        })
        .await
        .map(drop)
    }

    /// Makes the container's snapshot; layers that are not unpacked are unpacked first.
    ///
    /// # Errors
    /// When a layer cannot be unpacked, or the snapshotter fails.
    pub async fn prepare(&self, id: &str, image: &Image) -> Result<Vec<RootMount>, Error> {
        let snapshot = match self.try_prepare(id, image).await {
            Err(Error::Peer { fault, .. }) if fault.kind == ErrorKind::NotFound => {
                let each = image
                    .layers
                    .iter()
                    .map(|(diff_id, blob)| self.unpack(diff_id, blob));
                futures_util::future::try_join_all(each).await?;
                self.try_prepare(id, image).await?
            }
            other => other?,
        };
        Ok(snapshot
            .mounts
            .into_iter()
            .map(|mount| RootMount {
                kind: mount.r#type,
                source: mount.source,
                options: mount.options,
            })
            .collect())
    }

    async fn try_prepare(&self, id: &str, image: &Image) -> Result<snap::Snapshot, Error> {
        let request = snap::PrepareRequest {
            key: id.to_owned(),
            layers: image.layers.iter().map(|(id, _)| id.clone()).collect(),
            holder: HOLDER.into(),
        };
        let reply = call(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.prepare(request).await }
        })
        .await?;
        Ok(reply.into_inner())
    }

    async fn unpack(&self, diff_id: &str, blob: &str) -> Result<(), Error> {
        let request = snap::EnsureLayerRequest {
            diff_id: diff_id.to_owned(),
            blob: Some(Descriptor {
                digest: blob.to_owned(),
                ..Descriptor::default()
            }),
        };
        call(&self.drain, "snapshotter", UNPACK_DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move {
                let mut events = client.ensure_layer(request).await?.into_inner();
                while events.message().await?.is_some() {}
                Ok(())
            }
        })
        .await
    }

    /// Removes the container's snapshot, and its claim on volumes with it.
    ///
    /// # Errors
    /// When the snapshotter fails.
    pub async fn remove_snapshot(&self, id: &str) -> Result<(), Error> {
        let request = snap::RemoveRequest { key: id.to_owned() };
        call(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.remove(request).await }
        })
        .await
        .map(drop)
    }

    /// Makes or finds a volume for a container (empty name: a new one). Returns its name and host path.
    ///
    /// # Errors
    /// For a name that is none.
    pub async fn volume(&self, id: &str, name: &str) -> Result<(String, String), Error> {
        let request = snap::CreateVolumeRequest {
            name: name.to_owned(),
            snapshot_key: id.to_owned(),
            ..Default::default()
        };
        // An anonymous one that is asked for twice is made twice; the first goes with the container's snapshot.
        let reply = call(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.create_volume(request).await }
        })
        .await?
        .into_inner();
        Ok((reply.name, reply.path))
    }

    /// Copies the image's content at `path` into the volume, if that is empty.
    ///
    /// # Errors
    /// When the copy fails.
    pub async fn seed_volume(&self, name: &str, id: &str, path: &str) -> Result<(), Error> {
        let request = snap::SeedVolumeRequest {
            name: name.to_owned(),
            snapshot_key: id.to_owned(),
            path: path.to_owned(),
        };
        call(&self.drain, "snapshotter", UNPACK_DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.seed_volume(request).await }
        })
        .await
        .map(drop)
    }

    /// Removes a volume; one that is gone, or that another container uses too, is left.
    ///
    /// # Errors
    /// When the snapshotter fails.
    pub async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let request = snap::RemoveVolumeRequest {
            name: name.to_owned(),
        };
        let removed = call(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), request.clone());
            async move { client.remove_volume(request).await }
        })
        .await;
        match removed {
            Err(Error::Peer { fault, .. })
                if matches!(fault.kind, ErrorKind::NotFound | ErrorKind::WrongState) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Gives a container its network namespace.
    ///
    /// # Errors
    /// For a network that does not exist, an address or a port that is taken.
    pub async fn attach(&self, id: &str, wish: Wish) -> Result<Sandbox, Error> {
        let request = net::AttachRequest {
            id: id.to_owned(),
            holder: HOLDER.into(),
            name: wish.name,
            hostname: wish.hostname,
            endpoints: wish.endpoints,
            ports: wish.ports,
            dns_servers: wish.dns_servers,
            dns_search: wish.dns_search,
            dns_options: wish.dns_options,
        };
        let sandbox = call(&self.drain, "network", DEADLINE, || {
            let (mut client, request) = (self.network.clone(), request.clone());
            async move { client.attach(request).await }
        })
        .await?
        .into_inner();
        Ok(to_sandbox(sandbox))
    }

    /// What network knows of a container; `None` when it knows nothing.
    ///
    /// # Errors
    /// When network fails.
    pub async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, Error> {
        let request = net::GetSandboxRequest { id: id.to_owned() };
        let found = call(&self.drain, "network", DEADLINE, || {
            let (mut client, request) = (self.network.clone(), request.clone());
            async move { client.get_sandbox(request).await }
        })
        .await;
        match found {
            Ok(sandbox) => Ok(Some(to_sandbox(sandbox.into_inner()))),
            Err(Error::Peer { fault, .. }) if fault.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the container's network away.
    ///
    /// # Errors
    /// When network fails.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let request = net::DetachRequest {
            id: id.to_owned(),
            keep_addresses: false,
        };
        call(&self.drain, "network", DEADLINE, || {
            let (mut client, request) = (self.network.clone(), request.clone());
            async move { client.detach(request).await }
        })
        .await
        .map(drop)
    }

    /// Tells every peer which containers there are, so that what leaked goes.
    ///
    /// # Errors
    /// When one of them fails.
    pub async fn sync(&self, ids: &BTreeSet<String>) -> Result<(), Error> {
        let leases = store::SyncLeasesRequest {
            holder: HOLDER.into(),
            ids: ids.iter().map(|id| format!("container-{id}")).collect(),
        };
        call(&self.drain, "store", DEADLINE, || {
            let (mut client, request) = (self.store.clone(), leases.clone());
            async move { client.sync_leases(request).await }
        })
        .await?;
        let snapshots = snap::SyncSnapshotsRequest {
            holder: HOLDER.into(),
            keys: ids.iter().cloned().collect(),
        };
        call(&self.drain, "snapshotter", DEADLINE, || {
            let (mut client, request) = (self.snapshotter.clone(), snapshots.clone());
            async move { client.sync_snapshots(request).await }
        })
        .await?;
        let sandboxes = net::SyncSandboxesRequest {
            holder: HOLDER.into(),
            ids: ids.iter().cloned().collect(),
        };
        call(&self.drain, "network", DEADLINE, || {
            let (mut client, request) = (self.network.clone(), sandboxes.clone());
            async move { client.sync_sandboxes(request).await }
        })
        .await
        .map(drop)
    }
}

fn to_sandbox(sandbox: net::Sandbox) -> Sandbox {
    Sandbox {
        netns: sandbox.netns,
        endpoints: sandbox.endpoints,
        ports: sandbox.ports,
        resolv_conf: sandbox.resolv_conf,
    }
}

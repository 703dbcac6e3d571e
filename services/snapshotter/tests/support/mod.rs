//! A node under test, and the names that its tests speak with.
#![allow(unused_imports)] // each is for the tests, which take all

use std::os::fd::AsRawFd as _;
pub use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
pub use std::path::{Path, PathBuf};
pub use std::time::Duration;

pub use gantry_chassis::{Channel, Drain, Fault, Paths};
pub use gantry_proto::snapshotter::ensure_layer_event::Event;
pub use gantry_proto::snapshotter::snapshotter_client::SnapshotterClient;
pub use gantry_proto::snapshotter::*;
pub use gantry_proto::store::store_client::StoreClient;
pub use gantry_proto::store::{BeginIngestRequest, CommitIngestRequest};
pub use gantry_proto::types::Descriptor;
pub use gantry_sys::mount::{Detached, Options, copy_of, new_fs};
pub use gantry_types::ErrorKind;
use sha2::Digest as _;

pub struct Node {
    pub home: tempfile::TempDir,
    pub drain: Drain,
    pub store: StoreClient<Channel>,
    pub client: SnapshotterClient<Channel>,
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

impl Node {
    pub async fn start() -> Node {
        Node::on(tempfile::tempdir().unwrap()).await
    }

    pub async fn on(home: tempfile::TempDir) -> Node {
        let paths = Paths {
            root: home.path().join("root"),
            run: home.path().join("run"),
        };
        let drain = Drain::new();
        for name in ["store", "snapshotter"] {
            let listener = gantry_chassis::bind(&paths.socket(name), 0o600).unwrap();
            let (at, ended) = (paths.clone(), drain.clone());
            drain.spawn(name, async move {
                if name == "store" {
                    gantry_store::run(Default::default(), at, listener.into(), ended)
                        .await
                        .unwrap();
                } else {
                    gantry_snapshotter::run(Default::default(), at, listener.into(), ended)
                        .await
                        .unwrap();
                }
            });
            gantry_chassis::check_health(&paths.socket(name), Duration::from_secs(10))
                .await
                .unwrap();
        }
        Node {
            store: StoreClient::new(gantry_chassis::connect(&paths.socket("store"))),
            client: SnapshotterClient::new(gantry_chassis::connect(&paths.socket("snapshotter"))),
            home,
            drain,
        }
    }

    pub async fn restart(self) -> Node {
        assert!(self.drain.finish(Duration::from_secs(5)).await);
        drop((self.client, self.store));
        Node::on(self.home).await
    }

    pub fn data(&self, path: &str) -> PathBuf {
        self.home.path().join("root/snapshotter").join(path)
    }

    pub async fn put(&mut self, bytes: &[u8]) -> String {
        let name = digest(bytes);
        let request = BeginIngestRequest {
            key: name.clone(),
            digest: name.clone(),
            ..Default::default()
        };
        let begun = self.store.begin_ingest(request).await.unwrap().into_inner();
        if !begun.exists {
            std::fs::write(&begun.path, bytes).unwrap();
            let request = CommitIngestRequest {
                key: name.clone(),
                digest: name.clone(),
                ..Default::default()
            };
            self.store.commit_ingest(request).await.unwrap();
        }
        name
    }

    pub async fn ensure(&mut self, diff_id: &str, blob: &str) -> Result<Layer, Fault> {
        let request = EnsureLayerRequest {
            diff_id: diff_id.into(),
            blob: Some(Descriptor {
                digest: blob.into(),
                ..Default::default()
            }),
        };
        let mut events = self.client.ensure_layer(request).await?.into_inner();
        loop {
            if let Some(Event::Done(layer)) = events.message().await?.unwrap().event {
                return Ok(layer);
            }
        }
    }

    /// Stores and unpacks an archive; returns its diff_id.
    pub async fn layer(&mut self, tar: &[u8]) -> Result<String, Fault> {
        let blob = self.put(tar).await;
        Ok(self.ensure(&blob, &blob).await?.diff_id)
    }

    pub async fn prepare(&mut self, key: &str, layers: &[&str]) -> Result<Snapshot, Fault> {
        let request = request(key, layers);
        Ok(self.client.prepare(request).await?.into_inner())
    }

    pub async fn volume(&mut self, name: &str, user: &str) -> Volume {
        let request = CreateVolumeRequest {
            name: name.into(),
            snapshot_key: user.into(),
            ..Default::default()
        };
        self.client
            .create_volume(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn seed(&mut self, name: &str, key: &str, path: &str) -> bool {
        let request = SeedVolumeRequest {
            name: name.into(),
            snapshot_key: key.into(),
            path: path.into(),
        };
        let reply = self.client.seed_volume(request).await.unwrap();
        reply.into_inner().seeded
    }
}

pub fn request(key: &str, layers: &[&str]) -> PrepareRequest {
    PrepareRequest {
        key: key.into(),
        layers: layers.iter().map(|layer| (*layer).to_owned()).collect(),
        holder: "test".into(),
    }
}

/// The mounted snapshot: nothing is on the host, it ends with the value.
pub struct View(pub Detached);

impl View {
    pub fn of(snapshot: &Snapshot) -> View {
        let mount = &snapshot.mounts[0];
        let options = Options::parse(&mount.options);
        View(if mount.r#type == "bind" {
            copy_of(Path::new(&mount.source), true).unwrap()
        } else {
            new_fs(&mount.r#type, &mount.source, &options.data).unwrap()
        })
    }

    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.0.fd().as_raw_fd().to_string())
            .join(path)
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    pub fn mode(&self, path: &str) -> u32 {
        std::fs::symlink_metadata(self.path(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    }

    pub fn has(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.path(path)).is_ok()
    }
}

/// An archive of: path, type, mode, link or content.
pub fn tar(entries: &[(&str, u8, u32, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, mode, body) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_mtime(1_600_000_000);
        header.set_uid(7);
        header.set_entry_type(tar::EntryType::new(*kind));
        // The library refuses such paths; an attacker does not.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        let content = if matches!(kind, b'1' | b'2') {
            header.as_gnu_mut().unwrap().linkname[..body.len()].copy_from_slice(body.as_bytes());
            ""
        } else {
            body
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

//! The store as its callers see it: a real socket, real files, a real database.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use gantry_chassis::{Channel, Drain, Fault, Paths};
use gantry_proto::store::store_client::StoreClient;
use gantry_proto::store::*;
use gantry_proto::types::{Descriptor, Platform};
use gantry_store::Config;
use gantry_types::ErrorKind;
use sha2::Digest as _;

struct Node {
    paths: Paths,
    drain: Drain,
    client: StoreClient<Channel>,
    _home: Option<tempfile::TempDir>,
}

impl Node {
    async fn start(config: Config) -> Node {
        let home = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: home.path().join("root"),
            run: home.path().join("run"),
        };
        Node::on(paths, config, Some(home)).await
    }

    async fn on(paths: Paths, config: Config, home: Option<tempfile::TempDir>) -> Node {
        let socket = paths.socket("store");
        let listener = gantry_chassis::bind(&socket, 0o600).unwrap();
        let drain = Drain::new();
        drain.spawn("store", {
            let (paths, drain) = (paths.clone(), drain.clone());
            async move {
                gantry_store::run(config, paths, listener.into(), drain)
                    .await
                    .unwrap()
            }
        });
        gantry_chassis::check_health(&socket, Duration::from_secs(10))
            .await
            .unwrap();
        Node {
            client: StoreClient::new(gantry_chassis::connect(&socket)),
            paths,
            drain,
            _home: home,
        }
    }

    async fn restart(self) -> Node {
        assert!(self.drain.finish(Duration::from_secs(5)).await);
        drop(self.client);
        Node::on(self.paths, quick(), self._home).await
    }

    async fn put(&mut self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let begun = self.begin(&digest, &digest).await;
        if !begun.exists {
            append(
                &begun.path,
                &bytes[usize::try_from(begun.offset).unwrap()..],
            );
            self.commit(&digest, &digest, bytes.len()).await.unwrap();
        }
        digest
    }

    async fn begin(&mut self, key: &str, digest: &str) -> BeginIngestResponse {
        let request = BeginIngestRequest {
            key: key.into(),
            digest: digest.into(),
            ..Default::default()
        };
        self.client
            .begin_ingest(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn commit(&mut self, key: &str, digest: &str, size: usize) -> Result<BlobInfo, Fault> {
        let size = i64::try_from(size).unwrap();
        let request = CommitIngestRequest {
            key: key.into(),
            digest: digest.into(),
            size,
            lease: String::new(),
        };
        Ok(self.client.commit_ingest(request).await?.into_inner())
    }

    /// An image of one layer; returns manifest digest, config digest, layer digest.
    async fn image(&mut self, name: &str, architecture: &str) -> [String; 3] {
        let (parts, manifest) = self.manifest(architecture).await;
        self.name(name, &manifest).await;
        [manifest, parts[0].clone(), parts[1].clone()]
    }

    async fn manifest(&mut self, architecture: &str) -> ([String; 2], String) {
        let layer = self
            .put(format!("layer for {architecture}").as_bytes())
            .await;
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","created":"2026-01-02T03:04:05Z","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let config = self.put(config.as_bytes()).await;
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":10}},"layers":[{{"mediaType":"l","digest":"{layer}","size":20}}]}}"#
        );
        let manifest = self.put(manifest.as_bytes()).await;
        ([config, layer], manifest)
    }

    async fn name(&mut self, name: &str, digest: &str) {
        let target = Some(Descriptor {
            digest: digest.into(),
            size: 1,
            ..Descriptor::default()
        });
        let request = PutImageRequest {
            name: name.into(),
            target,
            ..Default::default()
        };
        self.client.put_image(request).await.unwrap();
    }

    async fn resolve(
        &mut self,
        reference: &str,
        architecture: &str,
    ) -> Result<ResolvedImage, Fault> {
        let platform = Some(Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            ..Default::default()
        });
        let request = ResolveImageRequest {
            reference: reference.into(),
            platform,
            lease: String::new(),
        };
        Ok(self.client.resolve_image(request).await?.into_inner())
    }

    async fn collect(&mut self) -> Vec<String> {
        let reply = self
            .client
            .collect_garbage(CollectGarbageRequest::default())
            .await
            .unwrap()
            .into_inner();
        reply.removed.into_iter().map(|blob| blob.digest).collect()
    }

    fn blob_files(&self) -> usize {
        std::fs::read_dir(self.paths.data("store").join("blobs/sha256"))
            .unwrap()
            .count()
    }
}

fn quick() -> Config {
    Config {
        gc_grace_seconds: 0,
        ..Config::default()
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

fn append(path: &str, bytes: &[u8]) {
    std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
}

#[tokio::test]
async fn an_ingest_resumes_and_is_verified() {
    let mut node = Node::start(quick()).await;
    let bytes = vec![7u8; 1 << 20];
    let name = digest(&bytes);
    let begun = node.begin(&name, &name).await;
    append(&begun.path, &bytes[..1000]);
    let mut node = node.restart().await;
    let again = node.begin(&name, &name).await;
    assert_eq!((again.exists, again.offset), (false, 1000));
    append(&again.path, &bytes[1000..]);
    let blob = node.commit(&name, &name, bytes.len()).await.unwrap();
    assert_eq!(std::fs::read(&blob.path).unwrap(), bytes);
    assert_eq!(
        node.commit(&name, &name, bytes.len()).await.unwrap(),
        blob,
        "a repeat gets the same answer"
    );
    assert!(node.begin(&name, &name).await.exists);
    let wide = format!("sha512:{}", hex::encode(sha2::Sha512::digest(b"wide")));
    let begun = node.begin("k", &wide).await;
    append(&begun.path, b"wide");
    assert_eq!(node.commit("k", &wide, 4).await.unwrap().digest, wide);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_dropped() {
    let mut node = Node::start(quick()).await;
    let name = digest(b"right");
    let begun = node.begin(&name, &name).await;
    append(&begun.path, b"wrong");
    let fault = node.commit(&name, &name, 5).await.unwrap_err();
    assert_eq!(fault.kind, ErrorKind::Corrupt);
    assert!(
        fault.message.contains(&name) && fault.message.contains(&digest(b"wrong")),
        "{fault}"
    );
    assert!(!Path::new(&begun.path).exists());
    assert_eq!(node.blob_files(), 0);
    let begun = node.begin(&name, &name).await;
    append(&begun.path, b"right");
    let fault = node.commit(&name, &name, 99).await.unwrap_err();
    assert!(fault.message.contains("99 bytes"), "{fault}");
    assert_eq!(
        node.commit("../../etc/passwd", &name, 1)
            .await
            .unwrap_err()
            .kind,
        ErrorKind::NotFound
    );
    let bad = node
        .client
        .stat_blob(StatBlobRequest {
            digest: "sha256:../x".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(Fault::from(bad).kind, ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn names_digests_ids_and_platforms_resolve() {
    let mut node = Node::start(quick()).await;
    let [manifest, config, layer] = node.image("localhost:5000/one:v1", "amd64").await;
    for reference in [
        "localhost:5000/one:v1".to_owned(),
        format!("localhost:5000/one@{manifest}"),
        config.clone(),
        config[7..19].to_owned(),
    ] {
        let image = node.resolve(&reference, "amd64").await.unwrap();
        assert_eq!(
            image.layers[0].blob.as_ref().unwrap().digest,
            layer,
            "{reference}"
        );
        assert_eq!(image.layers[0].diff_id, layer);
        assert_eq!(image.config.unwrap().digest, config);
    }
    let (_, other) = node.manifest("arm64").await;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{other}","size":1,"platform":{{"os":"linux","architecture":"arm64"}}}},{{"digest":"{manifest}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    );
    let index = node.put(index.as_bytes()).await;
    node.name("busybox", &index).await;
    assert_eq!(
        node.resolve("busybox", "arm64")
            .await
            .unwrap()
            .manifest
            .unwrap()
            .digest,
        other
    );
    assert_eq!(
        node.resolve("docker.io/library/busybox:latest", "amd64")
            .await
            .unwrap()
            .manifest
            .unwrap()
            .digest,
        manifest
    );
    let fault = node.resolve("busybox", "s390x").await.unwrap_err();
    assert_eq!(fault.kind, ErrorKind::NotFound);
    assert!(
        fault.message.contains("linux/arm64, linux/amd64"),
        "{fault}"
    );
    let fault = node.resolve("nothing", "amd64").await.unwrap_err();
    assert_eq!(
        (fault.kind, fault.resource.as_deref()),
        (ErrorKind::NotFound, Some("image/nothing:latest"))
    );
    let list = node
        .client
        .list_images(ListImagesRequest {})
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(list.len(), 2);
    assert!(
        list.iter()
            .all(|image| image.id == config && image.built_at.is_some()),
        "{list:?}"
    );
}

#[tokio::test]
async fn hostile_documents_are_errors() {
    let mut node = Node::start(quick()).await;
    let cases = [
        "not json".to_owned(),
        "{}".to_owned(),
        r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
        r#"{"manifests":[],"config":{"digest":"x"},"layers":[]}"#.to_owned(),
        r#"{"config":{"digest":"sha256:../../etc/passwd"},"layers":[]}"#.to_owned(),
        format!(
            r#"{{"config":{{"digest":"{}","size":-5}},"layers":[]}}"#,
            digest(b"x")
        ),
    ];
    for text in cases {
        let blob = node.put(text.as_bytes()).await;
        node.name("hostile", &blob).await;
        let fault = node.resolve("hostile", "amd64").await.unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Corrupt, "{text}: {fault}");
    }
    let large = node.put(&vec![b' '; 5 << 20]).await;
    node.name("hostile", &large).await;
    assert!(
        node.resolve("hostile", "amd64")
            .await
            .unwrap_err()
            .message
            .contains("4194304")
    );
    let mut inner = node.manifest("amd64").await.1;
    for _ in 0..6 {
        inner = node
            .put(format!(r#"{{"manifests":[{{"digest":"{inner}"}}]}}"#).as_bytes())
            .await;
    }
    node.name("hostile", &inner).await;
    assert!(
        node.resolve("hostile", "amd64")
            .await
            .unwrap_err()
            .message
            .contains("deeper")
    );
}

#[tokio::test]
async fn collection_keeps_what_is_reached() {
    let mut node = Node::start(quick()).await;
    let kept = node.image("kept", "amd64").await;
    let (parts, leased) = node.manifest("arm64").await;
    let request = PutLeaseRequest {
        id: "l".into(),
        holder: "runtime".into(),
        digests: vec![leased.clone()],
        ttl_seconds: 0,
    };
    node.client.put_lease(request).await.unwrap();
    let loose = node.put(b"nobody wants this").await;
    assert_eq!(node.collect().await, std::slice::from_ref(&loose));
    assert_eq!(node.blob_files(), 6);
    assert!(node.collect().await.is_empty());

    // A restart forgets nothing; a lease that its holder no longer names goes.
    let mut node = node.restart().await;
    assert_eq!(
        node.resolve("kept", "amd64")
            .await
            .unwrap()
            .manifest
            .unwrap()
            .digest,
        kept[0]
    );
    let sync = SyncLeasesRequest {
        holder: "runtime".into(),
        ids: vec![],
    };
    assert_eq!(
        node.client
            .sync_leases(sync)
            .await
            .unwrap()
            .into_inner()
            .removed,
        ["l"]
    );
    let mut removed = node.collect().await;
    removed.sort();
    let mut want = vec![leased, parts[0].clone(), parts[1].clone()];
    want.sort();
    assert_eq!(removed, want);
    assert!(
        node.client
            .delete_image(DeleteImageRequest {
                name: "kept".into()
            })
            .await
            .unwrap()
            .into_inner()
            .existed
    );
    node.collect().await;
    assert_eq!(node.blob_files(), 0);
}

#[tokio::test]
async fn the_grace_period_protects_what_just_came() {
    let mut node = Node::start(Config::default()).await;
    node.put(b"fresh").await;
    assert!(node.collect().await.is_empty());
}

#[tokio::test]
async fn files_and_records_are_brought_together() {
    let mut node = Node::start(Config::default()).await;
    let lost = node.put(b"file will go").await;
    let blobs = node.paths.data("store").join("blobs/sha256");
    std::fs::remove_file(blobs.join(&lost[7..])).unwrap();
    let orphan = digest(b"record was not written");
    std::fs::write(blobs.join(&orphan[7..]), b"record was not written").unwrap();
    let mut node = node.restart().await;
    let request = StatBlobsRequest {
        digests: vec![lost, orphan.clone()],
    };
    let present = node
        .client
        .stat_blobs(request)
        .await
        .unwrap()
        .into_inner()
        .blobs;
    assert_eq!(
        present.iter().map(|blob| &blob.digest).collect::<Vec<_>>(),
        [&orphan]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_may_commit_the_same_bytes_at_once() {
    let mut node = Node::start(quick()).await;
    for round in 0..20u32 {
        let bytes: Vec<u8> = (0..50_000u32)
            .flat_map(|n| (n ^ round).to_le_bytes())
            .collect();
        let name = digest(&bytes);
        let begun = node.begin(&name, &name).await;
        append(&begun.path, &bytes);
        let request = || CommitIngestRequest {
            key: name.clone(),
            digest: name.clone(),
            ..Default::default()
        };
        let (mut one, mut two) = (node.client.clone(), node.client.clone());
        let (one, two) = tokio::join!(one.commit_ingest(request()), two.commit_ingest(request()));
        assert_eq!(one.unwrap().into_inner(), two.unwrap().into_inner());
    }
}

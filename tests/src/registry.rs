//! Debian's docker-registry on a free loopback port, with a directory of its own.
//!
//! Invariants: gone with the value; images go in by the public protocol, as any other client would push them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tempfile::TempDir;

use crate::http::request;
use crate::image::{Blob, Image, Index};

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: String,
    /// Digests by name and tag, held by a push. docker-registry loses a blob that two clients upload at once, and fails a
    /// reader of a tag that is being written, also with what it was; neither is what the tests are about.
    pushed: Mutex<BTreeMap<String, String>>,
    home: TempDir,
}

impl Registry {
    /// The registry that the tests of one program share while at least one of them uses it.
    pub fn shared() -> Arc<Registry> {
        static SHARED: Mutex<Weak<Registry>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|broken| broken.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let registry = Arc::new(Registry::start());
            *shared = Arc::downgrade(&registry);
            registry
        })
    }

    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When docker-registry is not installed or does not answer.
    pub fn start() -> Registry {
        Self::launch(false)
    }

    /// One with TLS, for `127.0.0.1`, whose authority is in `ca.crt` of [`Registry::home`], and which knows only alice with
    /// the password "secret".
    ///
    /// # Panics
    /// When docker-registry or openssl is not installed.
    pub fn guarded() -> Registry {
        Self::launch(true)
    }

    /// Its directory.
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    fn launch(guarded: bool) -> Registry {
        let home = tempfile::tempdir().unwrap();
        let mut guard = String::new();
        let mut tls = String::new();
        if guarded {
            certificate(home.path());
            let users = home.path().join("htpasswd");
            // bcrypt of "secret".
            std::fs::write(
                &users,
                "alice:$2b$04$0gdeflYcfObN/QI4grOVau.3bnwN7.G42Qv2XVCVwWoOKKg65SYF6\n",
            )
            .unwrap();
            guard = format!(
                "auth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
                users.display()
            );
            let at = |name: &str| home.path().join(name).display().to_string();
            tls = format!(
                ", tls: {{certificate: {}, key: {}}}",
                at("server.crt"),
                at("server.key")
            );
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        let config = home.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: {address:?}, secret: tests{tls}}}\n{guard}",
                home.path().join("data").display()
            ),
        )
        .unwrap();
        drop(free);
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry (apt-get install docker-registry)");
        let registry = Registry {
            process,
            address,
            pushed: Mutex::default(),
            home,
        };
        crate::within(Duration::from_secs(20), "docker-registry answers", || {
            std::net::TcpStream::connect(&registry.address).ok()
        });
        registry
    }

    /// "127.0.0.1:port"
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes an image as `name:tag`; the reference to pull it by.
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> String {
        self.once(name, tag, &image.manifest(), || {
            self.put_blobs(name, image);
        });
        format!("{}/{name}:{tag}", self.address)
    }

    /// Pushes several images under one index; the reference.
    pub fn push_index(&self, name: &str, tag: &str, index: &Index) -> String {
        self.once(name, tag, &index.blob(), || {
            for (image, _) in &index.images {
                self.put_blobs(name, image);
                let manifest = image.manifest();
                self.put_manifest(name, &manifest.digest, &manifest);
            }
        });
        format!("{}/{name}:{tag}", self.address)
    }

    /// Pushes what a manifest refers to, and the manifest, unless the tag has it already.
    fn once(&self, name: &str, tag: &str, manifest: &Blob, contents: impl FnOnce()) {
        let mut pushed = self
            .pushed
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let key = format!("{name}:{tag}");
        if pushed.get(&key) != Some(&manifest.digest) {
            contents();
            self.put_manifest(name, tag, manifest);
            pushed.insert(key, manifest.digest.clone());
        }
    }

    fn put_blobs(&self, name: &str, image: &Image) {
        self.put_blob(name, &image.config());
        for layer in &image.layers {
            self.put_blob(name, layer);
        }
    }

    fn put_blob(&self, name: &str, blob: &Blob) {
        let path = format!("/v2/{name}/blobs/{}", blob.digest);
        let there = request("HEAD", &self.address, &path, &[], b"").unwrap();
        if there.status == 200 {
            return;
        }
        let path = format!("/v2/{name}/blobs/uploads/");
        let begun = request("POST", &self.address, &path, &[], b"").unwrap();
        assert_eq!(begun.status, 202, "begin an upload: {begun:?}");
        let location = &begun.headers["location"];
        let at = location
            .split_once(self.address.as_str())
            .map_or(location.as_str(), |(_, path)| path);
        let join = if at.contains('?') { '&' } else { '?' };
        let path = format!("{at}{join}digest={}", blob.digest);
        let kind = "Content-Type: application/octet-stream".to_owned();
        let done = request("PUT", &self.address, &path, &[kind], &blob.bytes).unwrap();
        assert_eq!(done.status, 201, "upload a blob: {done:?}");
    }

    fn put_manifest(&self, name: &str, reference: &str, blob: &Blob) {
        let path = format!("/v2/{name}/manifests/{reference}");
        let kind = format!("Content-Type: {}", blob.media_type);
        let done = request("PUT", &self.address, &path, &[kind], &blob.bytes).unwrap();
        assert_eq!(
            done.status,
            201,
            "put a manifest: {}",
            String::from_utf8_lossy(&done.body)
        );
    }
}

/// An authority of our own, and a certificate by it for 127.0.0.1.
fn certificate(home: &std::path::Path) {
    crate::command::shell(&format!(
        "cd {} && exec 2>/dev/null && \
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=tests-ca -keyout ca.key -out ca.crt && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=tests -keyout server.key -out server.csr && \
         printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >ext && \
         openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
        home.display()
    ));
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Layer;

    #[test]
    fn a_pushed_image_is_what_others_see() {
        let registry = Registry::start();
        let image = Image::new(vec![Layer::new().file("a", 0o644, b"x").gzip()]);
        let reference = registry.push("made/here", "1", &image);
        let seen = Command::new("skopeo")
            .args(["inspect", "--tls-verify=false"])
            .arg(format!("docker://{reference}"))
            .output()
            .unwrap();
        assert!(seen.status.success(), "{seen:?}");
        let json: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
        assert_eq!(json["Digest"], image.manifest().digest.as_str());
        assert_eq!(json["Layers"][0], image.layers[0].digest.as_str());
    }
}

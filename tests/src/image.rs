//! Images made on the fly: layers entry by entry, honest or hostile.
//!
//! Invariant: the same calls give the same bytes, so digests are stable.

use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Modification time of every entry that does not say otherwise: 2023-11-14T22:13:20Z.
pub const MTIME: u64 = 1_700_000_000;

/// Bytes with a name.
#[derive(Debug, Clone)]
pub struct Blob {
    /// OCI media type.
    pub media_type: String,
    /// "sha256:hex" of the bytes (or what a hostile image claims).
    pub digest: String,
    /// Size as claimed; normally that of the bytes.
    pub size: u64,
    /// The content.
    pub bytes: Vec<u8>,
    /// Of a layer: the digest of the uncompressed tar.
    pub diff_id: String,
}

/// The digest of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Blob {
    fn new(media_type: &str, bytes: Vec<u8>) -> Blob {
        Blob {
            media_type: media_type.into(),
            digest: digest(&bytes),
            size: bytes.len() as u64,
            bytes,
            diff_id: String::new(),
        }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A layer being written.
#[derive(Debug, Default)]
pub struct Layer {
    tar: Vec<u8>,
    owner: (u64, u64),
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Layer {
        Layer::default()
    }

    /// Owner of the entries that follow.
    pub fn owner(mut self, uid: u64, gid: u64) -> Layer {
        self.owner = (uid, gid);
        self
    }

    /// A directory.
    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.entry(path, tar::EntryType::Directory, mode, "", b"")
    }

    /// A regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Layer {
        self.entry(path, tar::EntryType::Regular, mode, "", content)
    }

    /// A regular file with extended attributes (as star's and GNU tar's `SCHILY.xattr.` records).
    pub fn file_with_xattrs(
        mut self,
        path: &str,
        mode: u32,
        content: &[u8],
        xattrs: &[(&str, &[u8])],
    ) -> Layer {
        let mut records = Vec::new();
        for (name, value) in xattrs {
            let mut tail = format!(" SCHILY.xattr.{name}=").into_bytes();
            tail.extend_from_slice(value);
            tail.push(b'\n');
            // The length counts its own digits.
            let mut length = tail.len() + 1;
            while length.to_string().len() + tail.len() != length {
                length = length.to_string().len() + tail.len();
            }
            records.extend_from_slice(length.to_string().as_bytes());
            records.extend_from_slice(&tail);
        }
        self = self.entry("pax", tar::EntryType::XHeader, 0o644, "", &records);
        self.file(path, mode, content)
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(path, tar::EntryType::Symlink, 0o777, target, b"")
    }

    /// A hard link to a path of this or a lower layer.
    pub fn hardlink(self, path: &str, target: &str) -> Layer {
        self.entry(path, tar::EntryType::Link, 0o644, target, b"")
    }

    /// A device node.
    pub fn device(self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Layer {
        let mut header = self.header(path, kind, 0o666, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.append(header, "", b"")
    }

    /// Takes away what a lower layer has at `path`.
    pub fn whiteout(self, path: &str) -> Layer {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let at = format!("{dir}{}.wh.{name}", if dir.is_empty() { "" } else { "/" });
        self.file(&at, 0o644, b"")
    }

    /// Takes away everything that lower layers have in `path`.
    pub fn opaque(self, path: &str) -> Layer {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, b"")
    }

    /// Bytes as they are, for damaged layers.
    pub fn raw(mut self, bytes: &[u8]) -> Layer {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Any entry; the path is written as given, also when no honest tool would.
    pub fn entry(
        self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        target: &str,
        content: &[u8],
    ) -> Layer {
        let header = self.header(path, kind, mode, content.len() as u64);
        self.append(header, target, content)
    }

    fn header(&self, path: &str, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        // Not set_path: that one refuses `..` and absolute paths.
        let field = &mut header.as_old_mut().name;
        assert!(
            path.len() <= field.len(),
            "use a long-name record for {path}"
        );
        field[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(MTIME);
        header.set_size(size);
        header
    }

    fn append(mut self, mut header: tar::Header, target: &str, content: &[u8]) -> Layer {
        let field = &mut header.as_old_mut().linkname;
        field[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// The layer as gzip.
    pub fn gzip(self) -> Blob {
        self.pack(Compression::Gzip)
    }

    /// The layer, packed.
    pub fn pack(mut self, how: Compression) -> Blob {
        self.tar.resize(self.tar.len() + 1024, 0);
        pack(&self.tar, how)
    }

    /// The layer without the two blocks that end an archive, cut at `length`.
    pub fn truncated(mut self, length: usize) -> Blob {
        self.tar.truncate(length);
        pack(&self.tar, Compression::Gzip)
    }
}

/// A finished tar as a layer.
pub fn pack(tar: &[u8], how: Compression) -> Blob {
    let base = "application/vnd.oci.image.layer.v1.tar";
    let mut blob = match how {
        Compression::None => Blob::new(base, tar.to_vec()),
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(tar).unwrap();
            Blob::new(&format!("{base}+gzip"), writer.finish().unwrap())
        }
        Compression::Zstd => Blob::new(&format!("{base}+zstd"), zstd::encode_all(tar, 1).unwrap()),
    };
    blob.diff_id = digest(tar);
    blob
}

/// An image of one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// Lowest first.
    pub layers: Vec<Blob>,
    /// The `config` object of the image config: Cmd, Env, User, ...
    pub run: Value,
    /// "amd64", "arm64", ...
    pub architecture: String,
    /// Replaces the true diff_ids, for lies.
    pub diff_ids: Option<Vec<String>>,
}

impl Image {
    /// For this machine's processor, with Docker's usual PATH.
    pub fn new(layers: Vec<Blob>) -> Image {
        Image {
            layers,
            run: json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]}),
            architecture: host_architecture().into(),
            diff_ids: None,
        }
    }

    /// Sets one key of the config ("Entrypoint", "User", ...).
    pub fn with(mut self, key: &str, value: Value) -> Image {
        self.run[key] = value;
        self
    }

    /// The image config.
    pub fn config(&self) -> Blob {
        let diff_ids = self.diff_ids.clone().unwrap_or_else(|| {
            self.layers
                .iter()
                .map(|layer| layer.diff_id.clone())
                .collect()
        });
        let config = json!({
            "created": "2023-11-14T22:13:20Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Blob::new(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        )
    }

    /// The manifest.
    pub fn manifest(&self) -> Blob {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": self.config().descriptor(),
            "layers": self.layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Blob::new(kind, manifest.to_string().into_bytes())
    }

    /// Writes the image as an OCI layout, where tools that read those find it as `tag`.
    pub fn write_layout(&self, dir: &std::path::Path, tag: &str) {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let manifest = self.manifest();
        for blob in self.layers.iter().chain([&self.config(), &manifest]) {
            let hex = blob.digest.trim_start_matches("sha256:");
            std::fs::write(blobs.join(hex), &blob.bytes).unwrap();
        }
        let mut descriptor = manifest.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// Several images under one name.
#[derive(Debug, Clone)]
pub struct Index {
    /// Each with its platform object: `{"os": "linux", "architecture": "arm64", "variant": "v8"}`.
    pub images: Vec<(Image, Value)>,
}

impl Index {
    /// The index document.
    pub fn blob(&self) -> Blob {
        let kind = "application/vnd.oci.image.index.v1+json";
        let manifests: Vec<Value> = self
            .images
            .iter()
            .map(|(image, platform)| {
                let mut descriptor = image.manifest().descriptor();
                descriptor["platform"] = platform.clone();
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        Blob::new(kind, index.to_string().into_bytes())
    }
}

/// This machine's processor in Go's words, as images use them.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_tars_that_others_read() {
        let blob = Layer::new()
            .dir("d/", 0o755)
            .owner(7, 8)
            .file_with_xattrs("d/f", 0o640, b"hello", &[("user.a", b"1=2")])
            .symlink("l", "d/f")
            .whiteout("d/gone")
            .pack(Compression::Zstd);
        let tar = zstd::decode_all(blob.bytes.as_slice()).unwrap();
        assert_eq!(digest(&tar), blob.diff_id);
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.len() == 2 {
                assert_eq!(entry.header().uid().unwrap(), 7);
                let pax: Vec<_> = entry.pax_extensions().unwrap().unwrap().collect();
                let record = pax[0].as_ref().unwrap();
                assert_eq!(record.key().unwrap(), "SCHILY.xattr.user.a");
                assert_eq!(record.value_bytes(), b"1=2");
            }
        }
        assert_eq!(names, ["d/", "d/f", "l", "d/.wh.gone"]);
    }
}

//! Images in from a tar stream: an OCI image layout, a docker archive, or both at once.
//!
//! Invariants: entries may come in any order; a blob is taken under its own digest only; documents are bounded, and so is the number of
//! entries; nothing is written at a path that the archive names. Names are put at the end.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::Arc;

use gantry_chassis::pipe::Reader;
use gantry_types::{Digest, Platform};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::layout::{self, DockerImage, Named};
use super::{DANGLING, OWN_LEASES};
use crate::Error;
use crate::index::{Begun, Blob, Store};
use crate::manifest::{self, Descriptor};
use crate::tree::walk;

/// Most entries of an archive.
const MOST_ENTRIES: usize = 200_000;
/// Seconds that a stream may take.
const LEASE_SECONDS: i64 = 86_400;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A blob was taken in.
    Blob(Blob),
    /// An image is there.
    Image {
        name: String,
        target: Descriptor,
        id: Option<Digest>,
        dangling: bool,
    },
}

/// What an archive had.
#[derive(Default)]
struct Found {
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    /// Blobs by their paths, for docker's archives.
    blobs: HashMap<String, Blob>,
    /// Links of old docker archives: path and target.
    links: HashMap<String, String>,
    /// First bytes of each blob that has a path of its own.
    starts: HashMap<String, [u8; 4]>,
}

struct Import<'a> {
    store: &'a Store,
    handle: Handle,
    lease: String,
    tell: &'a mpsc::Sender<Event>,
    found: Found,
    /// Staging keys of this import, to be dropped when it fails.
    number: usize,
}

fn wrong(entry: &str, reason: impl Into<String>) -> Error {
    Error::Archive {
        entry: entry.to_owned(),
        reason: reason.into(),
    }
}

/// A path of the archive without `./`; one that leaves it is an error.
fn clean(path: &str) -> Result<String, Error> {
    let mut parts = Vec::new();
    if path.starts_with('/') {
        return Err(wrong(path, "the path is absolute"));
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(wrong(path, "the path leaves the archive")),
            other => parts.push(other),
        }
    }
    Ok(parts.join("/"))
}

/// A link's target, seen from the archive's root.
fn target(link: &str, to: &str) -> Result<String, Error> {
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return Err(wrong(
                        link,
                        format!("the link to {to:?} leaves the archive"),
                    ));
                }
            }
            other => parts.push(other),
        }
    }
    Ok(parts.join("/"))
}

fn blob_of(path: &str) -> Option<Result<Digest, Error>> {
    let rest = path.strip_prefix("blobs/")?;
    let (algorithm, hex) = rest.split_once('/')?;
    Some(
        format!("{algorithm}:{hex}")
            .parse()
            .map_err(|error| wrong(path, format!("{error}"))),
    )
}

/// The stream, decompressed when it is compressed as a whole.
fn open(reader: Reader) -> Result<Box<dyn Read>, Error> {
    let mut buffered = BufReader::with_capacity(64 << 10, reader);
    let start = std::io::BufRead::fill_buf(&mut buffered).map_err(|_| Error::Gone)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::Decoder::with_buffer(buffered)
                .map_err(|error| Error::NoArchive(format!("zstd: {error}")))?;
            Box::new(decoder)
        }
        [] => return Err(Error::NoArchive("it is empty".into())),
        _ => Box::new(buffered),
    })
}

impl Import<'_> {
    fn read(&mut self, reader: Reader) -> Result<(), Error> {
        let mut archive = tar::Archive::new(open(reader)?);
        let broken = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::Gone,
            _ => Error::NoArchive(format!("it is no tar archive, or ends early: {error}")),
        };
        for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
            let mut entry = entry.map_err(broken)?;
            if count >= MOST_ENTRIES {
                return Err(Error::NoArchive(format!(
                    "it has more than {MOST_ENTRIES} entries"
                )));
            }
            let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = clean(&raw)?;
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let bytes = entry.link_name_bytes().unwrap_or_default();
                let to = String::from_utf8_lossy(&bytes).into_owned();
                let to = if kind.is_symlink() {
                    target(&path, &to)?
                } else {
                    clean(&to)?
                };
                self.found.links.insert(path, to);
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            self.file(path, &mut entry)?;
        }
        Ok(())
    }

    fn file(&mut self, path: String, entry: &mut impl Read) -> Result<(), Error> {
        match path.as_str() {
            "index.json" => self.found.index = Some(document(&path, entry)?),
            "manifest.json" => self.found.docker = Some(document(&path, entry)?),
            "oci-layout" | "repositories" => {}
            _ => {
                if let Some(digest) = blob_of(&path) {
                    self.blob(path, Some(digest?), entry)?;
                } else if path.ends_with(".tar") || path.ends_with(".json") {
                    self.blob(path, None, entry)?;
                }
            }
        }
        Ok(())
    }

    fn blob(
        &mut self,
        path: String,
        digest: Option<Digest>,
        entry: &mut impl Read,
    ) -> Result<(), Error> {
        self.number += 1;
        let key = format!("{}-{}", self.lease, self.number);
        let begun =
            self.handle
                .block_on(self.store.begin(key.clone(), digest.clone(), &self.lease))?;
        let staged = match (begun, &digest) {
            (Begun::Exists, Some(digest)) => {
                // Nothing to write; what the archive has is not looked at.
                let blob = self.handle.block_on(self.store.stat(digest));
                let blob = blob.ok_or_else(|| Error::NoBlob(digest.clone()))?;
                self.found.blobs.insert(path, blob);
                return Ok(());
            }
            (Begun::Staged { path, .. }, _) => path,
            (Begun::Exists, None) => return Err(Error::CutOff),
        };
        let result = self.stage(&path, &staged, entry).and_then(|start| {
            let commit = self.store.commit(key.clone(), digest, 0, &self.lease);
            let blob = self.handle.block_on(commit).map_err(|error| match error {
                Error::Mismatch { expected, got } => {
                    wrong(&path, format!("its digest is {got}, not {expected}"))
                }
                other => other,
            })?;
            Ok((start, blob))
        });
        match result {
            Ok((start, blob)) => {
                let _ = self.tell.blocking_send(Event::Blob(blob.clone()));
                self.found.starts.insert(path.clone(), start);
                self.found.blobs.insert(path, blob);
                Ok(())
            }
            Err(error) => {
                self.store.files.abort(&key)?;
                Err(error)
            }
        }
    }

    fn stage(
        &self,
        path: &str,
        staged: &std::path::Path,
        entry: &mut impl Read,
    ) -> Result<[u8; 4], Error> {
        use std::io::Write as _;
        let mut file = std::fs::File::options()
            .write(true)
            .truncate(true)
            .open(staged)
            .map_err(Error::io("open", staged))?;
        let mut start = [0; 4];
        let mut seen = 0usize;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = entry
                .read(&mut buffer)
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::BrokenPipe => Error::Gone,
                    _ => wrong(path, format!("the archive ends early: {error}")),
                })?;
            if length == 0 {
                return Ok(start);
            }
            for byte in buffer[..length].iter().take(4usize.saturating_sub(seen)) {
                start[seen] = *byte;
                seen += 1;
            }
            file.write_all(&buffer[..length])
                .map_err(Error::io("write", staged))?;
        }
    }

    /// Follows links to a blob.
    fn at(&self, path: &str) -> Result<(String, Blob), Error> {
        let mut at = clean(path)?;
        for _ in 0..8 {
            if let Some(blob) = self.found.blobs.get(&at) {
                return Ok((at, blob.clone()));
            }
            match self.found.links.get(&at) {
                Some(to) => at = to.clone(),
                None => break,
            }
        }
        Err(wrong(path, "manifest.json names it, and it is not there"))
    }

    /// The manifest of an image of an old docker archive: found again when the archive came from a layout, else made.
    fn docker(&mut self, image: &DockerImage) -> Result<Descriptor, Error> {
        let (_, config) = self.at(&image.config)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (path, blob) = self.at(layer)?;
            let start = match self.found.starts.get(&path) {
                Some(start) => *start,
                None => first_bytes(&self.store.files.blob(&blob.digest))?,
            };
            let suffix = match start {
                [0x1f, 0x8b, ..] => "+gzip",
                [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
                _ => "",
            };
            layers.push(Descriptor {
                media_type: format!("{LAYER}{suffix}"),
                digest: blob.digest,
                size: i64::try_from(blob.size).unwrap_or(i64::MAX),
                platform: None,
            });
        }
        let config = Descriptor {
            media_type: CONFIG.into(),
            digest: config.digest,
            size: i64::try_from(config.size).unwrap_or(i64::MAX),
            platform: None,
        };
        let bytes = layout::manifest(&config, &layers);
        let path = format!("manifest of {}", image.config);
        self.blob(path.clone(), None, &mut bytes.as_slice())?;
        let blob = self.found.blobs.get(&path).ok_or(Error::CutOff)?;
        Ok(Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: blob.digest.clone(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            platform: None,
        })
    }

    /// Images with their names, from whichever document the archive has.
    fn images(&mut self) -> Result<Vec<Named>, Error> {
        let mut images = Vec::new();
        if let Some(bytes) = self.found.index.take() {
            images = layout::read_index(&bytes).map_err(|reason| wrong("index.json", reason))?;
        }
        let docker = match self.found.docker.take() {
            Some(bytes) => {
                layout::read_docker(&bytes).map_err(|reason| wrong("manifest.json", reason))?
            }
            None => Vec::new(),
        };
        if images.is_empty() {
            for image in docker {
                let target = self.docker(&image)?;
                let tags = image.repo_tags.unwrap_or_default();
                if tags.is_empty() {
                    images.push(Named {
                        name: None,
                        target: target.clone(),
                    });
                }
                for tag in tags {
                    let reference: gantry_types::Reference = tag
                        .parse()
                        .map_err(|error| wrong("manifest.json", format!("{error}")))?;
                    images.push(Named {
                        name: Some(reference.to_string()),
                        target: target.clone(),
                    });
                }
            }
        }
        if images.is_empty() {
            return Err(Error::NoArchive(
                "it names no image: it has neither index.json nor manifest.json with one".into(),
            ));
        }
        Ok(images)
    }

    /// Checks what the images need, and names them.
    fn finish(&mut self, platform: Option<&Platform>) -> Result<(), Error> {
        let images = self.images()?;
        let mut ready = Vec::new();
        for image in images {
            let name = image
                .name
                .clone()
                .unwrap_or_else(|| image.target.digest.to_string());
            let members = walk(&self.store.files, &image.target)?;
            let whole = members
                .iter()
                .any(|member| member.held && !member.index && !member.attestation);
            if !whole {
                return Err(Error::NoArchive(format!(
                    "image {name} is not whole: blobs that {} names are missing",
                    image.target.digest
                )));
            }
            let mut target = image.target;
            if let Some(platform) = platform {
                let found = members.iter().find(|member| member.runs_on(platform));
                let found = found.ok_or_else(|| Error::NoPlatform {
                    name: name.clone(),
                    platform: platform.to_string(),
                    available: "others".into(),
                })?;
                target = found.at.clone();
            }
            let host = Platform::host();
            let id = members
                .iter()
                .find(|member| member.runs_on(&host))
                .and_then(|member| Some(member.config.as_ref()?.digest.clone()));
            ready.push((image.name, target, id));
        }
        for (name, target, id) in ready {
            let dangling = name.is_none();
            let name = name.unwrap_or_else(|| format!("{DANGLING}@{}", target.digest));
            let put = self.store.put_image(&name, &target, HashMap::new());
            let (name, _) = self.handle.block_on(put)?;
            let _ = self.tell.blocking_send(Event::Image {
                name,
                target,
                id,
                dangling,
            });
        }
        Ok(())
    }
}

fn first_bytes(path: &std::path::Path) -> Result<[u8; 4], Error> {
    let mut start = [0; 4];
    let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut at = 0;
    while at < start.len() {
        match file
            .read(&mut start[at..])
            .map_err(Error::io("read", path))?
        {
            0 => break,
            length => at += length,
        }
    }
    Ok(start)
}

fn document(path: &str, entry: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    entry
        .take(manifest::LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(path, format!("the archive ends early: {error}")))?;
    if bytes.len() as u64 > manifest::LARGEST {
        return Err(wrong(
            path,
            format!("it is larger than {} MiB", manifest::LARGEST >> 20),
        ));
    }
    Ok(bytes)
}

impl Store {
    /// Takes images in. Blocks: to be run where that is fine, with the runtime's handle.
    pub(crate) fn import(
        self: &Arc<Self>,
        handle: Handle,
        chunks: mpsc::Receiver<Option<Vec<u8>>>,
        platform: Option<&Platform>,
        tell: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        let lease = format!("load-{:016x}", rand::random::<u64>());
        handle.block_on(self.put_lease(&lease, OWN_LEASES, &[], LEASE_SECONDS))?;
        let mut import = Import {
            store: self,
            handle: handle.clone(),
            lease: lease.clone(),
            tell,
            found: Found::default(),
            number: 0,
        };
        let result = import
            .read(Reader::new(chunks))
            .and_then(|()| import.finish(platform));
        handle.block_on(self.delete_lease(&lease))?;
        if result.is_err() {
            self.collect_soon.notify_one();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(clean("./a//b/./c").unwrap(), "a/b/c");
        assert!(clean("../a").is_err() && clean("a/../../b").is_err() && clean("/a").is_err());
        assert_eq!(
            target("a/layer.tar", "../b/layer.tar").unwrap(),
            "b/layer.tar"
        );
        assert!(target("a/layer.tar", "../../b").is_err());
        assert!(blob_of("blobs/sha256/zz").unwrap().is_err());
        assert!(blob_of("other").is_none());
    }
}

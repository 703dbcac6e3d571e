//! Making a container: everything is reserved, checked and prepared before one commit makes it exist.
//!
//! Invariants: a creation that fails takes back what it made; one that is cut off leaves nothing that the next start of the
//! service does not find without an owner; the same key gives the same container.

use std::sync::Arc;

use super::{Hub, now};
use crate::container::Container;
use crate::convert::{ContainerConfig, MountSpec};
use crate::error::Error;
use crate::launch;
use crate::names;
use crate::peers::Image;
use crate::schema::{ContainerRecord, RunRecord};
use crate::spec::{self, Spec};

/// A reserved name, given back unless the container comes to be.
struct Reservation<'a> {
    hub: &'a Hub,
    id: String,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let mut index = self.hub.lock();
            index.names.retain(|_, owner| *owner != self.id);
            index.keys.retain(|_, owner| *owner != self.id);
        }
    }
}

impl Hub {
    /// Makes a container; nothing runs yet.
    ///
    /// # Errors
    /// NotFound for an image that is not in the store; [`Error::NameTaken`]; [`Error::Field`].
    pub async fn create(
        self: Arc<Self>,
        config: ContainerConfig,
        key: String,
    ) -> Result<Arc<Container>, Error> {
        self.ready().await?;
        if let Some(known) = self.made_with(&key)? {
            return Ok(known);
        }
        let (id, name, mut reservation) = self.reserve(&config, &key)?;
        let platform = config.platform.clone();
        let image = self.peers.image(&config.image, platform).await?;
        let document = spec::image_config(&image.name, &image.config)?;
        let spec = spec::resolve(&id, &config, &document)?;
        check(&self, &config)?;
        let made = self.make(&id, name, config, key, &image, spec).await;
        match made {
            Ok(container) => {
                reservation.kept = true;
                self.tell(&container, "create", &[]);
                Ok(container)
            }
            Err(error) => {
                self.take_back(&id).await;
                Err(error)
            }
        }
    }

    fn made_with(&self, key: &str) -> Result<Option<Arc<Container>>, Error> {
        let index = self.lock();
        match index.keys.get(key) {
            None => Ok(None),
            Some(id) => match index.by_id.get(id) {
                Some(container) => Ok(Some(container.clone())),
                None => Err(Error::Creating(id.clone())),
            },
        }
    }

    fn reserve(
        &self,
        config: &ContainerConfig,
        key: &str,
    ) -> Result<(String, String, Reservation<'_>), Error> {
        let id = names::id();
        let mut index = self.lock();
        let name = if config.name.is_empty() {
            names::generate(|name| !index.names.contains_key(name))
        } else {
            let name = config.name.strip_prefix('/').unwrap_or(&config.name);
            names::check(name)?;
            name.to_owned()
        };
        if let Some(owner) = index.names.get(&name) {
            return Err(Error::NameTaken {
                id: owner.chars().take(12).collect(),
                name,
            });
        }
        index.names.insert(name.clone(), id.clone());
        if !key.is_empty() {
            index.keys.insert(key.to_owned(), id.clone());
        }
        drop(index);
        let reservation = Reservation {
            hub: self,
            id: id.clone(),
            kept: false,
        };
        Ok((id, name, reservation))
    }

    async fn make(
        &self,
        id: &str,
        name: String,
        config: ContainerConfig,
        key: String,
        image: &Image,
        spec: Spec,
    ) -> Result<Arc<Container>, Error> {
        let (root, held) = tokio::join!(
            self.peers.prepare(id, image),
            self.peers.hold(id, &image.manifest)
        );
        let root = root?;
        held?;
        let mut record = ContainerRecord {
            name,
            args: spec.args,
            env: spec.env,
            cwd: spec.cwd,
            user: spec.user,
            stop_signal: spec.stop_signal,
            hostname: spec.hostname,
            exposed: spec.exposed,
            labels: spec.labels,
            image_name: image.name.clone(),
            image_id: image.id.clone(),
            image_manifest: image.manifest.clone(),
            root,
            created_at: now(),
            idempotency_key: key,
            config: Some(config),
            ..ContainerRecord::default()
        };
        for mount in spec.mounts {
            self.place(id, &mut record, mount).await?;
        }
        let home = self.home(id);
        std::fs::create_dir_all(&home).map_err(Error::io("make", &home))?;
        let mut batch = self.db.batch();
        self.containers.put(&mut batch, id.as_bytes(), &record);
        self.db.commit(batch).await?;
        let container = Container::new(id, record, RunRecord::default(), home, self.shim_dir(id));
        self.lock().by_id.insert(id.to_owned(), container.clone());
        Ok(container)
    }

    /// Makes what a mount needs on the host: a directory, a volume with the image's content.
    async fn place(
        &self,
        id: &str,
        record: &mut ContainerRecord,
        mut mount: MountSpec,
    ) -> Result<(), Error> {
        match mount.r#type.as_str() {
            "volume" => {
                let anonymous = mount.source.is_empty();
                let (name, path) = self.peers.volume(id, &mount.source).await?;
                if anonymous {
                    record.anonymous_volumes.push(name.clone());
                }
                if !mount.no_copy {
                    self.peers.seed_volume(&name, id, &mount.target).await?;
                }
                record.volumes.insert(mount.target.clone(), name);
                mount.source = path;
            }
            "bind" => {
                let source = std::path::Path::new(&mount.source);
                if !source.exists() {
                    if !mount.create_source {
                        return Err(Error::field(
                            "mount source",
                            &mount.source,
                            "does not exist; make it first, or use -v, which makes a directory",
                        ));
                    }
                    std::fs::create_dir_all(source).map_err(Error::io("make", source))?;
                }
            }
            _ => {}
        }
        record.mounts.push(mount);
        Ok(())
    }

    /// Undoes a creation. What cannot be undone now has no owner, and goes at the next start of the service.
    async fn take_back(&self, id: &str) {
        let (snapshot, lease) =
            tokio::join!(self.peers.remove_snapshot(id), self.peers.release(id));
        for result in [snapshot, lease] {
            if let Err(error) = result {
                tracing::debug!(id, %error, "left for the next start of the service");
            }
        }
        // It may not be there.
        let _ = std::fs::remove_dir_all(self.home(id));
    }
}

/// What the launch plan would refuse is refused now, before anything is made.
fn check(hub: &Hub, config: &ContainerConfig) -> Result<(), Error> {
    let security = config.security.clone().unwrap_or_default();
    launch::capabilities(&security)?;
    launch::limits(config)?;
    launch::check_devices(config)?;
    let record = ContainerRecord {
        config: Some(config.clone()),
        ..ContainerRecord::default()
    };
    launch::process(&hub.host, &record, false)?;
    Ok(())
}

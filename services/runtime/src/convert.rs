//! Between the wire and the service.
//!
//! A container's configuration is the user's document: it is kept and worked with as it came, so the wire message is the
//! record and the domain value; the same holds for what network says of endpoints. They enter the service here.

use gantry_proto::runtime as pb;
use prost_types::Timestamp;

pub use gantry_proto::network::{Endpoint, EndpointRequest, PortMapping, Protocol};
#[cfg(test)]
pub use gantry_proto::runtime::Device;
pub use gantry_proto::runtime::{ContainerConfig, MountSpec, Resources, Security, Ulimit};

use crate::container::View;
use crate::state::State;

/// Nanoseconds since 1970 as a timestamp; 0 = none.
pub fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos != 0).then(|| Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    })
}

/// A timestamp as nanoseconds since 1970.
pub fn nanos(timestamp: &Timestamp) -> i64 {
    timestamp
        .seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(timestamp.nanos.into())
}

fn status(state: &State) -> pb::Status {
    match state {
        State::Created => pb::Status::Created,
        State::Starting => pb::Status::Starting,
        State::Running { .. } => pb::Status::Running,
        State::Stopping { .. } => pb::Status::Stopping,
        State::Exited(_) => pb::Status::Exited,
        State::Removing => pb::Status::Removing,
    }
}

/// What `inspect` and `ps` show.
pub fn container(view: &View) -> pb::Container {
    let record = &view.record;
    let config = record.config.clone().unwrap_or_default();
    let exit = match &view.state {
        State::Exited(exit) => exit.clone(),
        _ => crate::state::Exit::default(),
    };
    let mode = config
        .network
        .as_ref()
        .and_then(|network| network.endpoints.first())
        .map(|endpoint| endpoint.network.clone())
        .unwrap_or_default();
    let mounts = record.mounts.iter().map(|mount| MountSpec {
        // A volume is known by its name; where it lies is for the engine.
        source: record
            .volumes
            .get(&mount.target)
            .cloned()
            .unwrap_or_else(|| mount.source.clone()),
        ..mount.clone()
    });
    pb::Container {
        id: view.id.clone(),
        name: record.name.clone(),
        args: record.args.clone(),
        image_name: record.image_name.clone(),
        image_id: record.image_id.clone(),
        image_manifest: record.image_manifest.clone(),
        status: status(&view.state).into(),
        pid: view.state.pid().unwrap_or(0),
        exit_code: exit.code,
        oom_killed: exit.oom,
        error: exit.error,
        created_at: timestamp(record.created_at),
        started_at: timestamp(view.run.started_at),
        finished_at: timestamp(if view.state.is_active() {
            0
        } else {
            view.run.finished_at
        }),
        restart_count: view.run.restart_count,
        endpoints: view.endpoints.clone(),
        ports: view.ports.clone(),
        mounts: mounts.collect(),
        log_path: view.log_path.to_string_lossy().into_owned(),
        netns: view.netns.clone(),
        hostname: record.hostname.clone(),
        network_mode: mode,
        config: Some(ContainerConfig {
            // What runs, image and request together.
            env: record.env.clone(),
            labels: record.labels.clone(),
            workdir: record.cwd.clone(),
            user: record.user.clone(),
            ..config
        }),
    }
}

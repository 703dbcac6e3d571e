//! Between the wire and the registry's own values.

use gantry_proto::registry::*;
use gantry_proto::types;

use crate::credentials;
use crate::document::Descriptor;
use crate::progress::{Phase, Sum};
use crate::pull::{self, Event, Policy};
use crate::push;
use crate::query::Referrer;
use crate::serve::{Seen, Settings};

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn descriptor(from: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: from.media_type,
        digest: from.digest.to_string(),
        size: size(from.size),
        ..types::Descriptor::default()
    }
}

/// Credentials of a request; `None` = none were given.
pub fn given(credentials: Credentials) -> Option<credentials::Credentials> {
    if !credentials.identity_token.is_empty() {
        return Some(credentials::Credentials::Identity(
            credentials.identity_token,
        ));
    }
    if credentials.username.is_empty() {
        return None;
    }
    Some(credentials::Credentials::Basic(
        credentials.username,
        credentials.password,
    ))
}

/// An event of a pull.
pub fn pull_event(event: Event) -> PullEvent {
    use pull_event::Event as Wire;
    PullEvent {
        event: Some(match event {
            Event::Resolved {
                name,
                target,
                manifest,
                blobs,
            } => Wire::Resolved(Resolved {
                name,
                target: Some(descriptor(target)),
                manifest: Some(descriptor(manifest)),
                blobs: blobs.into_iter().map(descriptor).collect(),
            }),
            Event::Layer {
                digest,
                phase,
                current,
                total,
            } => Wire::Layer(LayerProgress {
                digest,
                phase: phase.into(),
                current_bytes: size(current),
                total_bytes: size(total),
            }),
            Event::Total(sum) => Wire::Total(total(sum)),
            Event::Done {
                name,
                digest,
                id,
                changed,
            } => Wire::Done(PullDone {
                name,
                digest,
                id,
                changed,
            }),
        }),
    }
}

/// What a pull asks for.
pub fn pull(request: PullRequest) -> pull::Wanted {
    pull::Wanted {
        policy: match request.policy() {
            PullPolicy::Always => Policy::Always,
            PullPolicy::Missing => Policy::Missing,
            PullPolicy::Newer => Policy::Newer,
            PullPolicy::Never => Policy::Never,
        },
        all_platforms: request.all_platforms,
        platform: request
            .platform
            .filter(|platform| !platform.architecture.is_empty())
            .map(Into::into),
        reference: request.reference,
        unpack: request.unpack,
        credentials: request.credentials.and_then(given),
        plain_http: request.plain_http,
    }
}

fn total(sum: Sum) -> Total {
    Total {
        current_bytes: size(sum.current),
        total_bytes: size(sum.total),
        bytes_per_second: size(sum.per_second),
        eta_seconds: sum.seconds_left.map_or(-1, size),
    }
}

/// What a push asks for.
pub fn push(request: PushRequest) -> push::Wanted {
    push::Wanted {
        reference: request.reference,
        destination: request.destination,
        platform: request
            .platform
            .filter(|platform| !platform.architecture.is_empty())
            .map(Into::into),
        all_platforms: request.all_platforms,
        credentials: request.credentials.and_then(given),
        plain_http: request.plain_http,
    }
}

fn upload_phase(phase: u8) -> UploadPhase {
    let is = |one: Phase| phase == one as u8;
    if is(Phase::Exists) {
        UploadPhase::Exists
    } else if is(Phase::Moving) {
        UploadPhase::Uploading
    } else if is(Phase::Mounted) {
        UploadPhase::Mounted
    } else if is(Phase::Done) {
        UploadPhase::Done
    } else {
        UploadPhase::Waiting
    }
}

/// An event of a push.
pub fn push_event(event: push::Event) -> PushEvent {
    use push_event::Event as Wire;
    PushEvent {
        event: Some(match event {
            push::Event::Layer {
                digest,
                phase,
                current,
                total,
                from,
            } => Wire::Layer(UploadProgress {
                digest,
                phase: upload_phase(phase).into(),
                current_bytes: size(current),
                total_bytes: size(total),
                from,
            }),
            push::Event::Total(sum) => Wire::Total(total(sum)),
            push::Event::Note(note) => Wire::Note(note),
            push::Event::Done { name, target } => Wire::Done(PushDone {
                name,
                digest: target.digest.to_string(),
                size: size(target.size),
            }),
        }),
    }
}

/// One that refers to an image.
pub fn referrer(from: Referrer) -> gantry_proto::registry::Referrer {
    gantry_proto::registry::Referrer {
        descriptor: Some(descriptor(from.at)),
        artifact_type: from.artifact_type,
        annotations: from.annotations,
    }
}

/// How to serve.
pub fn serve(request: ServeRequest) -> Settings {
    Settings {
        listen: request.listen,
        name: request.name,
        only_own: request.only_own,
        upstreams: request.upstreams,
        tls_cert: request.tls_cert,
        tls_key: request.tls_key,
        htpasswd: request.htpasswd,
        read_only: request.read_only,
    }
}

/// A request that was served.
pub fn served(seen: Seen) -> ServeEvent {
    ServeEvent {
        event: Some(serve_event::Event::Request(ServedRequest {
            method: seen.method,
            path: seen.path,
            status: seen.status.into(),
            from: seen.from.to_string(),
            microseconds: i64::try_from(seen.took.as_micros()).unwrap_or(i64::MAX),
        })),
    }
}

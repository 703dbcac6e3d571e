//! `inspect`: everything that the engine knows of a container, image, network or volume, as docker's JSON.
//!
//! Invariant: keys are docker's; what Gantry has no notion of is left out instead of being made up.

use std::process::ExitCode;

use clap::Args;
use gantry_proto::network::{GetNetworkRequest, NetworkInfo};
use gantry_proto::runtime::{Container, GetRequest, Status};
use gantry_proto::snapshotter::{GetVolumeRequest, Volume};
use gantry_proto::store::{ListImagesRequest, ResolveImageRequest, ResolvedImage};
use gantry_types::{Classify as _, ErrorKind};
use serde_json::{Map, Value, json};

use crate::container::{protocol, state};
use crate::error::{Error, Result};
use crate::output::template::Template;
use crate::output::{print, text, unescape};
use crate::peers::Engine;

/// Show everything about containers, images, networks or volumes
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  ctl inspect web\n  ctl inspect -f '{{.State.Status}}' web\n  ctl inspect --type image debian"
)]
pub struct Inspect {
    /// A template, or json
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// What the names are
    #[arg(long, value_name = "KIND", value_parser = ["container", "image", "network", "volume"])]
    r#type: Option<String>,
    /// Ids or names
    #[arg(required = true)]
    names: Vec<String>,
}

fn bare(address: &str) -> (&str, i64) {
    let (address, length) = address.split_once('/').unwrap_or((address, "0"));
    (address, length.parse().unwrap_or(0))
}

fn network_settings(container: &Container) -> Value {
    let mut ports: Map<String, Value> = Map::new();
    for port in &container.ports {
        let key = format!("{}/{}", port.container_port, protocol(port));
        let hosts = if port.host_ip.is_empty() {
            vec!["0.0.0.0", "::"]
        } else {
            vec![port.host_ip.as_str()]
        };
        let entry = ports.entry(key).or_insert_with(|| json!([]));
        if let Value::Array(bindings) = entry {
            bindings.extend(
                hosts
                    .iter()
                    .map(|host| json!({"HostIp": host, "HostPort": port.host_port.to_string()})),
            );
        }
    }
    let networks: Map<String, Value> = container
        .endpoints
        .iter()
        .map(|endpoint| {
            let (v4, length4) = bare(&endpoint.ipv4);
            let (v6, length6) = bare(&endpoint.ipv6);
            let value = json!({
                "Aliases": endpoint.aliases,
                "NetworkID": endpoint.network_id,
                "MacAddress": endpoint.mac,
                "IPAddress": v4, "IPPrefixLen": length4, "Gateway": endpoint.gateway_ipv4,
                "GlobalIPv6Address": v6, "GlobalIPv6PrefixLen": length6, "IPv6Gateway": endpoint.gateway_ipv6,
            });
            (endpoint.network.clone(), value)
        })
        .collect();
    let first = container.endpoints.first().cloned().unwrap_or_default();
    let (address, length) = bare(&first.ipv4);
    json!({
        "SandboxKey": container.netns,
        "Ports": ports,
        "IPAddress": address, "IPPrefixLen": length, "Gateway": first.gateway_ipv4,
        "GlobalIPv6Address": bare(&first.ipv6).0, "IPv6Gateway": first.gateway_ipv6,
        "MacAddress": first.mac,
        "Networks": networks,
    })
}

/// A container as docker shows it.
pub fn container(container: &Container) -> Value {
    let config = container.config.clone().unwrap_or_default();
    let resources = config.resources.clone().unwrap_or_default();
    let security = config.security.clone().unwrap_or_default();
    let restart = config.restart.clone().unwrap_or_default();
    let network = config.network.clone().unwrap_or_default();
    let status = container.status();
    let running = matches!(status, Status::Running | Status::Paused | Status::Stopping);
    let (path, args) = match container.args.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let mounts: Vec<Value> = container
        .mounts
        .iter()
        .map(|mount| {
            let mut value = json!({
                "Type": mount.r#type, "Source": mount.source, "Destination": mount.target,
                "Mode": if mount.readonly { "ro" } else { "" }, "RW": !mount.readonly,
                "Propagation": mount.propagation,
            });
            if mount.r#type == "volume" {
                value["Name"] = json!(mount.source);
            }
            value
        })
        .collect();
    let mut bindings: Map<String, Value> = Map::new();
    for port in &network.ports {
        let key = format!("{}/{}", port.container_port, protocol(port));
        let host = if port.host_port == 0 {
            String::new()
        } else {
            port.host_port.to_string()
        };
        let entry = bindings.entry(key).or_insert_with(|| json!([]));
        if let Value::Array(list) = entry {
            list.push(json!({"HostIp": port.host_ip, "HostPort": host}));
        }
    }
    let state_value = json!({
        "Status": state(container), "Running": running, "Paused": status == Status::Paused,
        "Restarting": false, "OOMKilled": container.oom_killed, "Dead": false,
        "Pid": container.pid, "ExitCode": container.exit_code, "Error": container.error,
        "StartedAt": text::rfc3339(container.started_at.as_ref()),
        "FinishedAt": text::rfc3339(container.finished_at.as_ref()),
    });
    let made_from = json!({
        "Hostname": container.hostname, "Domainname": config.domainname, "User": config.user,
        "Tty": config.tty, "OpenStdin": config.open_stdin, "Env": config.env,
        "Cmd": config.command, "Image": config.image, "WorkingDir": config.workdir,
        "Entrypoint": if config.set_entrypoint { json!(config.entrypoint) } else { Value::Null },
        "Labels": text::object(&config.labels), "StopSignal": config.stop_signal,
        "StopTimeout": config.stop_timeout_seconds,
    });
    let host_config = json!({
        "NetworkMode": if container.network_mode.is_empty() { "bridge" } else { &container.network_mode },
        "PortBindings": bindings, "PublishAllPorts": network.publish_all,
        "RestartPolicy": {"Name": if restart.name.is_empty() { "no" } else { &restart.name }, "MaximumRetryCount": restart.maximum_retries},
        "AutoRemove": config.auto_remove, "Init": config.init,
        "CapAdd": security.cap_add, "CapDrop": security.cap_drop, "Privileged": security.privileged,
        "ReadonlyRootfs": security.readonly_rootfs,
        "PidMode": security.pid_mode, "IpcMode": security.ipc_mode, "UTSMode": security.uts_mode, "CgroupnsMode": security.cgroupns_mode,
        "Dns": network.dns_servers, "DnsSearch": network.dns_search, "DnsOptions": network.dns_options, "ExtraHosts": network.extra_hosts,
        "GroupAdd": config.group_add,
        "Memory": resources.memory, "MemorySwap": resources.memory_swap, "MemoryReservation": resources.memory_reservation,
        "NanoCpus": resources.nano_cpus, "CpuShares": resources.cpu_shares, "CpusetCpus": resources.cpuset_cpus, "CpusetMems": resources.cpuset_mems,
        "PidsLimit": resources.pids_limit, "OomKillDisable": resources.oom_kill_disable, "OomScoreAdj": resources.oom_score_adj, "ShmSize": resources.shm_size,
        "Ulimits": resources.ulimits.iter().map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard})).collect::<Vec<_>>(),
        "Devices": resources.devices.iter().map(|device| json!({"PathOnHost": device.host_path, "PathInContainer": device.container_path, "CgroupPermissions": device.permissions})).collect::<Vec<_>>(),
        "Sysctls": text::object(&config.sysctls),
    });
    json!({
        "Id": container.id,
        "Created": text::rfc3339(container.created_at.as_ref()),
        "Path": path,
        "Args": args,
        "State": state_value,
        "Image": container.image_id,
        "ImageManifest": container.image_manifest,
        "ResolvConfPath": "", "HostnamePath": "", "HostsPath": "",
        "LogPath": container.log_path,
        "Name": format!("/{}", container.name),
        "RestartCount": container.restart_count,
        "Driver": "overlay",
        "Platform": "linux",
        "Mounts": mounts,
        "Config": made_from,
        "HostConfig": host_config,
        "NetworkSettings": network_settings(container),
    })
}

fn image(image: &ResolvedImage, tags: &[String], digests: &[String]) -> Value {
    let config: Value = serde_json::from_slice(&image.config_json).unwrap_or_default();
    let layers: Vec<&String> = image.layers.iter().map(|layer| &layer.diff_id).collect();
    let size: i64 = image
        .layers
        .iter()
        .filter_map(|layer| layer.blob.as_ref())
        .map(|blob| blob.size)
        .sum();
    json!({
        "Id": image.config.clone().unwrap_or_default().digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config["created"],
        "Author": config["author"],
        "Config": config["config"],
        "Architecture": config["architecture"],
        "Variant": config["variant"],
        "Os": config["os"],
        "Size": size,
        "RootFS": {"Type": "layers", "Layers": layers},
        "History": config["history"],
        "Manifest": image.manifest.clone().unwrap_or_default().digest,
    })
}

/// A network as docker shows it.
pub fn network(network: &NetworkInfo) -> Value {
    let pools: Vec<Value> = network
        .subnets
        .iter()
        .zip(
            network
                .gateways
                .iter()
                .chain(std::iter::repeat(&String::new())),
        )
        .map(|(subnet, gateway)| json!({"Subnet": subnet, "Gateway": gateway}))
        .collect();
    json!({
        "Id": network.id, "Name": network.name, "Driver": network.driver, "Scope": "local",
        "Created": text::rfc3339(network.created_at.as_ref()),
        "Internal": network.internal,
        "EnableIPv6": network.subnets.iter().any(|subnet| subnet.contains(':')),
        "IPAM": {"Driver": "default", "Config": pools},
        "Options": {"bridge": network.bridge, "mtu": network.mtu},
        "Labels": text::object(&network.labels),
        "Containers": network.sandboxes.iter().map(|id| (id.clone(), json!({}))).collect::<Map<_, _>>(),
    })
}

/// A volume as docker shows it.
pub fn volume(volume: &Volume) -> Value {
    json!({
        "Name": volume.name, "Driver": "local", "Mountpoint": volume.path, "Scope": "local",
        "CreatedAt": text::rfc3339(volume.created_at.as_ref()),
        "Labels": text::object(&volume.labels),
        "Anonymous": volume.anonymous,
        "UsedBy": volume.users,
    })
}

async fn find_container(engine: &Engine, name: &str) -> Result<Value> {
    let found = engine
        .call(|| {
            let mut client = engine.runtime();
            let request = GetRequest {
                id: name.to_owned(),
            };
            async move { client.get(request).await }
        })
        .await?;
    Ok(container(&found))
}

async fn find_image(engine: &Engine, name: &str) -> Result<Value> {
    let found = engine
        .call(|| {
            let mut client = engine.store();
            let request = ResolveImageRequest {
                reference: name.to_owned(),
                ..ResolveImageRequest::default()
            };
            async move { client.resolve_image(request).await }
        })
        .await?;
    let id = found.config.clone().unwrap_or_default().digest;
    let listed = engine
        .call(|| {
            let mut client = engine.store();
            async move { client.list_images(ListImagesRequest {}).await }
        })
        .await?;
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for summary in listed.images.into_iter().filter(|summary| summary.id == id) {
        let image = summary.image.unwrap_or_default();
        if crate::image::is_dangling(&image.name) {
            continue;
        }
        let name = crate::image::familiar(&image.name);
        let digest = image.target.unwrap_or_default().digest;
        digests.push(crate::remote::pinned(&name, &digest));
        if !name.contains('@') {
            tags.push(name);
        }
    }
    digests.dedup();
    Ok(image(&found, &tags, &digests))
}

async fn find_network(engine: &Engine, name: &str) -> Result<Value> {
    let found = engine
        .call(|| {
            let mut client = engine.network();
            let request = GetNetworkRequest {
                name: name.to_owned(),
            };
            async move { client.get_network(request).await }
        })
        .await?;
    Ok(network(&found))
}

async fn find_volume(engine: &Engine, name: &str) -> Result<Value> {
    let found = engine
        .call(|| {
            let mut client = engine.snapshotter();
            let request = GetVolumeRequest {
                name: name.to_owned(),
            };
            async move { client.get_volume(request).await }
        })
        .await?;
    Ok(volume(&found))
}

async fn find(engine: &Engine, name: &str, kind: &str) -> Result<Value> {
    match kind {
        "container" => find_container(engine, name).await,
        "image" => find_image(engine, name).await,
        "network" => find_network(engine, name).await,
        "volume" => find_volume(engine, name).await,
        _ => {
            for kind in ["container", "image", "network", "volume"] {
                match Box::pin(find(engine, name, kind)).await {
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::NotFound | ErrorKind::InvalidArgument
                        ) => {}
                    other => return other,
                }
            }
            Err(Error::Usage(format!(
                "no such container, image, network or volume: {name}"
            )))
        }
    }
}

/// Shows what was found, and reports what was not.
///
/// # Errors
/// For a template that is wrong.
pub async fn show(
    engine: &Engine,
    names: &[String],
    kind: &str,
    format: Option<&str>,
) -> Result<ExitCode> {
    let template = match format {
        None | Some("json") => None,
        Some(format) => Some(Template::parse(&unescape(format))?),
    };
    let mut code = ExitCode::SUCCESS;
    let mut found = Vec::new();
    for name in names {
        match find(engine, name, kind).await {
            Ok(value) => found.push(value),
            Err(error @ Error::Away { .. }) => return Err(error),
            Err(error) => {
                eprintln!("ctl: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    match template {
        Some(template) => {
            for value in &found {
                print(&format!("{}\n", template.render(value)?))?;
            }
        }
        None => {
            let text = serde_json::to_string_pretty(&found).unwrap_or_default();
            print(&format!("{text}\n"))?;
        }
    }
    Ok(code)
}

impl Inspect {
    /// Shows them.
    ///
    /// # Errors
    /// For a template that is wrong, or an engine that is not there.
    pub async fn go(self, engine: &Engine) -> Result<ExitCode> {
        let kind = self.r#type.as_deref().unwrap_or_default();
        show(engine, &self.names, kind, self.format.as_deref()).await
    }
}

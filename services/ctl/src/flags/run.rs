//! The flags of `run` and `create`, and the configuration that they make.
//!
//! Invariant: names and meanings are docker's; flags end at the image's name.

use clap::{ArgAction, Args};
use gantry_proto::network::EndpointRequest;
use gantry_proto::runtime::{
    ContainerConfig, LogConfig, MountSpec, NetworkConfig, Resources, Security,
};

use super::{bad, env, misc, mount, port, units};

/// What to run and how.
#[derive(Debug, Clone, Default, Args)]
pub struct RunFlags {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container and its anonymous volumes when it ends
    #[arg(long)]
    pub rm: bool,
    /// Name of the container; made up when left out
    #[arg(long)]
    pub name: Option<String>,
    /// Environment variable; without a value, ours
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// File of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<String>,
    /// Working directory in the container; made if missing
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Publish a port on the host: [[ADDRESS:]HOST:]CONTAINER[/udp]
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// Publish every port that the image exposes, on ports that the engine chooses
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Accepted for docker's sake; every port of a container is reachable on its networks
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// Mount a volume or host directory: [SOURCE:]TARGET[:OPTIONS]
    #[arg(short, long, value_name = "SPEC")]
    pub volume: Vec<String>,
    /// Mount: type=bind|volume|tmpfs,source=...,target=...[,readonly]
    #[arg(long, value_name = "SPEC")]
    pub mount: Vec<String>,
    /// Mount a tmpfs: TARGET[:size=64m,mode=1777]
    #[arg(long, value_name = "SPEC")]
    pub tmpfs: Vec<String>,
    /// Network: bridge, host, none, container:NAME or one that you made
    #[arg(long, alias = "net", value_name = "NAME")]
    pub network: Vec<String>,
    /// Further name on user-made networks
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<String>,
    /// MAC address
    #[arg(long, value_name = "ADDRESS")]
    pub mac_address: Option<String>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Line for /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option for /etc/resolv.conf
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Memory limit, such as 512m
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory and swap together; -1 = as much swap as there is
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory that it is left when memory is short
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<String>,
    /// Processors, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Share of the processors when they are short (1024 is usual)
    #[arg(short, long, value_name = "NUMBER")]
    pub cpu_shares: Option<i64>,
    /// Processors that it may use, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads; -1 = no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Resource limit: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
    /// Host device: /dev/HOST[:/dev/CONTAINER][:rwm]
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// How ready the kernel is to kill it when memory is short, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Do not kill in it when its memory limit is reached (cgroup v1)
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=FILE|unconfined, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Every capability and device, no filter
    #[arg(long)]
    pub privileged: bool,
    /// Program that runs the command, instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Run a small init that passes signals on and reaps orphans
    #[arg(long)]
    pub init: bool,
    /// Label: KEY=VALUE
    #[arg(short, long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// File of labels, one a line
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<String>,
    /// no, always, unless-stopped, on-failure[:N]
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds between that and the kill
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub stop_timeout: Option<i64>,
    /// Further group
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Kernel parameter of its namespaces: NAME=VALUE
    #[arg(long, value_name = "PARAMETER")]
    pub sysctl: Vec<String>,
    /// Option of the log: max-size=SIZE, max-file=N
    #[arg(long, value_name = "OPTION")]
    pub log_opt: Vec<String>,
    /// json-file
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Process namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE")]
    pub pid: Option<String>,
    /// IPC namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE")]
    pub ipc: Option<String>,
    /// UTS namespace: private or host
    #[arg(long, value_name = "MODE")]
    pub uts: Option<String>,
    /// Control group namespace: private or host
    #[arg(long, value_name = "MODE")]
    pub cgroupns: Option<String>,
    /// When to ask the registry: always, missing, newer (always, if it can be asked), never
    #[arg(long, value_name = "POLICY", default_value = "missing", value_parser = ["always", "missing", "newer", "never"])]
    pub pull: String,
    /// Platform of the image, such as linux/arm64
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// File to write the container's id to; must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<String>,
    /// Say nothing of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// The image, then what to run in it with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    pub image_and_command: Vec<String>,
}

fn mode(flag: &str, value: Option<&String>) -> Result<String, String> {
    match value.map(String::as_str) {
        None | Some("" | "private" | "shareable") => Ok(String::new()),
        Some(mode) if mode == "host" || mode.starts_with("container:") => Ok(mode.to_owned()),
        Some(other) => Err(bad(flag, other, "write private, host or container:NAME")),
    }
}

impl RunFlags {
    /// The image.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    fn mounts(&self) -> Result<Vec<MountSpec>, String> {
        let here = std::env::current_dir().unwrap_or_default();
        let mut mounts = Vec::new();
        for text in &self.volume {
            mounts.push(mount::volume(text, &here)?);
        }
        for text in &self.mount {
            mounts.push(mount::mount(text, &here)?);
        }
        for text in &self.tmpfs {
            mounts.push(mount::tmpfs(text)?);
        }
        Ok(mounts)
    }

    fn networks(&self) -> Result<NetworkConfig, String> {
        let names = if self.network.is_empty() {
            vec!["bridge".to_owned()]
        } else {
            self.network.clone()
        };
        let mut endpoints = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let only = ["host", "none"].contains(&name.as_str()) || name.starts_with("container:");
            if only && (names.len() > 1 || !self.publish.is_empty() && name != "host") {
                let why = "it cannot be combined with other networks or published ports";
                return Err(bad("--network", name, why));
            }
            let first = at == 0;
            let address =
                |flag: &Option<String>| flag.clone().filter(|_| first).unwrap_or_default();
            endpoints.push(EndpointRequest {
                network: name.clone(),
                aliases: self.network_alias.clone(),
                ipv4: address(&self.ip),
                ipv6: address(&self.ip6),
                mac: address(&self.mac_address),
            });
        }
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(port::publish(text)?);
        }
        for text in &self.expose {
            port::expose(text)?;
        }
        for text in &self.add_host {
            let parts = text.split_once([':', '=']);
            if !parts.is_some_and(|(name, address)| !name.is_empty() && !address.is_empty()) {
                return Err(bad("--add-host", text, "write NAME:ADDRESS"));
            }
        }
        for text in &self.dns {
            if text.parse::<std::net::IpAddr>().is_err() {
                return Err(bad("--dns", text, "write an IP address"));
            }
        }
        Ok(NetworkConfig {
            endpoints,
            ports,
            dns_servers: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            extra_hosts: self.add_host.clone(),
            publish_all: self.publish_all,
        })
    }

    fn resources(&self) -> Result<Resources, String> {
        let size = |flag: &str, value: &Option<String>| match value {
            None => Ok(0),
            Some(text) => units::size(text).map_err(|why| bad(flag, text, why)),
        };
        Ok(Resources {
            memory: size("--memory", &self.memory)?,
            memory_swap: match &self.memory_swap {
                None => 0,
                Some(text) => {
                    units::size_or_unlimited(text).map_err(|why| bad("--memory-swap", text, why))?
                }
            },
            memory_reservation: size("--memory-reservation", &self.memory_reservation)?,
            nano_cpus: match &self.cpus {
                None => 0,
                Some(text) => units::nano_cpus(text).map_err(|why| bad("--cpus", text, why))?,
            },
            cpu_shares: self.cpu_shares.unwrap_or(0),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            pids_limit: self.pids_limit.unwrap_or(0),
            ulimits: self
                .ulimit
                .iter()
                .map(|text| misc::ulimit(text))
                .collect::<Result<_, _>>()?,
            devices: self
                .device
                .iter()
                .map(|text| misc::device(text))
                .collect::<Result<_, _>>()?,
            oom_kill_disable: self.oom_kill_disable,
            oom_score_adj: self.oom_score_adj.unwrap_or(0),
            shm_size: size("--shm-size", &self.shm_size)?,
        })
    }

    fn security(&self) -> Result<Security, String> {
        let mut security = Security {
            privileged: self.privileged,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            readonly_rootfs: self.read_only,
            pid_mode: mode("--pid", self.pid.as_ref())?,
            ipc_mode: mode("--ipc", self.ipc.as_ref())?,
            uts_mode: mode("--uts", self.uts.as_ref())?,
            cgroupns_mode: mode("--cgroupns", self.cgroupns.as_ref())?,
            ..Security::default()
        };
        for text in &self.security_opt {
            misc::security(text, &mut security)?;
        }
        Ok(security)
    }

    /// The whole configuration.
    ///
    /// # Errors
    /// A sentence naming the flag, the value and what to write.
    pub fn config(&self) -> Result<ContainerConfig, String> {
        let mut log = LogConfig::default();
        if let Some(driver) = &self.log_driver
            && driver != "json-file"
        {
            return Err(bad("--log-driver", driver, "only json-file is there"));
        }
        for text in &self.log_opt {
            misc::log_option(text, &mut log)?;
        }
        let mut sysctls = std::collections::HashMap::new();
        for text in &self.sysctl {
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| bad("--sysctl", text, "write NAME=VALUE"))?;
            sysctls.insert(name.to_owned(), value.to_owned());
        }
        let own = |name: &str| std::env::var(name).ok();
        Ok(ContainerConfig {
            name: self.name.clone().unwrap_or_default(),
            image: self.image().to_owned(),
            platform: self.platform.as_deref().map(misc::platform).transpose()?,
            entrypoint: self
                .entrypoint
                .iter()
                .filter(|program| !program.is_empty())
                .cloned()
                .collect(),
            set_entrypoint: self.entrypoint.is_some(),
            command: self.image_and_command.iter().skip(1).cloned().collect(),
            env: env::variables(&self.env_file, &self.env, own)?,
            workdir: self.workdir.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            hostname: self.hostname.clone().unwrap_or_default(),
            domainname: self.domainname.clone().unwrap_or_default(),
            tty: self.tty,
            open_stdin: self.interactive,
            labels: env::labels(&self.label_file, &self.label)?,
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            stop_timeout_seconds: self.stop_timeout,
            mounts: self.mounts()?,
            network: Some(self.networks()?),
            resources: Some(self.resources()?),
            security: Some(self.security()?),
            restart: self.restart.as_deref().map(misc::restart).transpose()?,
            auto_remove: self.rm,
            init: self.init,
            group_add: self.group_add.clone(),
            log: Some(log),
            sysctls,
        })
    }
}

//! `info`: what can be used here, which limits hold, what is missing and how to get it.

use std::fmt::Write;
use std::fs;

use netio3::NetworkType;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use serde::Serialize;

use crate::args::{Backend, Common};
#[cfg(feature = "rdma")]
use crate::fabric_info::{self, EndpointInfo, Found};
use crate::failure::Failure;
use crate::report::show;

/// What libfabric offers, to a program that does not use it.
#[cfg(not(feature = "rdma"))]
mod fabric_info {
    use serde::Serialize;

    #[derive(Serialize, Debug)]
    pub enum EndpointInfo {}

    impl EndpointInfo {
        pub fn text(&self) -> String {
            match *self {}
        }
    }

    #[derive(Default)]
    pub struct Found {
        pub version: Option<String>,
        pub path: Option<String>,
        pub providers: Vec<String>,
        pub endpoints: Vec<EndpointInfo>,
        pub why: Option<String>,
    }

    pub fn find() -> Found {
        Found::default()
    }

    pub fn advice(_: &Found, devices: &[String]) -> Option<String> {
        let names = devices.join(", ");
        (!devices.is_empty()).then(|| format!("there is {names}, which this program was built without: `--features rdma`"))
    }
}
#[cfg(not(feature = "rdma"))]
use fabric_info::{EndpointInfo, Found};

/// Everything that `info` tells; the field names are those of the JSON object.
#[derive(Serialize, Debug)]
struct Info {
    role: &'static str,
    version: &'static str,
    kernel: Option<String>,
    processors: usize,
    backends: Vec<BackendInfo>,
    /// The version of the libfabric library in use; `null` without one.
    libfabric: Option<String>,
    /// The file it was loaded from.
    libfabric_path: Option<String>,
    /// Its providers that have message endpoints.
    providers: Vec<String>,
    /// What they reach.
    endpoints: Vec<EndpointInfo>,
    /// RDMA devices that the kernel knows.
    devices: Vec<String>,
    limits: Vec<Limit>,
    /// What should be changed, each with a remedy.
    advice: Vec<String>,
}

/// A backend or baseline, by its name on the command line.
#[derive(Serialize, Debug)]
struct BackendInfo {
    name: Backend,
    compiled_in: bool,
    usable: bool,
    /// Why not, and what to do.
    why: Option<String>,
}

/// A limit of the kernel or of this process.
#[derive(Serialize, Debug)]
struct Limit {
    name: &'static str,
    /// As the kernel writes it; `null` when it tells none.
    value: Option<String>,
    meaning: &'static str,
}

/// Prints what there is; with a backend asked for, fails when it cannot be used.
pub fn info(common: &Common) -> Result<(), Failure> {
    let info = Info::collect();
    if common.json {
        show(&(serde_json::to_string(&info).expect("the information has a JSON form") + "\n"));
    } else {
        show(&info.text());
    }
    let asked = info.backends.into_iter().find(|backend| Some(backend.name) == common.backend);
    asked.and_then(|asked| asked.why).map_or(Ok(()), |why| Err(Failure::NotDelivered(why)))
}

/// What using a backend or baseline would fail with.
pub fn usable(backend: Backend) -> Result<(), String> {
    let Some(network) = backend.network() else { return Ok(()) };
    if backend == Backend::RawFabric && !network.is_compiled_in() {
        return Err("the raw-fabric baseline is not compiled in; it comes with the rdma backend, build with `--features rdma`".into());
    }
    network.availability().map_err(|error| error.to_string())
}

/// The same, and what libfabric would fail with.
fn usable_with(backend: Backend, found: &Found) -> Result<(), String> {
    usable(backend)?;
    match (backend, &found.why) {
        (Backend::Rdma | Backend::RawFabric, Some(why)) => Err(why.clone()),
        _ => Ok(()),
    }
}

/// Those of the backends that can be used, as far as that can be found out without an address, and why the others are
/// left out. Fails where one was asked for that cannot.
pub fn choose(common: &Common, wanted: &[Backend]) -> Result<(Vec<Backend>, Vec<String>), Failure> {
    let found = fabric_info::find();
    let (mut usable, mut left_out) = (Vec::new(), Vec::new());
    for backend in wanted {
        match usable_with(*backend, &found) {
            Ok(()) => usable.push(*backend),
            Err(why) if common.backend.is_some() => return Err(Failure::NoConnection(why)),
            // What it lacks, the backend lacks too that it is the baseline of.
            Err(_) if *backend == Backend::RawFabric => {}
            Err(why) => left_out.push(format!("{backend} is left out: {why}")),
        }
    }
    Ok((usable, left_out))
}

impl BackendInfo {
    fn of(backend: Backend, found: &Found) -> Self {
        let outcome = usable_with(backend, found);
        let compiled_in = backend.network().is_none_or(NetworkType::is_compiled_in);
        Self { name: backend, compiled_in, usable: outcome.is_ok(), why: outcome.err() }
    }
}

impl Info {
    fn collect() -> Self {
        let limits = limits();
        let found = fabric_info::find();
        let devices = devices();
        let mut advice = advice(&limits, !devices.is_empty());
        advice.extend(fabric_info::advice(&found, &devices));
        let all = [Backend::Tcp, Backend::Rdma, Backend::Loopback, Backend::Raw, Backend::RawFabric];
        Self {
            role: "info",
            version: env!("CARGO_PKG_VERSION"),
            kernel: read("/proc/sys/kernel/osrelease"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            backends: all.map(|backend| BackendInfo::of(backend, &found)).into(),
            libfabric: found.version,
            libfabric_path: found.path,
            providers: found.providers,
            endpoints: found.endpoints,
            devices,
            limits,
            advice,
        }
    }

    fn text(&self) -> String {
        let Self {
            version, kernel, processors, backends, libfabric, libfabric_path, providers, endpoints, devices, limits, advice, ..
        } = self;
        let kernel = kernel.as_deref().unwrap_or("unknown");
        let mut text = format!("netio3-bench {version}, Linux {kernel}, {processors} processors\n\nbackends\n");
        for BackendInfo { name, usable, why, .. } in backends {
            let state = if *usable { "usable" } else { "not usable" };
            let _ = writeln!(text, "  {name:<12}{state:<12}{}", why.as_deref().unwrap_or_default());
        }
        let or_none = |names: &[String]| if names.is_empty() { "none".into() } else { names.join(", ") };
        let _ = writeln!(text, "  RDMA devices: {}", or_none(devices));
        if let Some(libfabric) = libfabric {
            let path = libfabric_path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
            let _ = writeln!(
                text,
                "\nlibfabric {libfabric}{path}, providers with message endpoints: {} (rdma takes verbs or tcp by itself, and never sockets)",
                or_none(providers)
            );
            endpoints.iter().for_each(|endpoint| text += &format!("  {}\n", endpoint.text()));
        }
        text += "\nlimits\n";
        for Limit { name, value, meaning } in limits {
            let _ = writeln!(text, "  {name:<32}{:<24}{meaning}", value.as_deref().unwrap_or("unknown"));
        }
        if !advice.is_empty() {
            let _ = writeln!(text, "\nadvice\n  {}", advice.join("\n  "));
        }
        text
    }
}

fn limits() -> Vec<Limit> {
    let kernel = [
        ("net.core.somaxconn", "connections that wait to be accepted"),
        ("net.core.rmem_max", "largest receive buffer a program may ask for, bytes"),
        ("net.core.wmem_max", "largest send buffer a program may ask for, bytes"),
        ("net.ipv4.tcp_rmem", "receive buffer: least, first, largest automatic, bytes"),
        ("net.ipv4.tcp_wmem", "send buffer: least, first, largest automatic, bytes"),
        ("net.ipv4.ip_local_port_range", "ports for outgoing connections"),
        ("net.ipv4.tcp_congestion_control", "congestion control"),
    ];
    let kernel = kernel.map(|(name, meaning)| Limit { name, value: read(&format!("/proc/sys/{}", name.replace('.', "/"))), meaning });
    let process = [
        (Resource::RLIMIT_NOFILE, "nofile", "descriptors of this process: now, at most; one per connection"),
        (Resource::RLIMIT_MEMLOCK, "memlock", "memory this process may pin for RDMA: now, at most, bytes"),
    ];
    let process = process.map(|(resource, name, meaning)| {
        let text = |limit: u64| if limit == RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() };
        let value = getrlimit(resource).ok().map(|(now, most)| format!("{} {}", text(now), text(most)));
        Limit { name, value, meaning }
    });
    kernel.into_iter().chain(process).collect()
}

/// Limits that many connections, fast networks or RDMA devices run into.
fn advice(limits: &[Limit], rdma: bool) -> Vec<String> {
    let value = |name: &str, index: usize| -> Option<u64> {
        let text = limits.iter().find(|limit| limit.name == name)?.value.as_ref()?;
        text.split_whitespace().nth(index)?.parse().ok()
    };
    let below = |name, index, least: u64| value(name, index).filter(|value| *value < least);
    let mut advice = Vec::new();
    if let Some(now) = below("nofile", 0, 4_096) {
        advice.push(format!("nofile allows {now} descriptors, few for hundreds of connections: `ulimit -n 65536`, or limits.conf"));
    }
    if let Some(now) = below("net.core.somaxconn", 0, 1_024) {
        advice.push(format!("only {now} connections may wait to be accepted: `sysctl -w net.core.somaxconn=4096`"));
    }
    if let Some(now) = below("memlock", 0, 64 << 20).filter(|_| rdma) {
        let remedy = "`ulimit -l unlimited`; for good, `* - memlock unlimited` in limits.conf, or LimitMEMLOCK=infinity in the unit";
        advice.push(format!("memlock allows {now} bytes to be pinned; an RDMA connection takes about 1.7 MB: {remedy}"));
    }
    for name in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        if let Some(now) = below(name, 2, 4 << 20) {
            let line = format!("{name} ends at {now} bytes, little beyond 10 Gb/s: `sysctl -w {name}=\"4096 131072 16777216\"`");
            advice.push(line);
        }
    }
    advice
}

/// The RDMA devices that the kernel knows.
fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_limits_come_with_a_remedy() {
        let limit = |name, value: &str| Limit { name, value: Some(value.into()), meaning: "" };
        let few = [limit("nofile", "1024 4096"), limit("net.core.somaxconn", "128"), limit("net.ipv4.tcp_rmem", "4096 131072 212992")];
        assert_eq!(advice(&few, false).len(), 3);
        assert_eq!(advice(&[limit("memlock", "65536 65536")], true).len(), 1);
        let enough = [limit("nofile", "unlimited unlimited"), limit("net.core.somaxconn", "4096")];
        assert!(advice(&enough, true).is_empty());
    }
}

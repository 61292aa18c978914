//! What libfabric offers here.

use std::fs;
use std::path::Path;

use netio3_libfabric::fabric::{Hints, Info, Library, LinkState};
use serde::Serialize;

use crate::report::bytes;

/// What libfabric offers.
#[derive(Debug, Default)]
pub struct Found {
    /// Its version.
    pub version: Option<String>,
    /// The file it was loaded from.
    pub path: Option<String>,
    /// Providers with message endpoints.
    pub providers: Vec<String>,
    /// What they reach.
    pub endpoints: Vec<EndpointInfo>,
    /// Why it cannot be used, and what to do.
    pub why: Option<String>,
}

/// A way to send messages; the field names are those of the JSON object.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    pub provider: String,
    pub fabric: String,
    pub domain: String,
    pub protocol: String,
    /// The network device, where the provider names one.
    pub device: Option<String>,
    /// `up`, `down`, or `null`.
    pub link: Option<&'static str>,
    /// Of the link; `null` if unknown.
    pub bits_per_s: Option<usize>,
    pub mtu: Option<usize>,
    /// The longest message of the provider's own.
    pub max_message: usize,
    /// Sends and receives that a connection can have on their way.
    pub queue: [usize; 2],
    /// Whether memory must be registered, which pins it.
    pub registers_memory: bool,
}

/// Asks libfabric, if it is there.
pub fn find() -> Found {
    let library = match Library::open() {
        Ok(library) => library,
        Err(error) => return Found { why: Some(error.to_string()), ..Default::default() },
    };
    let (major, minor) = library.version();
    let mut found = Found { version: Some(format!("{major}.{minor}")), path: path(), ..Default::default() };
    match library.infos(&Hints::default()) {
        Ok(infos) => {
            for endpoint in infos.iter().map(EndpointInfo::of) {
                if !found.providers.contains(&endpoint.provider) {
                    found.providers.push(endpoint.provider.clone());
                }
                if !found.endpoints.contains(&endpoint) {
                    found.endpoints.push(endpoint);
                }
            }
        }
        Err(error) => found.why = Some(error.to_string()),
    }
    if found.why.is_none() && !found.providers.iter().any(|provider| provider == "verbs" || provider == "tcp") {
        let remedy =
            "install a libfabric that has them, as Debian's libfabric1 and RHEL's libfabric do, and see that FI_PROVIDER is not set";
        found.why = Some(format!("libfabric {major}.{minor} has neither of the providers verbs and tcp for message endpoints; {remedy}"));
    }
    found
}

/// What helps where there is no RDMA hardware, or it is not found. `devices`: those that the kernel knows.
pub fn advice(found: &Found, devices: &[String]) -> Option<String> {
    if found.why.is_some() || found.providers.iter().any(|provider| provider == "verbs") {
        return None;
    }
    let without = "there is no provider verbs, and tcp is for machines without RDMA hardware, where netio3's tcp backend serves better";
    let line = if devices.is_empty() {
        format!("{without}; the kernel knows no RDMA device (`ls /sys/class/infiniband`)")
    } else if !Path::new("/dev/infiniband/rdma_cm").exists() {
        format!("{without}; there is {}, but no /dev/infiniband/rdma_cm: `modprobe rdma_ucm`", devices.join(", "))
    } else {
        let packages = "`apt-get install rdma-core ibverbs-providers` (Debian) or `dnf install rdma-core libibverbs librdmacm` (RHEL)";
        format!("{without}; there is {}, but no provider verbs: {packages}, and give the device an address (`ip addr`)", devices.join(", "))
    };
    Some(line)
}

impl EndpointInfo {
    fn of(info: &Info) -> Self {
        let nic = info.nic();
        let link = nic.as_ref().and_then(|nic| match nic.link {
            LinkState::Up => Some("up"),
            LinkState::Down => Some("down"),
            LinkState::Unknown => None,
        });
        Self {
            provider: info.provider(),
            fabric: info.fabric_name(),
            domain: info.domain_name(),
            protocol: info.protocol_name(),
            link,
            bits_per_s: nic.as_ref().map(|nic| nic.speed).filter(|speed| *speed > 0),
            mtu: nic.as_ref().map(|nic| nic.mtu).filter(|mtu| *mtu > 0),
            device: nic.and_then(|nic| nic.device),
            max_message: info.max_msg_size(),
            queue: [info.tx_size(), info.rx_size()],
            registers_memory: info.needs_local_mr(),
        }
    }

    /// The line about it.
    pub fn text(&self) -> String {
        let Self { provider, fabric, domain, protocol, device, link, bits_per_s, mtu, queue: [sends, receives], .. } = self;
        let device = device.as_ref().filter(|device| *device != domain).map(|device| format!(", device {device}")).unwrap_or_default();
        let link = link.map(|link| format!(", link {link}")).unwrap_or_default();
        let speed = bits_per_s.map(|speed| format!(", {} Gb/s", speed as f64 / 1e9)).unwrap_or_default();
        let mtu = mtu.map(|mtu| format!(", packets of {}", bytes(mtu as u64))).unwrap_or_default();
        let memory = if self.registers_memory { ", pins memory" } else { "" };
        format!("{provider:<8}{domain:<12}{fabric}: {protocol}{device}{link}{speed}{mtu}, queues {sends} and {receives}{memory}")
    }
}

/// Where the library was loaded from, by the kernel's account of this process.
fn path() -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let name = |line: &str| Some(line.split_once('/')?.1.to_owned());
    let found = maps.lines().filter_map(name).find(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with("libfabric.so")));
    found.map(|path| format!("/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_remedy() {
        let tcp = Found { providers: vec!["tcp".into()], ..Default::default() };
        assert!(advice(&tcp, &[]).unwrap().contains("without RDMA hardware"));
        assert!(advice(&tcp, &["mlx5_0".into()]).unwrap().contains("mlx5_0"));
        let verbs = Found { providers: vec!["verbs".into(), "tcp".into()], ..Default::default() };
        assert_eq!(advice(&verbs, &["mlx5_0".into()]), None);
        let found = find();
        assert_eq!(found.version.is_some(), found.path.is_some());
        assert!(found.why.is_some() || !found.endpoints.is_empty());
    }
}

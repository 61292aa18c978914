//! What is asked of libfabric, and the search for it.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;

use libfabric_sys as sys;

use super::info::InfoBox;
use super::{FabricError, Info, Library};

/// What to look for. Message endpoints (`FI_EP_MSG`) that send and receive, in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// The provider's name; none for all.
    pub provider: Option<String>,
    /// The address to listen on or to connect to; none to look for everything.
    pub node: Option<SocketAddr>,
    /// Whether `node` is this side's address, to listen on, instead of the peer's.
    pub passive: bool,
    /// The address of this side to connect from; none for the provider's choice. Without meaning if `passive`.
    pub source: Option<IpAddr>,
}

impl Library {
    /// Finds what can be used, the provider's best first; nothing found is an empty list.
    ///
    /// No name is looked up. The `verbs` provider resolves a peer's address meanwhile, which may take 2 s.
    ///
    /// # Errors
    /// libfabric reports any error but that nothing was found.
    pub fn infos(self: &Arc<Self>, hints: &Hints) -> Result<Vec<Info>, FabricError> {
        const CALL: &str = "fi_getinfo";
        let request = self.request(hints)?;
        let (node, service) = match hints.node {
            Some(node) => (Some(numeric_host(node)), Some(node.port().to_string())),
            None => (None, None),
        };
        let node = node.map(|text| CString::new(text).expect("an address has no zero byte"));
        let service = service.map(|text| CString::new(text).expect("a number has no zero byte"));
        let mut flags = 0;
        if node.is_some() {
            flags |= sys::FI_NUMERICHOST;
            if hints.passive {
                flags |= sys::FI_SOURCE;
            }
        }

        let text = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let mut list = ptr::null_mut();
        // SAFETY: both texts are null or C strings, and they and the hints live until after the call.
        let code =
            unsafe { (self.symbols.fi_getinfo)(sys::API_VERSION, text(&node), text(&service), flags, request.as_ptr(), &raw mut list) };
        match -code {
            0 => {}
            sys::FI_ENODATA => return Ok(Vec::new()),
            _ => return Err(self.error(CALL, code, hints.provider.as_deref())),
        }

        let mut infos = Vec::new();
        // SAFETY: the call succeeded, so this is a list of its making that nobody else has.
        while let Some((info, rest)) = unsafe { InfoBox::split(self.clone(), list) } {
            list = rest;
            let info = Info::found(info);
            if info.is_thread_safe() {
                infos.push(info);
            }
        }
        Ok(infos)
    }

    /// The hints in libfabric's form.
    fn request(self: &Arc<Self>, hints: &Hints) -> Result<InfoBox, FabricError> {
        const CALL: &str = "fi_getinfo";
        let no_memory = || self.error(CALL, -sys::FI_ENOMEM, None);
        let mut request = InfoBox::empty(self).ok_or_else(no_memory)?;
        request.info_mut().caps = sys::FI_MSG;
        request.info_mut().mode = sys::FI_RX_CQ_DATA;
        request.info_mut().addr_format = match hints.node {
            Some(SocketAddr::V4(_)) => sys::FI_SOCKADDR_IN,
            Some(SocketAddr::V6(_)) => sys::FI_SOCKADDR_IN6,
            None => sys::FI_FORMAT_UNSPEC,
        };
        request.ep_mut().r#type = sys::FI_EP_MSG;
        let domain = request.domain_mut();
        domain.mr_mode = sys::FI_MR_LOCAL | sys::FI_MR_VIRT_ADDR | sys::FI_MR_ALLOCATED | sys::FI_MR_PROV_KEY;
        domain.threading = sys::FI_THREAD_SAFE;
        // The queues are driven in any case, so that no provider needs a thread of its own for that.
        domain.control_progress = sys::FI_PROGRESS_MANUAL;
        domain.data_progress = sys::FI_PROGRESS_MANUAL;
        if let Some(source) = hints.source.filter(|_| !hints.passive) {
            let address = super::address::RawAddress::new(SocketAddr::new(source, 0));
            let len = address.len();
            // SAFETY: the memory is the C library's, as `fi_freeinfo` wants it.
            let copy = unsafe { libc::malloc(len) };
            if copy.is_null() {
                return Err(no_memory());
            }
            // SAFETY: so many bytes were allocated just now, and the address has as many.
            unsafe { copy.copy_from_nonoverlapping(address.as_ptr(), len) };
            request.info_mut().src_addr = copy;
            request.info_mut().src_addrlen = len;
        }
        if let Some(provider) = &hints.provider {
            let name = CString::new(provider.as_str())
                .map_err(|_| FabricError::refused(CALL, sys::FI_EINVAL, "the provider's name has a zero byte"))?;
            // SAFETY: it is a C string; the copy is of the C library's memory, as `fi_freeinfo` wants it.
            let name = unsafe { libc::strdup(name.as_ptr()) };
            if name.is_null() {
                return Err(no_memory());
            }
            request.fabric_mut().prov_name = name;
        }
        Ok(request)
    }
}

/// The host part of an address, with the scope that a link-local one may have.
fn numeric_host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_numeric() {
        let host = |text: &str| numeric_host(text.parse().unwrap());
        assert_eq!(host("192.0.2.1:5"), "192.0.2.1");
        assert_eq!(host("[2001:db8::1]:5"), "2001:db8::1");
        assert_eq!(host("[fe80::1%7]:5"), "fe80::1%7");
    }
}

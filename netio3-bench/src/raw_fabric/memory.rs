//! Memory that operations are posted with.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use netio3_libfabric::fabric::{Access, Desc, Domain, MemoryRegion};

/// Memory of this program, registered if the domain asks for it.
///
/// It is written by the provider meanwhile, so that it is only reached by pointers.
pub struct Block {
    // Before the memory, so that it goes first.
    region: Option<MemoryRegion>,
    pages: Pages,
    desc: [Desc; 1],
}

struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Block {
    /// So many bytes, all zero.
    ///
    /// # Errors
    /// There is no memory, or it cannot be registered.
    #[allow(unsafe_code)]
    pub fn new(domain: &Arc<Domain>, len: usize) -> Result<Self, String> {
        let layout = Layout::from_size_align(len.max(1), 4_096).map_err(|_| "too much memory".to_owned())?;
        // SAFETY: the length is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| format!("there is no memory of {len} bytes"))?;
        let pages = Pages { start, layout };
        let region = if domain.needs_registration() {
            // SAFETY: the memory is ours and goes after the region.
            let region = unsafe { MemoryRegion::register(domain, start.as_ptr(), layout.size(), Access::SendReceive) };
            Some(region.map_err(|error| error.to_string())?)
        } else {
            None
        };
        let desc = [region.as_ref().map_or(Desc::NONE, MemoryRegion::desc)];
        Ok(Self { region, pages, desc })
    }

    /// What operations are given to use the memory.
    #[inline]
    pub fn desc(&self) -> Desc {
        self.desc[0]
    }

    /// The same for an operation that uses nothing else; empty where it is not registered.
    #[inline]
    pub fn descs(&self) -> &[Desc] {
        if self.region.is_some() { &self.desc } else { &[] }
    }

    /// A place in it.
    #[inline]
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.pages.layout.size());
        self.pages.start.as_ptr().wrapping_add(offset)
    }
}

impl Drop for Pages {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: it was allocated so, and nobody uses it any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

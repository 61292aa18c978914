//! Memory that messages are sent from: regions, buffers and pools.

mod buffer;
mod pool;
mod raw;
mod region;
mod region_table;

pub use buffer::{BufferFull, NetworkBuffer};
pub use pool::BufferPool;
pub(crate) use pool::HEADROOM;
pub use raw::{HeldSlice, RawSlice};
pub use region::{MemoryKind, MemoryRegion, RegionInUse, RegionOptions};
pub use region_table::RegionId;
pub(crate) use region_table::{HeldRegions, Piece, RegionTable};

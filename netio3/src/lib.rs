//! netio3
pub use netio3_core::*;

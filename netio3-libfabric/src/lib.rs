//! libfabric's message endpoints (`FI_EP_MSG`) for netio3.
//!
//! [`fabric`] wraps libfabric, opened at run time, in types that own what they stand for. Building needs
//! neither libfabric nor its headers.

pub mod fabric;

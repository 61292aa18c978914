//! Raw bindings to libfabric, as far as a program with message endpoints (`FI_EP_MSG`) needs them.
//!
//! The shared library is opened at run time ([`Symbols::open`]), so that a program built with this crate
//! starts without libfabric and can say that it is missing; building needs neither libfabric nor its headers.
//! Seven functions are looked up by name. All others go, as in libfabric's own headers, through the tables of
//! function pointers that every object carries; they are plain functions here.
//!
//! Names, types and values are libfabric's, and its manual pages (`man 7 fabric`) describe them. Declared is
//! what 1.14 has, and programs ask for that version of the interface ([`API_VERSION`]), so that one binary
//! serves 1.14 up to 2.x. Newer versions have appended to some structures. Hence two rules: structures that
//! the library makes are reached through its pointers and never copied or made here, and those that a caller
//! makes and that may grow are handed over in a [`Roomy`].
//!
//! `tests/layout.rs` compares every structure, field and constant with what a C compiler makes of libfabric's
//! headers.
#![no_std]
#![allow(non_camel_case_types)]

#[macro_use]
mod macros;

mod calls;
mod constants;
#[doc(hidden)]
pub mod layout;
mod objects;
mod plain;
mod roomy;
mod symbols;

pub use calls::*;
pub use constants::*;
pub use objects::*;
pub use plain::*;
pub use roomy::*;
pub use symbols::{OpenError, SONAME, Symbols};

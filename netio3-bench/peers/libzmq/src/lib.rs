//! The newer sources under the older version's name: what the build of `zmq-sys` calls is the same in both.
#![forbid(unsafe_code)]

pub use current::Build;

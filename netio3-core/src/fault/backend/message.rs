//! Messages on their way to the backend behind.
#![allow(unsafe_code)]

use std::io::IoSlice;
use std::time::Instant;

use bytes::Bytes;

use crate::backend::{NetworkBackend, Unsent};
use crate::endpoint::Endpoint;
use crate::error::SendError;
use crate::memory::{NetworkBuffer, RawSlice};
use crate::status::{Completion, CompletionKind, NetioStatus};

/// What a send call was given, buffers aside.
#[derive(Clone, Copy)]
pub(super) struct Offered<'a> {
    pieces: Pieces<'a>,
    header: &'a [u8],
    key: u64,
}

#[derive(Clone, Copy)]
enum Pieces<'a> {
    Shared(&'a [Bytes]),
    Copied(&'a [IoSlice<'a>]),
    /// Readable until the message has come back or the backend is gone.
    Raw(&'a [RawSlice]),
}

/// An accepted message that has not been sent on yet.
pub(super) struct Held {
    /// When it is sent on.
    pub(super) due: Instant,
    body: Body,
    header: Vec<u8>,
    key: u64,
}

enum Body {
    Shared(Vec<Bytes>),
    Copied(Vec<u8>),
    /// Readable as long as this exists.
    Raw(Vec<RawSlice>),
    Buffer(NetworkBuffer),
}

impl<'a> Offered<'a> {
    pub(super) fn shared(pieces: &'a [Bytes], header: &'a [u8], key: u64) -> Self {
        Self { pieces: Pieces::Shared(pieces), header, key }
    }

    pub(super) fn copied(pieces: &'a [IoSlice<'a>], header: &'a [u8], key: u64) -> Self {
        Self { pieces: Pieces::Copied(pieces), header, key }
    }

    /// # Safety
    /// As for `send_raw_iov`; what is made of it by `hold` must be dropped before the key is given back.
    pub(super) unsafe fn raw(pieces: &'a [RawSlice], header: &'a [u8], key: u64) -> Self {
        Self { pieces: Pieces::Raw(pieces), header, key }
    }

    pub(super) fn header_len(&self) -> usize {
        self.header.len()
    }

    /// Header and payload.
    pub(super) fn len(&self) -> usize {
        self.header.len()
            + match self.pieces {
                Pieces::Shared(pieces) => pieces.iter().map(Bytes::len).sum::<usize>(),
                Pieces::Copied(pieces) => pieces.iter().map(|piece| piece.len()).sum(),
                Pieces::Raw(pieces) => pieces.iter().map(RawSlice::len).sum(),
            }
    }

    /// Where the zero-copy pieces lie: addresses and lengths.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (usize, usize)> + 'a {
        let (shared, raw): (&[Bytes], &[RawSlice]) = match self.pieces {
            Pieces::Shared(pieces) => (pieces, &[]),
            Pieces::Copied(_) => (&[], &[]),
            Pieces::Raw(pieces) => (&[], pieces),
        };
        shared.iter().map(|piece| (piece.as_ptr().addr(), piece.len())).chain(raw.iter().map(|piece| (piece.address(), piece.len())))
    }

    pub(super) fn send(&self, inner: &dyn NetworkBackend, to: Endpoint) -> Result<NetioStatus, SendError> {
        match self.pieces {
            Pieces::Shared(pieces) => inner.send_iov(to, pieces, self.header, self.key),
            Pieces::Copied(pieces) => inner.send_copy_iov(to, pieces, self.header, self.key),
            // SAFETY: by the contract of `raw` the pieces are readable until the backend in front gives the key
            // back, which it does after `inner` did, or after `inner` was dropped.
            Pieces::Raw(pieces) => unsafe { inner.send_raw_iov(to, pieces, self.header, self.key) },
        }
    }

    pub(super) fn hold(&self, due: Instant) -> Held {
        let body = match self.pieces {
            Pieces::Shared(pieces) => Body::Shared(pieces.to_vec()),
            Pieces::Copied(pieces) => Body::Copied(pieces.iter().flat_map(|piece| piece.iter().copied()).collect()),
            Pieces::Raw(pieces) => Body::Raw(pieces.to_vec()),
        };
        Held { due, body, header: self.header.to_vec(), key: self.key }
    }
}

impl Held {
    pub(super) fn of_buffer(buffer: NetworkBuffer, due: Instant) -> Self {
        Self { due, key: buffer.id(), body: Body::Buffer(buffer), header: Vec::new() }
    }

    /// Header and payload.
    pub(super) fn len(&self) -> usize {
        self.header.len()
            + match &self.body {
                Body::Shared(pieces) => pieces.iter().map(Bytes::len).sum::<usize>(),
                Body::Copied(bytes) => bytes.len(),
                Body::Raw(pieces) => pieces.iter().map(RawSlice::len).sum(),
                Body::Buffer(buffer) => buffer.len(),
            }
    }

    /// How it is told to the user.
    pub(super) fn completion(&self) -> Completion {
        let kind = match self.body {
            Body::Shared(_) | Body::Raw(_) => CompletionKind::ZeroCopy,
            Body::Copied(_) => CompletionKind::Copy,
            Body::Buffer(_) => CompletionKind::Buffer,
        };
        Completion { key: self.key, kind, len: self.len() as u32 }
    }

    /// Whether some of it lies in the region at this address, of this length.
    pub(super) fn uses(&self, (start, len): (usize, usize)) -> bool {
        let inside = |piece: (usize, usize)| piece.1 > 0 && piece.0 >= start && piece.0 < start + len;
        match &self.body {
            Body::Shared(pieces) => Offered::shared(pieces, &[], 0).ranges().any(inside),
            Body::Raw(pieces) => pieces.iter().any(|piece| inside((piece.address(), piece.len()))),
            Body::Buffer(buffer) => inside(buffer.range()),
            Body::Copied(_) => false,
        }
    }

    /// Sends it on; when it is not accepted, it comes back with the reason.
    pub(super) fn send(self, inner: &dyn NetworkBackend, to: Endpoint) -> Option<(Self, Result<NetioStatus, SendError>)> {
        let Self { due, body, header, key } = self;
        let outcome = match &body {
            Body::Shared(pieces) => Offered::shared(pieces, &header, key).send(inner, to),
            Body::Copied(bytes) => Offered::copied(&[IoSlice::new(bytes)], &header, key).send(inner, to),
            // SAFETY: made by `hold` of pieces that are readable until the key is given back.
            Body::Raw(pieces) => unsafe { Offered::raw(pieces, &header, key) }.send(inner, to),
            Body::Buffer(_) => {
                let Body::Buffer(buffer) = body else { unreachable!("matched just before") };
                let refused = |Unsent { buffer, outcome }| (Self { due, body: Body::Buffer(buffer), header, key }, outcome);
                return inner.send_taken(to, buffer).map_err(refused).err();
            }
        };
        match outcome {
            Ok(NetioStatus::Ok) => None,
            outcome => Some((Self { due, body, header, key }, outcome)),
        }
    }
}

//! Sending: how one message of a verified stream is made and sent.

use std::io::IoSlice;

use bytes::Bytes;

use super::node::Node;
use super::pattern::content;
use crate::address::EndPointAddress;
use crate::backend::{CopiedMessage, NetworkBackend, Unsent};
use crate::endpoint::Endpoint;
use crate::error::{BufferError, SendError};
use crate::status::{CompletionKind, NetioStatus};

/// How to send one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    family: Family,
    len: usize,
    header: usize,
    pieces: usize,
    by_address: Option<EndPointAddress>,
    key: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    ZeroCopy,
    Copy,
    Buffer,
}

impl Plan {
    /// `len` bytes in all, header included.
    pub(super) fn zero_copy(len: usize) -> Self {
        Self { family: Family::ZeroCopy, len, header: 0, pieces: 1, by_address: None, key: None }
    }

    pub(super) fn copy(len: usize) -> Self {
        Self { family: Family::Copy, ..Self::zero_copy(len) }
    }

    pub(super) fn buffer(len: usize) -> Self {
        Self { family: Family::Buffer, ..Self::zero_copy(len) }
    }

    /// The first `header` bytes are the header.
    pub(super) fn header(self, header: usize) -> Self {
        Self { header, ..self }
    }

    /// The rest comes in so many pieces, of which some are empty.
    pub(super) fn pieces(self, pieces: usize) -> Self {
        Self { pieces, ..self }
    }

    pub(super) fn by_address(self, address: EndPointAddress) -> Self {
        Self { by_address: Some(address), ..self }
    }

    pub(super) fn key(self, key: u64) -> Self {
        Self { key: Some(key), ..self }
    }
}

impl Node {
    #[track_caller]
    pub(super) fn send(&self, to: Endpoint, plan: Plan) -> NetioStatus {
        self.send_through(&*self.backend(), to, plan).expect("the connection is there")
    }

    /// Sends and expects it to be accepted.
    #[track_caller]
    pub(super) fn sent(&self, to: Endpoint, plan: Plan) {
        assert_eq!(self.send(to, plan), NetioStatus::Ok, "{plan:?} on {to}");
    }

    /// Sends, whether accepted or refused for want of room.
    #[track_caller]
    pub(super) fn sent_or_refused(&self, to: Endpoint, plan: Plan) {
        let status = self.send(to, plan);
        assert!(matches!(status, NetioStatus::Ok | NetioStatus::NoResources), "{status:?}: {plan:?} on {to}");
    }

    /// Sends the next messages of the stream that leaves by `to` in one call, each with a header and a length, header
    /// included, and journals what came of it.
    pub(super) fn send_batch(
        &self,
        backend: &dyn NetworkBackend,
        to: Endpoint,
        lengths: &[(usize, usize)],
    ) -> Result<(usize, NetioStatus), SendError> {
        let first = self.tally(to).accepted as u64;
        let contents: Vec<_> = (first..).zip(lengths).map(|(seq, (_, len))| content(to, seq, *len)).collect();
        let messages: Vec<_> = (1_000 + first..)
            .zip(contents.iter().zip(lengths))
            .map(|(key, (bytes, (header, _)))| CopiedMessage { data: &bytes[*header..], header: &bytes[..*header], key })
            .collect();
        let (accepted, status) = backend.send_copy_batch(to, &messages)?;
        for (message, bytes) in messages.iter().zip(&contents).take(accepted) {
            self.accepted(to, message.key, CompletionKind::Copy, bytes);
        }
        if status == NetioStatus::NoResources {
            self.refused_message(to, lengths[accepted].1);
        }
        Ok((accepted, status))
    }

    /// Sends the next message of the stream that leaves by `to`, and journals what came of it.
    pub(super) fn send_through(&self, backend: &dyn NetworkBackend, to: Endpoint, plan: Plan) -> Result<NetioStatus, SendError> {
        let seq = self.tally(to).accepted as u64;
        let bytes = content(to, seq, plan.len);
        let key = plan.key.unwrap_or(1_000 + seq);
        let (header, payload) = bytes.split_at(plan.header);
        let (key, kind, status) = match plan.family {
            Family::ZeroCopy => {
                let payload = Bytes::copy_from_slice(payload);
                let pieces: Vec<Bytes> = cuts(payload.len(), plan.pieces).map(|cut| payload.slice(cut)).collect();
                let status = match (plan.by_address, &pieces[..]) {
                    (None, [piece]) => backend.send(to, piece, header, key),
                    (None, pieces) => backend.send_iov(to, pieces, header, key),
                    (Some(address), [piece]) => backend.send_data(&address, piece, header, key),
                    (Some(address), pieces) => backend.send_data_iov(&address, pieces, header, key),
                };
                (key, CompletionKind::ZeroCopy, status?)
            }
            Family::Copy => {
                let pieces: Vec<IoSlice<'_>> = cuts(payload.len(), plan.pieces).map(|cut| IoSlice::new(&payload[cut])).collect();
                let status = match (plan.by_address, &pieces[..]) {
                    (None, [piece]) => backend.send_copy(to, piece, header, key),
                    (None, pieces) => backend.send_copy_iov(to, pieces, header, key),
                    (Some(address), [piece]) => backend.send_data_copy(&address, piece, header, key),
                    (Some(address), pieces) => backend.send_data_copy_iov(&address, pieces, header, key),
                };
                (key, CompletionKind::Copy, status?)
            }
            Family::Buffer => {
                let taken = match plan.by_address {
                    None => backend.take_buffer(to),
                    Some(address) => backend.get_buffer(&address),
                };
                let buffer = match taken {
                    Ok(buffer) => buffer,
                    Err(BufferError::UnknownSendEndpoint(target)) => return Err(SendError::UnknownSendEndpoint(target)),
                    Err(error) => panic!("{error}"),
                };
                match buffer {
                    None => {
                        self.refused(to);
                        return Ok(NetioStatus::NoResources);
                    }
                    Some(mut buffer) => {
                        buffer.extend_from_slice(&bytes).expect("the plan fits the buffers");
                        let key = buffer.id();
                        let sent = match plan.by_address {
                            None => backend.send_taken(to, buffer),
                            Some(address) => backend.send_buffer(&address, buffer),
                        };
                        match sent {
                            Ok(()) => (key, CompletionKind::Buffer, NetioStatus::Ok),
                            Err(Unsent { outcome, .. }) => (key, CompletionKind::Buffer, outcome?),
                        }
                    }
                }
            }
        };
        match status {
            NetioStatus::Ok => self.accepted(to, key, kind, &bytes),
            NetioStatus::NoResources => self.refused_message(to, bytes.len()),
            _ => {}
        }
        Ok(status)
    }
}

/// Cuts `len` bytes into pieces of uneven lengths; of more than two, every third is empty.
fn cuts(len: usize, pieces: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let filled = (0..pieces).filter(move |i| pieces <= 2 || i % 3 != 1).count();
    let mut start = 0;
    let mut left = filled;
    (0..pieces).map(move |i| {
        if pieces > 2 && i % 3 == 1 {
            return start..start;
        }
        left -= 1;
        let end = if left == 0 { len } else { (start + (len - start) / (left + 1) + i % 2).min(len) };
        let cut = start..end;
        start = end;
        cut
    })
}

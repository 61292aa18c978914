//! Posting packets and receives.

use libfabric_sys::FI_COMPLETION;
use netio3_core::engine::Engine;

use crate::fabric::{Desc, FabricError, Posted};
use crate::helper::Job;
use crate::link::Body;
use crate::sending::{Abilities, Held, MAX_PIECES};
use crate::transport::{Conn, Rdma};
use crate::wire::{HEAD_LEN, Head, Kind};

impl Rdma {
    /// Posts what waits, as far as credits and the device go; adds how many messages have left already, being injected.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn post(&self, engine: &Engine<Self>, connection: &Conn, body: &mut Body, left: &mut usize) -> Result<(), FabricError> {
        let Body { endpoint, sending, receiving, slab, queue, registered, credits, unsignalled, depth, iov_limit, inject_size, .. } = body;
        let endpoint = endpoint.lock();
        let Some(endpoint) = &*endpoint else { return Ok(()) };
        let id = connection.link.id;
        let device = &queue.device;
        // Those of the connection's own buffers are there for as long as it is.
        let own = |bytes: &[u8]| registered.iter().find_map(|own| own.stretch().find(bytes));
        let of_user = |bytes: &[u8]| self.desc_of(device, bytes).map(|(desc, registered)| (desc, Some(registered as Held)));
        let find = |bytes: &[u8]| own(bytes).map(|desc| (desc, None)).or_else(|| of_user(bytes));
        let abilities = Abilities { iov_limit: *iov_limit, find: if device.domain.needs_registration() { Some(&find) } else { None } };
        while *credits > 0 && sending.in_flight() < *depth {
            let in_flight = sending.in_flight();
            let Some(built) = sending.build(slab, &abilities) else { break };
            let owed = if built.has_head() { receiving.take_owed() } else { (0, 0) };
            built.write_head(slab, owed.0, owed.1);
            if in_flight == 0
                && built.len <= *inject_size
                && let Some(bytes) = built.contiguous(slab)
            {
                if !endpoint.inject(bytes)? {
                    receiving.untold(owed);
                    connection.link.stuck.set(true);
                    break;
                }
                *credits -= 1;
                engine.count_write(connection);
                sending.posted();
                *left += sending.all_left();
                continue;
            }
            let copied = built.copied;
            let pieces = built.pieces();
            let mut iov = [io_vec(0, 0); MAX_PIECES];
            let mut descs = [Desc::NONE; MAX_PIECES];
            for (index, (start, len, desc)) in pieces.iter().enumerate() {
                iov[index] = io_vec(*start, *len);
                descs[index] = *desc;
            }
            let count = pieces.len();
            // The last one that can be posted now asks for its completion, and every one after a quarter of the
            // queue, so that no key waits for later traffic.
            let is_last = *credits == 1 || in_flight + 1 == *depth || !sending.has_more() || sending.is_short_of_slots();
            let signal = is_last || *unsignalled + 1 >= (*depth / 4).max(1);
            // SAFETY: the pieces lie in the slab, in heap memory of the packet, or in memory of the user's; `sending`
            // holds all of these until the packet has left, or until the endpoint is closed.
            #[allow(unsafe_code)]
            let result = unsafe {
                endpoint.send(&iov[..count], &descs[..count], context(id, true, sending.next_tag()), if signal { FI_COMPLETION } else { 0 })
            };
            match result {
                Ok(Posted::Yes) => {}
                Ok(Posted::Again) => {
                    receiving.untold(owed);
                    connection.link.stuck.set(true);
                    break;
                }
                Err(error) => {
                    receiving.untold(owed);
                    return Err(error);
                }
            }
            if let Some(region) = sending.take_unknown() {
                self.ask(Job::Register { id, device: device.clone(), region });
            }
            if copied > 0 {
                connection.counters.copied_messages.add(1);
                if !connection.link.warned.replace(true) {
                    tracing::warn!(endpoint = %connection.endpoint, "memory outside the registered regions is copied before it is sent; register it");
                }
            }
            engine.count_write(connection);
            if signal {
                engine.count_signalled(connection);
            }
            *credits -= 1;
            *unsignalled = if signal { 0 } else { *unsignalled + 1 };
            sending.posted();
        }
        Ok(())
    }

    /// Sends a control packet, if the peer has a receive for it; tells whether it did.
    pub(crate) fn control(&self, engine: &Engine<Self>, connection: &Conn, body: &mut Body, kind: Kind) -> Result<bool, FabricError> {
        let Body { endpoint, sending, receiving, slab, control, inject_size, depth, unsignalled, .. } = body;
        let endpoint = endpoint.lock();
        let Some(endpoint) = &*endpoint else { return Ok(false) };
        // Credits need none.
        if kind != Kind::Credits && *control == 0 || sending.in_flight() >= *depth {
            return Ok(false);
        }
        let owed = receiving.take_owed();
        let bytes = Head { kind, credits: owed.0, control: owed.1 }.encode();
        let sent = if *inject_size >= HEAD_LEN && kind != Kind::Farewell {
            endpoint.inject(&bytes)
        } else if let Some(mut slot) = sending.take_head() {
            slab.room(&mut slot)[..HEAD_LEN].copy_from_slice(&bytes);
            let iov = [io_vec(slab.start(&slot).addr(), HEAD_LEN)];
            let context = context(connection.link.id, true, sending.next_tag());
            // SAFETY: the slot is kept by `sending` until the packet has left, or the endpoint is closed.
            #[allow(unsafe_code)]
            let sent = unsafe { endpoint.send(&iov, &[slab.desc()], context, FI_COMPLETION) }.map(|posted| posted == Posted::Yes);
            if sent == Ok(true) {
                engine.count_signalled(connection);
                *unsignalled = 0;
                sending.posted_control(slot);
            } else {
                sending.return_head(slot);
            }
            sent
        } else {
            Ok(false)
        };
        match sent {
            Ok(true) => {
                *control -= u8::from(kind != Kind::Credits);
                engine.count_write(connection);
            }
            Ok(false) => {
                receiving.untold(owed);
                connection.link.stuck.set(true);
            }
            Err(_) => receiving.untold(owed),
        }
        sent
    }

    /// Sends goodbyes and credits that are due.
    pub(crate) fn say(&self, engine: &Engine<Self>, connection: &Conn, body: &mut Body) -> Result<(), FabricError> {
        let goodbye = &connection.link.goodbye;
        if goodbye.due.get() && !goodbye.said.get() && body.sending.is_empty() && self.control(engine, connection, body, Kind::Goodbye)? {
            goodbye.said.set(true);
        }
        if goodbye.said.get()
            && goodbye.heard.get()
            && !goodbye.farewell_said.get()
            && self.control(engine, connection, body, Kind::Farewell)?
        {
            goodbye.farewell_said.set(true);
        }
        if !goodbye.farewell_said.get() && body.receiving.owes_much() {
            self.control(engine, connection, body, Kind::Credits)?;
        }
        Ok(())
    }
}

/// Posts the free receives.
pub(crate) fn post_receives(id: u64, body: &mut Body) -> Result<(), FabricError> {
    let Body { endpoint, receiving, slab, .. } = body;
    if !receiving.has_free() {
        return Ok(());
    }
    let endpoint = endpoint.lock();
    let Some(endpoint) = &*endpoint else { return Ok(()) };
    while let Some(slot) = receiving.next_free() {
        let context = context(id, false, slot.index());
        let memory = receiving.memory_of(&slot, slab);
        // SAFETY: the slot lies in memory that the body keeps until the endpoint is closed; nobody looks at it until
        // its completion has come.
        #[allow(unsafe_code)]
        let posted = unsafe { endpoint.recv(memory.start(&slot), slot.capacity(), memory.desc(), context) };
        match posted {
            Ok(Posted::Yes) => receiving.posted(slot),
            Ok(Posted::Again) => {
                receiving.not_posted(slot);
                return Ok(());
            }
            Err(error) => {
                receiving.not_posted(slot);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The context of a posted receive or send: what it was, of which connection.
pub(crate) fn context(id: u64, is_send: bool, number: u16) -> usize {
    (id as usize) << 17 | usize::from(is_send) << 16 | usize::from(number)
}

/// What [`context`] was made of.
pub(crate) fn of_context(context: usize) -> (u64, bool, u16) {
    ((context >> 17) as u64, context >> 16 & 1 == 1, context as u16)
}

fn io_vec(start: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len }
}

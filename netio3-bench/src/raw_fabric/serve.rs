//! `recv` and `echo` over bare libfabric calls.

use std::collections::VecDeque;

use netio3_libfabric::fabric::{CmEvent, Info};
use nix::libc::iovec;

use crate::args::{Backend, Common, EchoArgs, RecvArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Answer, Incoming, Ledger};
use crate::plan::{announce, parse_listen};
use crate::raw_fabric::link::{Link, RECEIVE};
use crate::raw_fabric::net::{Batch, GREETING, LISTENER, Net, STALL_DEADLINE, explain, find, is_ours};
use crate::raw_fabric::packet::CREDIT_LEN;
use crate::raw_fabric::receives::{Came, Packet, Place};
use crate::report::{Report, complain};

/// Receives; with `--forever` prints a report whenever the last of the senders has gone.
pub fn recv(common: &Common, args: &RecvArgs) -> Result<Report, Failure> {
    serve(common, &args.listen, Purpose::Stream, (!args.forever).then_some(args.senders))
}

/// Sends everything back until the client said goodbye.
pub fn echo(common: &Common, args: &EchoArgs) -> Result<Report, Failure> {
    serve(common, &args.listen, Purpose::RoundTrips, (!args.forever).then_some(1))
}

fn serve(common: &Common, listen: &str, purpose: Purpose, senders: Option<u64>) -> Result<Report, Failure> {
    let asked = parse_listen(listen)?;
    let address = asked.socket_addr();
    let (library, info) = find(common, address, true)?;
    let failed = |why: String| Failure::NoConnection(format!("cannot listen on {address}: {why}"));
    let net = Net::open(common, &library, &info).map_err(failed)?;
    let (listener, bound) = net.listen(&info).map_err(|error| failed(error.to_string()))?;
    // libfabric leaves out the scope of a link-local address.
    announce(asked.with_port(bound.port()).into());
    let ledger = Ledger::new(purpose, common.verify, senders);
    let mut server = Server { peers: Vec::new(), net, ledger, echo: purpose == Purpose::RoundTrips };
    let mut touched: Vec<usize> = Vec::new();
    let mut batch = Batch::new();
    while !server.ledger.is_over() {
        let busy = touched.iter().any(|index| server.is_refused_room(*index));
        touched.retain(|index| server.is_refused_room(*index));
        let patience = Some(STALL_DEADLINE).filter(|_| senders.is_some() && server.is_used());
        if !server.net.next(&mut batch, busy, patience).map_err(Failure::NotDelivered)? {
            let all = 0..server.peers.len();
            all.for_each(|index| server.close(index, Some(format!("no progress for {} s", STALL_DEADLINE.as_secs()))));
        }
        for completion in batch.completions() {
            let index = completion.context >> 1;
            server.completed(index, completion.context & 1 == RECEIVE, completion.len);
            if touched.last() != Some(&index) {
                touched.push(index);
            }
        }
        if let Some(error) = batch.failed.take() {
            server.close(error.context >> 1, Some(explain(&error)));
        }
        match batch.event.take() {
            Some(CmEvent::ConnectRequest { info, data, .. }) if is_ours(&data) => server.accept(&info),
            // Dropping the request rejects it.
            Some(CmEvent::ConnectRequest { .. }) | None => {}
            Some(CmEvent::Connected { endpoint, .. }) => {
                server.peers[endpoint].iter_mut().for_each(|peer| peer.link.connected = true);
                touched.push(endpoint);
            }
            Some(CmEvent::Error { endpoint: LISTENER, error, .. }) => return Err(Failure::NotDelivered(error.to_string())),
            Some(CmEvent::Error { endpoint, error, .. }) => server.close(endpoint, Some(error.to_string())),
            Some(CmEvent::Shutdown { endpoint }) => server.close(endpoint, Some("the peer hung up".into())),
        }
        touched.iter().for_each(|index| server.pump(*index));
        if senders.is_none() {
            server.ledger.print_round(Backend::RawFabric, common.json);
        }
    }
    let report = server.ledger.report(Backend::RawFabric, None);
    drop(server);
    drop(listener);
    Ok(report)
}

struct Server {
    /// By their number, which is never used again.
    peers: Vec<Option<Peer>>,
    net: Net,
    ledger: Ledger,
    echo: bool,
}

struct Peer {
    link: Link,
    incoming: Incoming,
    /// Whether it announced what it will send.
    begun: bool,
    /// Whether it was turned away; it hangs up when it has read that.
    refused: bool,
    back: Back,
}

/// What is sent back, in the order of coming.
#[derive(Default)]
struct Back {
    /// Packets that came, with those that are only to be released; those of messages that are not whole are not counted.
    packets: VecDeque<Packet>,
    whole: usize,
    /// Packets before a number may be received again when the sends before another are over.
    held: VecDeque<(u64, u64)>,
}

impl Server {
    fn is_used(&self) -> bool {
        self.peers.iter().flatten().any(|peer| peer.begun)
    }

    fn is_refused_room(&self, index: usize) -> bool {
        self.peers[index].as_ref().is_some_and(|peer| peer.link.sends.again)
    }

    fn accept(&mut self, info: &Info) {
        let index = self.peers.len();
        let accepted = self.net.link(info, index, |allowed| allowed).and_then(|link| {
            link.endpoint.accept(GREETING).map_err(|error| error.to_string())?;
            Ok(link)
        });
        match accepted {
            Ok(link) => {
                let (incoming, back) = Default::default();
                self.peers.push(Some(Peer { link, incoming, begun: false, refused: false, back }));
            }
            Err(why) => complain(format_args!("a connection was not accepted: {why}")),
        }
    }

    #[inline]
    fn completed(&mut self, index: usize, receive: bool, len: usize) {
        let Some(peer) = &mut self.peers[index] else { return };
        if !receive {
            return peer.link.sends.complete();
        }
        if let Err(why) = peer.received(len, self.echo, &mut self.ledger) {
            self.close(index, Some(why));
        }
    }

    #[inline]
    fn pump(&mut self, index: usize) {
        let Some(peer) = &mut self.peers[index] else { return };
        let outcome = if self.echo && peer.link.connected { peer.send_back() } else { Ok(()) };
        if let Err(why) = outcome.and_then(|()| peer.link.pump()) {
            self.close(index, Some(why));
        }
    }

    fn close(&mut self, index: usize, why: Option<String>) {
        let Some(peer) = self.peers.get_mut(index).and_then(Option::take) else { return };
        peer.incoming.close(&mut self.ledger, why);
    }
}

impl Peer {
    #[inline]
    fn received(&mut self, len: usize, echo: bool, ledger: &mut Ledger) -> Result<(), String> {
        let Self { link, incoming, .. } = self;
        let mut answer = None;
        let packet = link.take(len, echo, |came| match came {
            Came::Message(message) if incoming.observe(message) => {}
            Came::Message(message) | Came::Control(message) => answer = Some(incoming.control(ledger, message)),
        })?;
        if echo {
            self.back.packets.push_back(packet);
            if !self.link.receives.is_within_message() {
                self.back.whole = self.back.packets.len();
            }
        }
        match answer {
            None => Ok(()),
            _ if self.refused => Ok(()),
            Some(Answer::Send(message)) => self.say(message, echo),
            Some(Answer::Refuse(message)) => {
                self.refused = true;
                self.link.say(message);
                Ok(())
            }
            Some(Answer::HangUp) => Err("the peer spoke out of turn".into()),
        }
    }

    fn say(&mut self, message: Vec<u8>, echo: bool) -> Result<(), String> {
        if let Some(start) = self.incoming.start().filter(|_| !self.begun) {
            self.begun = true;
            let Link { receives, domain, .. } = &mut self.link;
            receives.expect(domain, start.size, echo, echo)?;
        }
        self.link.say(message);
        Ok(())
    }

    /// Sends back from where they lie the packets of whole messages, and receives again into those that are gone.
    #[allow(unsafe_code)]
    #[inline]
    fn send_back(&mut self) -> Result<(), String> {
        let Self { link: Link { endpoint, sends, receives, .. }, back, .. } = self;
        sends.again = false;
        while back.whole > 0 {
            let Packet { number, len, place, .. } = back.packets[0];
            if place != Place::Other {
                if !sends.room() {
                    break;
                }
                let (start, descs) = receives.packet(number);
                // SAFETY: the packet was received and is not released, so that its memory is ours.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
                let credits = receives.owed();
                if place == Place::Begin {
                    bytes[2..2 + CREDIT_LEN].copy_from_slice(&credits.to_le_bytes());
                }
                let sent = if len <= endpoint.inject_size() {
                    sends.inject(endpoint, bytes)?
                } else {
                    // SAFETY: it is released after the send is over, and its block goes after the endpoint.
                    unsafe { sends.post(endpoint, &[iovec { iov_base: start.cast(), iov_len: len }], descs, false)? }
                };
                if !sent {
                    break;
                }
                if place == Place::Begin {
                    receives.grant(credits);
                }
            }
            back.held.push_back((number + 1, sends.next()));
            back.packets.pop_front();
            back.whole -= 1;
        }
        while let Some((before, _)) = back.held.front().filter(|(_, sends_before)| *sends_before <= sends.completed()) {
            receives.release(*before);
            back.held.pop_front();
        }
        receives.post(endpoint)
    }
}

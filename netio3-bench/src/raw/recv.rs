//! `recv` over bare sockets.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use crate::args::{Backend, Common, RecvArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Incoming, Ledger};
use crate::plan::{announce, parse_listen};
use crate::raw::frame::Inbox;
use crate::raw::socket::{START_DEADLINE, Waiting, accept_one, explain, listen, poll_all, prepare, receive_first, reply};
use crate::report::Report;

/// Receives; with `--forever` prints a report whenever the last of the senders has gone.
pub fn recv(common: &Common, args: &RecvArgs) -> Result<Report, Failure> {
    let listener = listen(parse_listen(&args.listen)?.socket_addr())?;
    announce(listener.local_addr().map_err(|cause| Failure::NotDelivered(explain(&cause)))?);
    let mut ledger = Ledger::new(Purpose::Stream, common.verify, (!args.forever).then_some(args.senders));
    let outcome = accept(&mut ledger, &listener).and_then(|mut first| {
        let alone = first.incoming.start().is_some_and(|start| start.connections == 1) && args.senders == 1 && !args.forever;
        if !alone {
            return receive_many(common, &mut ledger, &listener, first);
        }
        let outcome = receive_alone(common, &mut ledger, &mut first);
        first.incoming.close(&mut ledger, None);
        outcome
    });
    Ok(ledger.report(Backend::Raw, outcome.err().as_ref().map(explain)))
}

struct Peer {
    socket: TcpStream,
    inbox: Inbox,
    incoming: Incoming,
}

/// Waits for a connection that announces itself properly.
fn accept(ledger: &mut Ledger, listener: &TcpListener) -> io::Result<Peer> {
    loop {
        let socket = accept_one(|| listener.accept())?;
        let (mut inbox, mut incoming) = (Inbox::new(), Incoming::default());
        let begin = || -> io::Result<bool> {
            prepare(&socket)?;
            let message = receive_first(&socket, &mut inbox, START_DEADLINE)?;
            reply(&mut &socket, incoming.control(ledger, &message))
        };
        // A stranger, or one that died at once: the next one.
        if let Ok(true) = { begin }() {
            return Ok(Peer { socket, inbox, incoming });
        }
    }
}

/// One connection.
fn receive_alone(common: &Common, ledger: &mut Ledger, peer: &mut Peer) -> io::Result<()> {
    let mut socket = Waiting::new(peer.socket.try_clone()?, common)?;
    loop {
        while let Some(message) = peer.inbox.next()? {
            if !peer.incoming.observe(message) && !reply(&mut socket, peer.incoming.control(ledger, message))? {
                return Ok(());
            }
        }
        socket.await_rest(peer.inbox.missing())?;
        match peer.inbox.read(&mut socket) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // After the goodbye it does not matter how the other side leaves.
            Err(_) if peer.incoming.is_done() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads of one connection before the others have their turn.
const READS_PER_TURN: usize = 8;
/// What a connection keeps in a buffer of its own size; beyond, it keeps the whole inbox.
const SMALL_REST: usize = 64 << 10;

/// A connection among many.
struct Member {
    socket: mio::net::TcpStream,
    incoming: Incoming,
    rest: Rest,
}

/// What a connection holds between two turns: all share one inbox as long as little is left over.
enum Rest {
    Small(Vec<u8>),
    Whole(Inbox),
}

const LISTENER: Token = Token(usize::MAX);

/// Many connections: edge-triggered readiness.
fn receive_many(common: &Common, ledger: &mut Ledger, listener: &TcpListener, first: Peer) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener.try_clone()?);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut members = HashMap::new();
    let mut names = 0..;
    let mut join = |poll: &Poll, members: &mut HashMap<usize, Member>, mut socket: mio::net::TcpStream, incoming, rest| {
        let name = names.next().expect("the range has no end");
        poll.registry().register(&mut socket, Token(name), Interest::READABLE)?;
        members.insert(name, Member { socket, incoming, rest });
        io::Result::Ok(())
    };
    first.socket.set_nonblocking(true)?;
    join(&poll, &mut members, mio::net::TcpStream::from_std(first.socket), first.incoming, Rest::Whole(first.inbox))?;

    let mut shared = Inbox::new();
    let mut again: Vec<usize> = Vec::new();
    while !ledger.is_over() {
        poll_all(&mut poll, &mut events, (!again.is_empty()).then_some(Duration::ZERO))?;
        let mut ready = std::mem::take(&mut again);
        for event in &events {
            if event.token() == LISTENER {
                loop {
                    let socket = match accept_one(|| listener.accept()) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        accepted => accepted?,
                    };
                    prepare(&socket)?;
                    join(&poll, &mut members, socket, Incoming::default(), Rest::Small(Vec::new()))?;
                }
            } else if !ready.contains(&event.token().0) {
                ready.push(event.token().0);
            }
        }
        for name in ready {
            let Some(member) = members.get_mut(&name) else { continue };
            match member.turn(&mut shared, ledger) {
                Ok(Turn::Empty) => {}
                Ok(Turn::MoreToCome) => again.push(name),
                Ok(Turn::Over) | Err(_) => {
                    members.remove(&name).into_iter().for_each(|member| member.incoming.close(ledger, None));
                    ledger.print_round(Backend::Raw, common.json);
                }
            }
        }
    }
    Ok(())
}

enum Turn {
    Empty,
    MoreToCome,
    Over,
}

impl Member {
    fn turn(&mut self, shared: &mut Inbox, ledger: &mut Ledger) -> io::Result<Turn> {
        let mut own = None;
        let inbox = match std::mem::replace(&mut self.rest, Rest::Small(Vec::new())) {
            Rest::Small(rest) => {
                shared.begin_with(&rest);
                &mut *shared
            }
            Rest::Whole(inbox) => own.insert(inbox),
        };
        let turn = Self::read(&mut self.socket, &mut self.incoming, inbox, ledger)?;
        self.rest = match own {
            Some(inbox) if inbox.rest().len() > SMALL_REST => Rest::Whole(inbox),
            Some(inbox) => Rest::Small(inbox.rest().to_vec()),
            None if shared.rest().len() > SMALL_REST => Rest::Whole(std::mem::replace(shared, Inbox::new())),
            None => Rest::Small(shared.rest().to_vec()),
        };
        Ok(turn)
    }

    fn read(socket: &mut mio::net::TcpStream, incoming: &mut Incoming, inbox: &mut Inbox, ledger: &mut Ledger) -> io::Result<Turn> {
        for _ in 0..READS_PER_TURN {
            match inbox.read(socket) {
                Ok(0) => return Ok(Turn::Over),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Empty),
                Err(error) => return Err(error),
            }
            while let Some(message) = inbox.next()? {
                if !incoming.observe(message) && !reply(socket, incoming.control(ledger, message))? {
                    return Ok(Turn::Over);
                }
            }
        }
        Ok(Turn::MoreToCome)
    }
}

//! `echo` over bare sockets.

use std::io::{self, Write};
use std::net::TcpStream;

use nix::poll::PollFlags;

use crate::args::{Backend, Common, EchoArgs};
use crate::control::Purpose;
use crate::failure::Failure;
use crate::ledger::{Incoming, Ledger};
use crate::plan::{announce, parse_listen};
use crate::raw::frame::Inbox;
use crate::raw::socket::{ANSWER_DEADLINE, START_DEADLINE, Waiting, accept_one, explain, listen, prepare, receive_first, reply, wait_for};
use crate::report::Report;

/// Sends everything back until the client said goodbye; with `--forever`, each client on a thread of its own.
pub fn echo(common: &Common, args: &EchoArgs) -> Result<Report, Failure> {
    let listener = listen(parse_listen(&args.listen)?.socket_addr())?;
    announce(listener.local_addr().map_err(|cause| Failure::NotDelivered(explain(&cause)))?);
    let book = || Ledger::new(Purpose::RoundTrips, common.verify, (!args.forever).then_some(1));
    let (mut ledger, mut inbox) = (book(), Inbox::new());
    loop {
        // A client may go between two connections.
        if ledger.has_absent() && wait_for(&listener, PollFlags::POLLIN, ANSWER_DEADLINE).is_err() {
            ledger.look_for_absent();
            if ledger.is_over() {
                return Ok(ledger.report(Backend::Raw, None));
            }
            continue;
        }
        let socket = match accept_one(|| listener.accept()) {
            Ok(socket) => socket,
            Err(error) => return Ok(ledger.report(Backend::Raw, Some(explain(&error)))),
        };
        if args.forever {
            let (common, mut ledger) = (common.clone(), book());
            std::thread::spawn(move || {
                if let Some(report) = serve(&common, socket, &mut ledger, &mut Inbox::new()) {
                    report.print(common.json);
                }
            });
        } else if let Some(report) = serve(common, socket, &mut ledger, &mut inbox)
            && (ledger.ended > 0 || report.error.is_some())
        {
            return Ok(report);
        }
    }
}

/// Serves one connection; `None` when it was none of ours.
fn serve(common: &Common, socket: TcpStream, ledger: &mut Ledger, inbox: &mut Inbox) -> Option<Report> {
    let mut incoming = Incoming::default();
    inbox.begin_with(&[]);
    let error = converse(common, socket, ledger, &mut incoming, inbox).err();
    incoming.start()?;
    incoming.close(ledger, None);
    Some(ledger.report(Backend::Raw, error.as_ref().map(explain)))
}

fn converse(common: &Common, socket: TcpStream, ledger: &mut Ledger, incoming: &mut Incoming, inbox: &mut Inbox) -> io::Result<()> {
    prepare(&socket)?;
    let first = receive_first(&socket, inbox, START_DEADLINE)?;
    let mut socket = Waiting::new(socket, common)?;
    let mut answer = incoming.control(ledger, &first);
    loop {
        if !reply(&mut socket, answer)? {
            return Ok(());
        }
        answer = loop {
            // What arrived is sent back from where it lies, all whole messages at once.
            let from = inbox.position();
            let mut to = from;
            let mut other = None;
            while let Some(message) = inbox.next()? {
                if !incoming.observe(message) {
                    other = Some(incoming.control(ledger, message));
                    break;
                }
                to = inbox.position();
            }
            if to > from {
                socket.write_all(inbox.range(from, to))?;
            }
            if let Some(answer) = other {
                break answer;
            }
            match inbox.read(&mut socket) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) if incoming.is_done() => return Ok(()),
                Err(error) => return Err(error),
            }
        };
    }
}

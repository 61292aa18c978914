// cargo run --example file_transfer, or in two terminals: … file_transfer listen 127.0.0.1:7700 COPY; … file_transfer 127.0.0.1:7700 FILE
//! Sends a file of any size and proves by its checksum that it arrived on the other side's disk.
//!
//! Without arguments both ends run in this process. `--backend NAME` chooses the backend. The file travels in
//! pieces of 1 MiB that are not copied. Both sides hold a bounded number of them: the sender by the size of
//! its queue, the receiver by the cap on messages taken over. The disk is written on a thread of its own, so that
//! it may be slow without keeping the loop from its work.

mod common;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netio3::bytes::Bytes;
use netio3::{
    Callbacks, ClosedReason, Completion, ConnectionInfo, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint,
    EpollEventLoop, EventLoop, Message, NetioStatus, NetworkBackend, NetworkConfig, NetworkType, RefusedReason, create_local,
};

use common::{Ending, Outcome};

const PIECE_LEN: usize = 1 << 20;
/// What each side holds at most, in bytes.
const WINDOW: usize = 16 * PIECE_LEN;

/// The first byte of every message. The sender's: a piece of the file, or its checksum after the last one.
const PIECE: u8 = b'p';
const END: u8 = b'e';
/// The receiver's: the checksum of what is on its disk, or a text that says what went wrong.
const STORED: u8 = b's';
const FAILED: u8 = b'f';

fn main() -> ExitCode {
    common::run(|kind, args| match *args {
        [] => demonstrate(kind),
        ["listen", address, path] => receive(kind, &address.parse()?, Path::new(path), |address| println!("listening on {address}")),
        [address, path] => send(kind, &address.parse()?, Path::new(path)),
        _ => Err("usage: file_transfer [listen ADDRESS COPY | ADDRESS FILE] [--backend NAME]".into()),
    })
}

/// Makes a file, sends it from one thread to another, and removes both.
fn demonstrate(kind: NetworkType) -> Outcome {
    let directory = std::env::temp_dir().join(format!("netio3-file-transfer-{}", std::process::id()));
    fs::create_dir(&directory)?;
    let (file, copy) = (directory.join("file"), directory.join("copy"));
    fs::write(&file, (0..9_999_999_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect::<Vec<u8>>())?;
    let (tell, told) = mpsc::channel();
    let receiver = thread::spawn(move || {
        receive(kind, &EndPointAddress::localhost(0), &copy, |address| {
            let _ = tell.send(address);
        })
    });
    // No address comes if the receiver failed; its own error says why.
    let sent = told.recv().map_or(Ok(()), |address| send(kind, &address, &file));
    let outcome = sent.and_then(|()| receiver.join().map_err(|_| "the receiver panicked")?);
    fs::remove_dir_all(&directory)?;
    outcome
}

/// Receives one file and tells its sender what became of it.
fn receive(kind: NetworkType, address: &EndPointAddress, path: &Path, ready: impl FnOnce(EndPointAddress)) -> Outcome {
    let file = File::create(path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    let ev = EpollEventLoop::new()?;
    let (pieces, to_store) = mpsc::channel();
    let over = ev.add_signal(|ev| ev.stop());
    let disk = thread::spawn(move || {
        let stored = store(file, &to_store);
        over.fire();
        stored
    });

    let sender = Rc::new(Cell::new(None));
    let receiver = Receiver { pieces, sender: sender.clone() };
    // Pieces on their way to the disk count as taken over; at the cap the backend reads no more.
    let config = NetworkConfig { owned_bytes: WINDOW, ..Default::default() };
    let backend = create_local(kind, config, Box::new(receiver), &ev)?;
    ready(backend.open_listen_endpoint(address, &ConnectionParametersRecv::default())?);
    ev.run()?;

    let stored = disk.join().map_err(|_| "the disk's thread panicked")?;
    if let Some(sender) = sender.get() {
        let status = match &stored {
            Ok(checksum) => backend.send_copy(sender, &checksum.to_bytes(), &[STORED], 0)?,
            Err(error) => backend.send_copy(sender, error.to_string().as_bytes(), &[FAILED], 0)?,
        };
        if status != NetioStatus::Ok {
            eprintln!("cannot answer the sender: {status}");
        }
    }
    backend.shutdown(Duration::from_secs(5));
    ev.run_until(&mut || backend.connections().is_empty(), Duration::from_secs(10))?;
    let checksum = stored.map_err(|error| format!("{} is not complete: {error}", path.display()))?;
    println!("received {checksum} into {}", path.display());
    Ok(())
}

/// Writes a file from its pieces, until its checksum comes and agrees.
fn store(mut file: File, pieces: &mpsc::Receiver<Result<Bytes, ClosedReason>>) -> io::Result<Checksum> {
    let mut stored = Checksum::default();
    for message in pieces {
        let message = message.map_err(|reason| io::Error::other(format!("the connection ended: {reason}")))?;
        let Some((kind, content)) = message.split_first() else { continue };
        if *kind == PIECE {
            file.write_all(content)?;
            stored.add(content);
        } else if content == stored.to_bytes() {
            return file.sync_all().map(|()| stored);
        } else {
            return Err(io::Error::other(format!("the checksum differs from that of the {stored} that arrived")));
        }
    }
    Err(io::Error::other("the loop ended"))
}

struct Receiver {
    /// To the thread that writes the file.
    pieces: mpsc::Sender<Result<Bytes, ClosedReason>>,
    sender: Rc<Cell<Option<Endpoint>>>,
}

impl Callbacks for Receiver {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        if self.sender.get().is_some() {
            eprintln!("turning {} away: one file at a time", connection.address);
            let _ = backend.close(connection.endpoint);
        } else {
            self.sender.set(Some(connection.endpoint));
        }
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, from: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        if self.sender.get() == Some(from) {
            // If nobody takes it the disk has failed, and its thread has stopped the loop.
            let _ = self.pieces.send(Ok(message.into_bytes()));
        }
    }

    fn on_connection_closed(
        &mut self,
        _: &dyn NetworkBackend,
        from: Endpoint,
        _: &EndPointAddress,
        _: &[Completion],
        reason: ClosedReason,
    ) {
        if self.sender.get() == Some(from) {
            self.sender.set(None);
            let _ = self.pieces.send(Err(reason));
        }
    }
}

/// Sends one file and waits for the receiver's word that it is on its disk.
fn send(kind: NetworkType, address: &EndPointAddress, path: &Path) -> Outcome {
    let file = File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let ev = EpollEventLoop::new()?;
    let ending = Rc::new(Ending::new(&ev));
    let sender = Sender { file, read: Checksum::default(), next: None, ending: ending.clone() };
    let backend = create_local(kind, NetworkConfig::default(), Box::new(sender), &ev)?;
    backend.open_send_endpoint(address, &ConnectionParameters { queue_bytes: WINDOW, ..Default::default() })?;
    ending.wait(&ev)?;
    backend.shutdown(Duration::from_secs(5));
    ev.run_until(&mut || backend.connections().is_empty(), Duration::from_secs(10))?;
    println!("sent {}", path.display());
    Ok(())
}

struct Sender {
    file: File,
    read: Checksum,
    /// What was read but did not fit in the queue.
    next: Option<(u8, Bytes)>,
    ending: Rc<Ending>,
}

impl Sender {
    /// Sends as much as the queue takes; *writable* calls it again. Reading may block, but the loop has nothing else to do.
    fn pump(&mut self, backend: &dyn NetworkBackend, to: Endpoint) -> Outcome {
        loop {
            let (kind, content) = match self.next.take() {
                Some(next) => next,
                None => self.read_piece()?,
            };
            match backend.send(to, &content, &[kind], 0)? {
                NetioStatus::Ok if kind == END => return Ok(()),
                NetioStatus::Ok => {}
                NetioStatus::NoResources => {
                    self.next = Some((kind, content));
                    return Ok(());
                }
                status => return Err(format!("cannot send: {status}").into()),
            }
        }
    }

    fn read_piece(&mut self) -> io::Result<(u8, Bytes)> {
        let mut piece = Vec::with_capacity(PIECE_LEN);
        (&self.file).take(PIECE_LEN as u64).read_to_end(&mut piece)?;
        self.read.add(&piece);
        Ok(if piece.is_empty() { (END, self.read.to_bytes().to_vec().into()) } else { (PIECE, piece.into()) })
    }
}

impl Callbacks for Sender {
    fn on_connection_established(&mut self, backend: &dyn NetworkBackend, connection: &ConnectionInfo) {
        self.on_writable(backend, connection.endpoint, &connection.address);
    }

    fn on_writable(&mut self, backend: &dyn NetworkBackend, endpoint: Endpoint, _: &EndPointAddress) {
        if let Err(error) = self.pump(backend, endpoint) {
            self.ending.tell(Err(error));
        }
    }

    fn on_data(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, message: Message<'_>) {
        self.ending.tell(match message.split_first() {
            Some((&STORED, checksum)) if checksum == self.read.to_bytes() => Ok(()),
            Some((&FAILED, text)) => Err(format!("the receiver says: {}", String::from_utf8_lossy(text)).into()),
            _ => Err("the receiver stored something else".into()),
        });
    }

    fn on_connection_refused(&mut self, _: &dyn NetworkBackend, _: Endpoint, address: &EndPointAddress, reason: RefusedReason) {
        self.ending.tell(Err(format!("no connection to {address}: {reason}").into()));
    }

    fn on_connection_closed(&mut self, _: &dyn NetworkBackend, _: Endpoint, _: &EndPointAddress, _: &[Completion], reason: ClosedReason) {
        self.ending.tell(Err(format!("the receiver did not confirm the file: {reason}").into()));
    }
}

/// How long a file is and the CRC-32 of its bytes.
#[derive(Clone, Default)]
struct Checksum {
    len: u64,
    crc: crc32fast::Hasher,
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        self.crc.update(bytes);
    }

    fn to_bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.crc.clone().finalize().to_le_bytes());
        bytes
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes with CRC-32 {:08x}", self.len, self.crc.clone().finalize())
    }
}

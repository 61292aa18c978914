// cargo run --example coalesce [--backend NAME]
//! Packs small records into messages: one leaves when its buffer is full, or when its first record is old enough.

mod common;

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use netio3::{
    Buffers, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EpollEventLoop, EventLoop, Handle, Handlers,
    NetworkBackend, NetworkBuffer, NetworkConfig, NetworkType, TimerId, create_local,
};

use common::{Ending, Outcome};

const BUFFERS: Buffers = Buffers { size: 4 << 10, count: 16 };
/// How long a record may wait for others.
const MAX_AGE: Duration = Duration::from_millis(2);

/// Collects the records to one connection.
struct Packer {
    backend: Box<dyn NetworkBackend>,
    to: Endpoint,
    ev: Handle,
    /// What is being filled, and the timer that runs since its first record.
    open: RefCell<Option<(NetworkBuffer, TimerId)>>,
    full: Cell<u64>,
    timed: Cell<u64>,
}

impl Packer {
    /// Adds a record of less than 64 KiB; `false` when there is no room for it now.
    fn add(self: &Rc<Self>, record: &[u8]) -> Outcome<bool> {
        let needed = 2 + record.len();
        if self.open.borrow().as_ref().is_some_and(|(buffer, _)| buffer.capacity() - buffer.len() < needed) {
            self.flush(&self.full)?;
        }
        let mut open = self.open.borrow_mut();
        if open.is_none() {
            let Some(buffer) = self.backend.take_buffer(self.to)? else { return Ok(false) };
            let packer = self.clone();
            let timer = self.ev.add_timer(MAX_AGE, move |_| {
                // Without a connection there is nothing to be done; `add` will tell.
                let _ = packer.flush(&packer.timed);
            });
            *open = Some((buffer, timer));
        }
        let Some((buffer, _)) = &mut *open else { return Ok(false) };
        buffer.extend_from_slice(&u16::try_from(record.len())?.to_le_bytes())?;
        buffer.extend_from_slice(record)?;
        Ok(true)
    }

    /// Sends what was collected. There is always room: the queue takes more messages than there are buffers.
    fn flush(&self, counter: &Cell<u64>) -> Outcome {
        let Some((buffer, timer)) = self.open.take() else { return Ok(()) };
        self.ev.cancel_timer(timer);
        counter.set(counter.get() + 1);
        self.backend.send_taken(self.to, buffer).map_err(|unsent| format!("not sent: {:?}", unsent.outcome).into())
    }
}

fn main() -> ExitCode {
    common::run(|kind, args| if args.is_empty() { demonstrate(kind) } else { Err("usage: coalesce [--backend NAME]".into()) })
}

/// Sends records, now many and now few, and counts them where they arrive.
fn demonstrate(kind: NetworkType) -> Outcome {
    const RECORDS: u64 = 20_000;
    let ev = EpollEventLoop::new()?;
    let counted = Rc::new(Cell::new(0));
    let count = counted.clone();
    let receiver = Handlers::new().on_data(move |_, _, _, message| {
        let mut rest = &message[..];
        while let Some((len, after)) = rest.split_first_chunk() {
            rest = after.get(usize::from(u16::from_le_bytes(*len))..).unwrap_or_default();
            count.set(count.get() + 1);
        }
    });
    let receiver = create_local(kind, NetworkConfig::default(), Box::new(receiver), &ev)?;
    let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;

    let (ending, connected) = (Rc::new(Ending::new(&ev)), Rc::new(Cell::new(false)));
    let (refused, established) = (ending.clone(), connected.clone());
    let sender = Handlers::new()
        .on_connection_established(move |_, _| established.set(true))
        .on_connection_refused(move |_, _, address, reason| refused.tell(Err(format!("no connection to {address}: {reason}").into())));
    let backend = create_local(kind, NetworkConfig::default(), Box::new(sender), &ev)?;
    let to = backend.open_send_endpoint(&address, &ConnectionParameters { buffers: Some(BUFFERS), ..Default::default() })?;
    let packer = Rc::new(Packer { backend, to, ev: ev.local(), open: RefCell::default(), full: Cell::default(), timed: Cell::default() });

    // The source of the records: in every other 100 ms a thousand a millisecond, else one.
    let (source, done, mut made, mut tick) = (packer.clone(), ending.clone(), 0_u64, 0);
    ev.add_interval(Duration::from_millis(1), move |_| {
        tick += 1;
        let many = if tick / 100 % 2 == 1 { 1_000 } else { 1 };
        for _ in 0..if connected.get() { many.min(RECORDS - made) } else { 0 } {
            match source.add(&[0x5a; 40][..(made % 40) as usize]) {
                Ok(true) => made += 1,
                Ok(false) => break,
                Err(error) => return done.tell(Err(error)),
            }
        }
        if made == RECORDS {
            done.tell(source.flush(&source.timed));
        }
    });
    ending.wait(&ev)?;
    packer.backend.shutdown(Duration::from_secs(5));
    ev.run_until(&mut || receiver.connections().is_empty(), Duration::from_secs(10))?;

    println!("{RECORDS} records left in {} full messages and {} by the timer", packer.full.get(), packer.timed.get());
    println!("{} records arrived", counted.get());
    if counted.get() == RECORDS { Ok(()) } else { Err("records were lost".into()) }
}

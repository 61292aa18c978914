// cargo run --release --example threads [--backend NAME]
//! Several threads send on one connection, and wait for room where there is none; the main one runs the loop.
//!
//! Each thread's messages arrive in its order, and every one of them. They are small, so each call hands over some dozens.

mod common;

use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use netio3::{
    ConnectionParameters, ConnectionParametersRecv, CopiedMessage, EndPointAddress, Endpoint, EpollEventLoop, EventLoop, Handlers,
    NetioStatus, NetworkBackend, NetworkConfig, NetworkType, create, create_local,
};

use common::Outcome;

const THREADS: u8 = 3;
const MESSAGES: u64 = 100_000;
const BATCH: u64 = 32;
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    common::run(|kind, args| match *args {
        [] => send_from_threads(kind),
        _ => Err("usage: threads [--backend NAME]".into()),
    })
}

fn send_from_threads(kind: NetworkType) -> Outcome {
    let ev = EpollEventLoop::new()?;

    let (received, in_order) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(true)));
    let (count, order) = (received.clone(), in_order.clone());
    let mut expected = [0; THREADS as usize];
    let receiver = Handlers::new().on_data(move |_, _, _, message| {
        let [thread, number @ ..] = &message[..] else { return order.set(false) };
        let expected = &mut expected[usize::from(*thread)];
        order.set(order.get() && *number == u64::to_le_bytes(*expected));
        *expected += 1;
        count.set(count.get() + 1);
    });
    let receiver = create_local(kind, NetworkConfig::default(), Box::new(receiver), &ev)?;
    let address = receiver.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;

    // Callbacks run on the loop's thread, which has to pass on what the others are to know.
    let (room, established) = (Arc::new(Room::default()), Arc::new(AtomicBool::new(false)));
    let (made, lost, open) = (room.clone(), room.clone(), established.clone());
    let sender = Handlers::new()
        .on_connection_established(move |_, _| open.store(true, Ordering::Release))
        .on_writable(move |_, _, _| made.tell())
        // Nobody waits for room on a connection that is gone.
        .on_connection_closed(move |_, _, _, _, _| lost.tell());
    let sender = create(kind, NetworkConfig::default(), Box::new(sender), &ev)?;
    let params = ConnectionParameters { queue_messages: 1_000, ..Default::default() };
    let to = sender.open_send_endpoint(&address, &params)?;
    if !ev.run_until(&mut || established.load(Ordering::Acquire), LIMIT)? {
        return Err("no connection".into());
    }

    let (backend, room, failed) = (&*sender, &*room, &AtomicBool::new(false));
    let refusals = thread::scope(|scope| {
        let work = |thread| {
            let remote = ev.remote();
            move || {
                let outcome = send_all(backend, to, thread, room);
                failed.fetch_or(outcome.is_err(), Ordering::Release);
                remote.wake();
                outcome
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
        let total = u64::from(THREADS) * MESSAGES;
        let ran = ev.run_until(&mut || received.get() == total || failed.load(Ordering::Acquire), LIMIT);
        // Whoever still waits for room learns that there is none.
        let _ = backend.abort(to);
        room.tell();
        let outcomes = threads.into_iter().map(|thread| thread.join().expect("a thread ends by itself"));
        let refusals = outcomes.sum::<Result<u64, String>>()?;
        if ran.map_err(|error| error.to_string())? { Ok(refusals) } else { Err(format!("{} of {total} messages arrived", received.get())) }
    })?;
    if !in_order.get() {
        return Err("a thread's messages came out of order".into());
    }
    println!("{} messages of {THREADS} threads arrived in order; {refusals} times a thread waited for room", received.get());
    Ok(())
}

/// Sends one thread's messages; gives how often it had to wait.
fn send_all(backend: &(dyn NetworkBackend + Send + Sync), to: Endpoint, thread: u8, room: &Room) -> Result<u64, String> {
    let header = [thread];
    let mut refusals = 0;
    let mut number = 0;
    while number < MESSAGES {
        let payloads: Vec<_> = (number..MESSAGES.min(number + BATCH)).map(u64::to_le_bytes).collect();
        let batch: Vec<_> = payloads.iter().zip(number..).map(|(data, key)| CopiedMessage { data, header: &header, key }).collect();
        // Before the attempt: *writable* may come between that and the waiting.
        let told = room.told();
        let outcome = backend.send_copy_batch(to, &batch);
        let (accepted, status) = outcome.map_err(|error| format!("thread {thread} cannot send: {error}"))?;
        // What was not accepted is sent again.
        number += accepted as u64;
        match status {
            NetioStatus::Ok => {}
            NetioStatus::NoResources => {
                refusals += 1;
                room.wait(told)?;
            }
            other => return Err(format!("thread {thread} cannot send: {other}")),
        }
    }
    Ok(refusals)
}

/// How often the threads were told of room. One *writable* answers the refusals of all.
#[derive(Default)]
struct Room {
    told: Mutex<u64>,
    changed: Condvar,
}

impl Room {
    fn told(&self) -> u64 {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits until it was told more often than that.
    fn wait(&self, before: u64) -> Result<(), String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, LIMIT, |told| *told == before);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() { Err("there was no room for a long time".into()) } else { Ok(()) }
    }
}

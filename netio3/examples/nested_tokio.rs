// cargo run --example nested_tokio [--backend NAME]
//! Drives the event loop inside a tokio runtime, and talks to a backend from a tokio task.
//!
//! The loop's descriptor is readable while the loop has work; whenever it is, `process` does a turn. Everything stays on one
//! thread, so that tasks call the backend directly. What its callbacks have to tell, they put into a channel.

mod common;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use netio3::bytes::Bytes;
use netio3::{
    ConnectionParameters, ConnectionParametersRecv, EndPointAddress, Endpoint, EpollEventLoop, Handlers, NetioStatus, NetworkBackend,
    NetworkConfig, NetworkType, create_local,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{self, LocalSet};
use tokio::time;

use common::Outcome;

fn main() -> ExitCode {
    common::run(|kind, args| {
        if !args.is_empty() {
            return Err("usage: nested_tokio [--backend NAME]".into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(LocalSet::new().run_until(demonstrate(kind)))
    })
}

async fn demonstrate(kind: NetworkType) -> Outcome {
    let ev = EpollEventLoop::new()?;
    let server = Handlers::new().on_data(|backend, from, _, message| {
        if !matches!(backend.send_copy(from, &message, &[], 0), Ok(NetioStatus::Ok)) {
            eprintln!("cannot answer {from}");
        }
    });
    let server = create_local(kind, NetworkConfig::default(), Box::new(server), &ev)?;
    let address = server.open_listen_endpoint(&EndPointAddress::localhost(0), &ConnectionParametersRecv::default())?;

    // The channel needs no bound: what it holds are messages taken over, which the backend caps.
    let (tell, events) = mpsc::unbounded_channel();
    let [up, refused, data, down] = std::array::from_fn(|_| tell.clone());
    // A failed `send` means that the task is over and wants to know nothing more.
    let client = Handlers::new()
        .on_connection_established(move |_, connection| drop(up.send(Event::Established(connection.endpoint))))
        .on_connection_refused(move |_, _, _, reason| drop(refused.send(Event::Ended(reason.to_string()))))
        .on_data(move |_, _, _, message| drop(data.send(Event::Data(message.into_bytes()))))
        .on_connection_closed(move |_, _, _, _, reason| drop(down.send(Event::Ended(reason.to_string()))));
    let client = create_local(kind, NetworkConfig::default(), Box::new(client), &ev)?;

    let task = task::spawn_local(converse(client, address, events));
    tokio::select! {
        result = drive(ev) => result,
        result = task => result?,
    }
}

/// Gives the loop a turn whenever it has something to do.
async fn drive(ev: EpollEventLoop) -> Outcome {
    #[allow(deprecated, reason = "later versions of tokio ask for a promise that the descriptor stays the same: the loop's does")]
    let ev = AsyncFd::with_interest(ev, Interest::READABLE)?;
    loop {
        let mut readable = ev.readable().await?;
        // Before the turn: the descriptor may become readable during it.
        readable.clear_ready();
        ev.get_ref().process()?;
    }
}

/// What the callbacks tell the task.
enum Event {
    Established(Endpoint),
    Data(Bytes),
    Ended(String),
}

/// A task like any other: it sleeps, sends, and awaits the answers.
async fn converse(client: Box<dyn NetworkBackend>, server: EndPointAddress, mut events: mpsc::UnboundedReceiver<Event>) -> Outcome {
    client.open_send_endpoint(&server, &ConnectionParameters::default())?;
    let endpoint = match next(&mut events).await? {
        Event::Established(endpoint) => endpoint,
        Event::Data(_) => return Err("data came before the connection".into()),
        Event::Ended(reason) => return Err(format!("no connection to {server}: {reason}").into()),
    };
    for number in 1..=5 {
        time::sleep(Duration::from_millis(20)).await;
        let text = Bytes::from(format!("message {number}"));
        let sent_at = Instant::now();
        match client.send(endpoint, &text, &[], number)? {
            NetioStatus::Ok => {}
            status => return Err(format!("cannot send: {status}").into()),
        }
        match next(&mut events).await? {
            Event::Data(answer) if answer == text => println!("{answer:?} came back after {:?}", sent_at.elapsed()),
            Event::Ended(reason) => return Err(format!("the connection ended: {reason}").into()),
            _ => return Err("something else came back".into()),
        }
    }
    client.close(endpoint)?;
    if let Event::Ended(reason) = next(&mut events).await? {
        println!("the connection ended: {reason}");
    }
    Ok(())
}

async fn next(events: &mut mpsc::UnboundedReceiver<Event>) -> Outcome<Event> {
    let event = time::timeout(Duration::from_secs(10), events.recv()).await.map_err(|_| "nothing happened for 10 s")?;
    event.ok_or_else(|| "the backend is gone".into())
}

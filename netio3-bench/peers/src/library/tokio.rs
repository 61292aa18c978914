//! tokio: a runtime on the main thread, a `TcpStream` without Nagle's delay, and tokio-util's `LengthDelimitedCodec`.
//! A sender feeds frames, which are written whenever 128 KiB are together, and flushes after the last.

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::STALL_LIMIT;
use crate::Outcome;
use crate::job::{Arrived, HEAD_LEN, Incoming, Job, Measured, QUESTION, RoundTrips, Task, Transfer};
use crate::process::announce;

/// Bytes that are read at once, and written at once.
const BUFFER: usize = 128 << 10;

type Frames = Framed<TcpStream, LengthDelimitedCodec>;

fn frames(stream: TcpStream, job: &Job) -> Outcome<Frames> {
    stream.set_nodelay(true)?;
    let codec = LengthDelimitedCodec::builder().max_frame_length(job.size).new_codec();
    let mut frames = Framed::with_capacity(stream, codec, BUFFER);
    frames.set_backpressure_boundary(BUFFER);
    Ok(frames)
}

/// Runs a side to its end, within a bounded time.
fn run<T>(job: &Job, side: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let limited = async { timeout(job.time + STALL_LIMIT, side).await };
    runtime.block_on(limited).unwrap_or_else(|_| Err("the other side says nothing".into()))
}

/// Receives, or sends back.
pub fn serve(job: &Job) -> Outcome {
    run(job, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| format!("cannot listen: {error}"))?;
        announce(&listener.local_addr()?.to_string());
        let mut frames = frames(listener.accept().await?.0, job)?;
        let mut incoming = Incoming::new(job);
        while let Some(message) = frames.next().await.transpose()? {
            match incoming.observe(&message)? {
                Arrived::Message if job.task == Task::Transfer => {}
                Arrived::Message => frames.send(message.freeze()).await?,
                Arrived::Question(answer) => frames.send(answer.as_slice()).await?,
            }
        }
        Ok(())
    })
}

/// Sends, or waits for what comes back.
pub fn drive(job: &Job, address: &str) -> Outcome<Measured> {
    run(job, async {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        let mut frames = frames(stream, job)?;
        let mut message = vec![0x5a; job.size];
        if job.task == Task::RoundTrips {
            let mut round_trips = RoundTrips::begin(job);
            while let Some(head) = round_trips.next() {
                message[..HEAD_LEN].copy_from_slice(&head);
                frames.send(message.as_slice()).await?;
                round_trips.came_back(&answer(&mut frames).await?)?;
            }
            return Ok(round_trips.end());
        }
        let mut transfer = Transfer::begin(job);
        while let Some(head) = transfer.next() {
            message[..HEAD_LEN].copy_from_slice(&head);
            frames.feed(message.as_slice()).await?;
            transfer.accepted();
        }
        frames.send(QUESTION.as_slice()).await?;
        Ok(transfer.end(&answer(&mut frames).await?)?)
    })
}

async fn answer(frames: &mut Frames) -> Outcome<BytesMut> {
    Ok(frames.next().await.ok_or("the other side hung up")??)
}

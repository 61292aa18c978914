//! Heads of TCP frames: writing them, and finding the messages in what was read.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netio3_asyncmsg::{Frame, HEAD_LEN};

/// What one read brings at most.
const READ: usize = 516 << 10;

fn stream(size: usize) -> (Vec<u8>, usize) {
    let count = READ / (HEAD_LEN + size);
    let frame = [&Frame::Data(size).head()[..], &vec![7; size]].concat();
    (frame.repeat(count), count)
}

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for size in [0, 64, 1 << 10, 16 << 10] {
        let (bytes, count) = stream(size);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("parse {count} frames of {size} B in place"), |b| {
            b.iter(|| {
                let mut rest = black_box(&bytes[..]);
                let mut sum = 0;
                while let Some((head, after)) = rest.split_first_chunk() {
                    let Ok(Frame::Data(len)) = Frame::parse(*head, 1 << 20) else { unreachable!("only data was written") };
                    sum += len;
                    rest = &after[len..];
                }
                sum
            });
        });
        let mut batch = vec![0; bytes.len()];
        let message = vec![7; size];
        group.bench_function(format!("write {count} frames of {size} B"), |b| {
            b.iter(|| {
                for frame in batch.chunks_exact_mut(HEAD_LEN + size) {
                    let (head, body) = frame.split_at_mut(HEAD_LEN);
                    head.copy_from_slice(&Frame::Data(black_box(size)).head());
                    body.copy_from_slice(black_box(&message));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);

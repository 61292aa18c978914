//! Taking buffers from a pool, and their ways back.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netio3::{BufferPool, MemoryRegion};

/// Buffers taken and returned in each iteration.
const BATCH: usize = 64;

fn pool(size: usize) -> BufferPool {
    let region = MemoryRegion::new(size * BATCH).expect("there is memory for a small region");
    region.cut(size).expect("a fresh region can be cut")
}

fn take_and_return(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool");
    group.throughput(Throughput::Elements(BATCH as u64));
    for size in [64, 1 << 10, 64 << 10] {
        let mut pool = pool(size);
        group.bench_function(format!("take {BATCH} buffers of {size} B, drop them"), |b| {
            let mut taken = Vec::with_capacity(BATCH);
            b.iter(|| {
                taken.extend(std::iter::from_fn(|| pool.take()));
                assert_eq!(taken.len(), BATCH);
                taken.clear();
            });
        });
    }
    let mut own = pool(64);
    group.bench_function("take, fill with 64 B and drop one at a time", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                let mut buffer = own.take().expect("the buffer before has come back");
                buffer.extend_from_slice(black_box(&[7; 64])).expect("the buffer has that size");
                black_box(buffer.as_slice());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, take_and_return);
criterion_main!(benches);

//! The thread that makes the calls which may block: opening devices, resolving addresses, connecting, accepting,
//! refusing and closing. There is one for each backend; the loop leaves jobs and is woken for what came of them. It ends
//! when there was nothing to do for a while: in a process of several threads the kernel takes longer for every call.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netio3_core::{EndPointAddress, MemoryRegion, Remote};
use parking_lot::{Condvar, Mutex};

use crate::devices::{Device, Devices, LEAST_RECEIVES, Net, Queue, Registered};
use crate::fabric::{Direction, Endpoint, FabricError, Info, PassiveEndpoint};
use crate::link::{Body, SharedEndpoint};
use crate::posting::post_receives;
use crate::receiving::Receiving;
use crate::sending::Sending;
use crate::slab::{Layout, Slab};
use crate::wire::{CONTROL_RECEIVES, Hello};

/// Something to be done.
pub(crate) enum Job {
    Connect {
        id: u64,
        over: Arc<AtomicBool>,
        address: EndPointAddress,
        source: Option<IpAddr>,
        hello: Hello,
        layout: Layout,
    },
    Accept {
        id: u64,
        net: Arc<Net>,
        info: Info,
        hello: Hello,
        layout: Layout,
    },
    Refuse {
        passive: Arc<PassiveEndpoint>,
        info: Info,
        hello: Hello,
    },
    /// Makes memory of a connection's known to its device.
    Register {
        id: u64,
        device: Arc<Device>,
        region: MemoryRegion,
    },
    /// Makes memory for long messages of a connection's.
    Area {
        id: u64,
        device: Arc<Device>,
        layout: Layout,
        len: usize,
    },
    /// Closes an endpoint; what it used comes back.
    Close {
        id: u64,
        body: Box<Body>,
    },
}

/// What came of it.
pub(crate) enum Done {
    Opened { id: u64, result: io::Result<Box<Body>> },
    Closed { id: u64, body: Box<Body> },
    Registered { id: u64, registered: Registered },
    Area { id: u64, slab: Arc<Slab>, len: usize },
}

/// How long the end of a backend waits for the thread.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How long the thread waits for the next job before it ends.
const LINGER: Duration = Duration::from_millis(100);

/// The way to the thread.
pub(crate) struct Helper {
    /// None once it is stopped.
    jobs: Option<Sender<Job>>,
    work: Arc<Work>,
}

/// What the thread works with.
struct Work {
    devices: Arc<Devices>,
    remote: Arc<dyn Remote>,
    /// Held by the thread.
    jobs: Mutex<Receiver<Job>>,
    tell: Sender<Done>,
    /// Nothing is to be begun any more.
    is_ending: AtomicBool,
    /// Jobs are left with this held, and the thread ends with it held when there is none: none is forgotten.
    running: Mutex<Running>,
    ended: Condvar,
}

#[derive(Default)]
struct Running {
    is_running: bool,
    /// The latest thread.
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no further thread.
    pub(crate) fn start(devices: Arc<Devices>, remote: Arc<dyn Remote>) -> io::Result<(Self, Receiver<Done>)> {
        let (jobs, to_do) = channel();
        let (tell, done) = channel();
        let work = Work {
            devices,
            remote,
            jobs: Mutex::new(to_do),
            tell,
            is_ending: AtomicBool::new(false),
            running: Mutex::default(),
            ended: Condvar::new(),
        };
        let helper = Self { jobs: Some(jobs), work: Arc::new(work) };
        helper.run(&mut helper.work.running.lock())?;
        Ok((helper, done))
    }

    /// Leaves a job to the thread. Where that cannot be started the job is done here.
    pub(crate) fn ask(&self, job: Job) {
        let Some(jobs) = &self.jobs else { return };
        let mut running = self.work.running.lock();
        // It is there for as long as this sender is.
        let _ = jobs.send(job);
        if let Err(error) = self.run(&mut running) {
            tracing::error!(%error, "cannot start the thread that connects and closes, which the loop has to do itself");
            drop(running);
            self.work.run_here();
        }
    }

    /// Starts the thread unless it runs.
    fn run(&self, running: &mut Running) -> io::Result<()> {
        if running.is_running {
            return Ok(());
        }
        // One that has ended has nothing left to do, but may still hold what others are to close.
        _ = running.thread.take().map(JoinHandle::join);
        let work = self.work.clone();
        let run = move || {
            let _panicked = Panicked(&work);
            work.run();
        };
        running.thread = Some(thread::Builder::new().name("netio3-fabric".into()).spawn(run)?);
        running.is_running = true;
        Ok(())
    }

    /// From now on nothing is begun but closing and refusing.
    pub(crate) fn stop(&mut self) {
        self.work.is_ending.store(true, Ordering::Release);
        drop(self.jobs.take());
    }

    /// Waits for the end of the stopped thread: what it closes, and drops at its end, must not be closed beside the end of the
    /// process, which takes the library away.
    pub(crate) fn join(&self) {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut running = self.work.running.lock();
        while running.is_running {
            if self.work.ended.wait_until(&mut running, deadline).timed_out() {
                tracing::warn!("libfabric takes long to close or open something; it is left to a thread that goes on meanwhile");
                return;
            }
        }
        let thread = running.thread.take();
        drop(running);
        _ = thread.map(JoinHandle::join);
        // What no thread could be started for.
        self.work.run();
    }
}

/// Has another thread go on when one panics.
struct Panicked<'a>(&'a Work);

impl Drop for Panicked<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.running.lock().is_running = false;
            self.0.ended.notify_all();
        }
    }
}

impl Work {
    /// Does jobs until there are none for a while, or nobody is left to ask.
    fn run(&self) {
        let jobs = self.jobs.lock();
        while let Some(job) = self.next(&jobs) {
            self.work(job);
        }
    }

    /// Does the jobs that are there, where there can be no thread for them: nobody would look at them again.
    fn run_here(&self) {
        let jobs = self.jobs.lock();
        while let Ok(job) = jobs.try_recv() {
            self.work(job);
        }
    }

    /// Waits for the next job; `None` ends the thread.
    fn next(&self, jobs: &Receiver<Job>) -> Option<Job> {
        if let Ok(job) = jobs.recv_timeout(LINGER) {
            return Some(job);
        }
        let mut running = self.running.lock();
        let job = jobs.try_recv().ok();
        running.is_running = job.is_some();
        if job.is_none() {
            self.ended.notify_all();
        }
        job
    }

    fn work(&self, job: Job) {
        let devices = &*self.devices;
        let done = match job {
            job if self.is_ending.load(Ordering::Acquire) && !matches!(job, Job::Close { .. } | Job::Refuse { .. }) => return drop(job),
            // Its deadline may have passed while others were closed.
            Job::Connect { over, .. } if over.load(Ordering::Acquire) => return,
            Job::Connect { id, address, source, hello, layout, .. } => {
                Done::Opened { id, result: connect(devices, id, address, source, &hello, layout).map(Box::new) }
            }
            Job::Accept { id, net, info, hello, layout } => {
                Done::Opened { id, result: accept(devices, id, &net, &info, &hello, layout).map(Box::new).map_err(Into::into) }
            }
            Job::Refuse { passive, info, hello } => {
                if let Err(error) = passive.reject(info, &hello.encode()) {
                    tracing::debug!(%error, "cannot refuse a peer");
                }
                return;
            }
            Job::Register { id, device, region } => match Registered::new(&device, region) {
                Ok(registered) => Done::Registered { id, registered },
                Err(error) => {
                    tracing::warn!(%error, "the buffers of a connection cannot be registered and are copied");
                    return;
                }
            },
            Job::Area { id, device, layout, len } => match device.slab(layout) {
                Ok((slab, _)) => Done::Area { id, slab, len },
                Err(error) => {
                    tracing::warn!(%error, "there is no memory for long messages to land in; they are put together by copying");
                    return;
                }
            },
            Job::Close { id, mut body } => {
                body.close();
                Done::Closed { id, body }
            }
        };
        // The loop may be gone; what it does not take is dropped here.
        if self.tell.send(done).is_ok() {
            self.remote.wake();
        }
    }
}

fn connect(
    devices: &Devices,
    id: u64,
    address: EndPointAddress,
    source: Option<IpAddr>,
    hello: &Hello,
    layout: Layout,
) -> io::Result<Body> {
    let info = devices.info(address.into(), false, source)?;
    let net = devices.net(&info)?;
    let device = devices.device(&net, &info)?;
    let mut body = open(&device, id, &info, layout)?;
    let hello = with_credits(hello, &body);
    finish(&mut body, |endpoint| endpoint.connect(address.into(), &hello.encode()))?;
    Ok(body)
}

fn accept(devices: &Devices, id: u64, net: &Arc<Net>, info: &Info, hello: &Hello, layout: Layout) -> Result<Body, FabricError> {
    let device = devices.device(net, info)?;
    let mut body = open(&device, id, info, layout)?;
    let hello = with_credits(hello, &body);
    finish(&mut body, |endpoint| endpoint.accept(&hello.encode()))?;
    Ok(body)
}

/// The hello with as many credits as there are receives: fewer than asked for, where the device allows fewer or they
/// are shared.
fn with_credits(hello: &Hello, body: &Body) -> Hello {
    Hello { credits: body.receiving.credits(), ..*hello }
}

fn finish(body: &mut Body, start: impl FnOnce(&Endpoint) -> Result<(), FabricError>) -> Result<(), FabricError> {
    let started = body.endpoint.lock().as_ref().map_or(Ok(()), start);
    started.inspect_err(|_| body.close())
}

/// An endpoint with its receives posted, so that nothing arrives in vain.
fn open(device: &Arc<Device>, id: u64, info: &Info, layout: Layout) -> Result<Body, FabricError> {
    let allowed = u16::try_from(info.rx_size()).unwrap_or(u16::MAX).max(LEAST_RECEIVES);
    let wanted = Layout { receives: layout.receives.min(allowed), ..layout };
    let layout = device.deal(wanted)?;
    // More than the peer's credits can hardly be on its way at once.
    let depth = info.tx_size().min(2 * usize::from(wanted.receives)).max(4);
    let made = device.slab(layout).and_then(|memory| Ok((memory, device.queue(depth + usize::from(layout.receives))?)));
    let ((slab, slots), queue) = made.inspect_err(|_| device.take_back(layout))?;
    let mut body = Body {
        endpoint: SharedEndpoint::default(),
        sending: Sending::new(slots.sends, slots.heads, layout.packet_len.min(info.max_msg_size())),
        receiving: Receiving::new(slots.receives, layout.receives - CONTROL_RECEIVES),
        slab,
        queue,
        area_asked: false,
        registered: Vec::new(),
        credits: 0,
        control: 0,
        unsignalled: 0,
        depth,
        iov_limit: info.iov_limit().max(1),
        inject_size: info.inject_size(),
    };
    let made = make(device, &body.queue, id, info).and_then(|endpoint| {
        *body.endpoint.lock() = Some(endpoint);
        device.note(&body.endpoint);
        post_receives(id, &mut body)
    });
    made.inspect_err(|_| body.close())?;
    Ok(body)
}

fn make(device: &Arc<Device>, queue: &Queue, id: u64, info: &Info) -> Result<Endpoint, FabricError> {
    let mut endpoint = Endpoint::open(&device.domain, info, id as usize)?;
    endpoint.bind_events(&device.net.events)?;
    endpoint.bind_completions(&queue.completions, Direction::Transmit, true)?;
    endpoint.bind_completions(&queue.completions, Direction::Receive, false)?;
    endpoint.enable()?;
    Ok(endpoint)
}
